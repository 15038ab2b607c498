"""LocalStack's own environment."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from llmtuner_local import base_models, servers
from llmtuner_local.home import LocalError


def test_a_cache_that_is_only_read_serves_what_it_has_and_is_named_where_it_must_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that a teacher has filled for all users of a machine."""
    monkeypatch.setenv("LLMTUNER_CACHE", str(tmp_path))
    there = tmp_path / "models" / "tiny-llama"
    there.mkdir(parents=True)
    (there / "base.json").write_text("{}")

    def closed(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(base_models, "locked", closed)
    assert base_models.build("tiny-llama") == there
    with pytest.raises(LocalError, match=r"\.tiny-t5\.lock cannot be written .* Set LLMTUNER_CACHE to a folder"):
        base_models.build("tiny-t5")


def test_files_of_a_base_model_are_all_read_by_whoever_reads_one(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.touch(mode=0o600)  # as safetensors writes it
    base_models._finish(tmp_path, "tiny-llama", {"revision": "1"})
    assert weights.stat().st_mode == (tmp_path / "base.json").stat().st_mode


def test_logs_do_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_LARGE_LOG_BYTES", 5)
    log = tmp_path / "emulator.log"
    for text in ("first lines", "second lines", "3"):
        log.write_text(text)
        servers._turn_over(log)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "emulator.log": "3",
        "emulator.before.log": "second lines",
    }


def test_localstack_is_installed_anew_when_the_python_it_was_installed_with_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that has been upgraded has another Python: links to the old one lead nowhere."""
    monkeypatch.setenv("LLMTUNER_CACHE", str(tmp_path))
    folder = tmp_path / f"localstack-{servers.LOCALSTACK_VERSION}"
    commands = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command[1:3])
        if command[1:3] == ["-m", "venv"]:
            (folder / "bin").mkdir(parents=True)
            (folder / "bin" / "python").symlink_to(sys.executable)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert servers.install() == folder / "bin" / "python"
    servers.install()
    assert commands == [["-m", "venv"], ["-m", "pip"]], "once, and kept"
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to(tmp_path / "gone")
    servers.install()
    assert commands == [["-m", "venv"], ["-m", "pip"]] * 2
