"""Archives from anywhere: nothing leaves the folder, nothing unverified is called verified."""

from __future__ import annotations

import hashlib
import io
import json
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from packed import tar

from llmtuner_kit import artifacts, downloads, packing, training
from llmtuner_kit.aws import Aws
from llmtuner_kit.errors import DataError, IntegrityError
from llmtuner_kit.workspace import Workspace


def packed(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """An archive of (name, bytes), or (name, text) for a link to text."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def unpacked(archive: Path, folder: Path) -> None:
    packing.unpack(archive, folder)
    artifacts.verify(folder)


@pytest.mark.parametrize(
    ("member", "text"),
    [
        (("../out.txt", b"x"), "outside"),
        (("/abs/out.txt", b"x"), "manifest|absolute"),
        (("link", "/etc/passwd"), "link or a device"),
        (("weights.bin", b"x"), "pickle"),
        (("optimizer.pt", b"x"), "pickle"),
        (("deep/Weights.BIN", b"x"), "pickle"),
    ],
)
def test_dangerous_members_are_refused(tmp_path: Path, member: tuple[str, bytes | str], text: str) -> None:
    archive = packed(tmp_path / "a.tar.gz", member)
    with pytest.raises(IntegrityError, match=text):
        unpacked(archive, tmp_path / "model")
    assert not (tmp_path / "out.txt").exists()
    assert not Path("/abs").exists()


def test_bomb_is_refused_by_its_member_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MOST_MEMBERS", 3)
    archive = packed(tmp_path / "a.tar.gz", *[(f"f{n}", b"x") for n in range(5)])
    with pytest.raises(IntegrityError, match="more than an archive of a model can"):
        packing.unpack(archive, tmp_path / "model")


def test_bomb_is_refused_before_it_is_written(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.tar.gz", ("model.safetensors", bytes(packing.SMALL_BYTES + 1)))
    with pytest.raises(IntegrityError, match="more than an archive of a model can"):
        packing.unpack(archive, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_bomb_in_a_header_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SMALL_BYTES", 20_000)
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as opened:
        info = tarfile.TarInfo("model.safetensors")
        info.pax_headers = {"comment": "x" * 3_000_000}
        opened.addfile(info)
    with (
        pytest.raises(IntegrityError, match="more than an archive of a model can"),
        packing.members(archive) as members,
    ):
        list(members)


def test_archive_larger_than_the_disk_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    archive = packed(tmp_path / "a.tar.gz", ("model.safetensors", bytes(11)))
    with pytest.raises(IntegrityError, match=r"has 0\.0 GB free"):
        packing.unpack(archive, tmp_path / "model")


@pytest.mark.parametrize(("free", "fits"), [(2400, True), (2399, False)])
def test_room_for_an_archive_and_for_what_is_inside_is_asked_for_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with nullcontext() if fits else pytest.raises(DataError, match="make room"):
        artifacts._require_room(tmp_path / "a.tar.gz", 1000)
    (tmp_path / "a.tar.gz.part").write_bytes(bytes(4096))  # what is there already takes no more room
    artifacts._require_room(tmp_path / "a.tar.gz", 1000)


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"no gzip at all", lambda _: b""])
def test_damaged_archive_leaves_nothing_behind(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    archive = packed(tmp_path / "a.tar.gz", ("model.safetensors", random.Random(0).randbytes(300_000)))
    archive.write_bytes(spoil(archive.read_bytes()))
    with pytest.raises(IntegrityError, match=r"damaged or no tar\.gz"):
        packing.unpack(archive, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_missing_changed_and_extra_files_are_all_named(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"good").hexdigest()
    files = {"same.txt": digest, "other.txt": digest, "gone.txt": digest}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files}))
    (tmp_path / "same.txt").write_bytes(b"good")
    (tmp_path / "other.txt").write_bytes(b"bad")
    (tmp_path / "extra.txt").write_bytes(b"x")
    with pytest.raises(IntegrityError) as caught:
        artifacts.verify(tmp_path)
    for part in ("gone.txt is missing", "other.txt has other bytes", "extra.txt is not in the manifest"):
        assert part in caught.value.problem
    assert "same.txt" not in caught.value.problem


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"files": 3}'])
def test_manifest_that_is_none_is_told_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"manifest\.json is damaged"):
        artifacts.verify(tmp_path)


def test_whole_archive_unpacks_and_verifies(tmp_path: Path) -> None:
    manifest = json.dumps({"files": {"a/b.txt": hashlib.sha256(b"good").hexdigest()}}).encode()
    archive = packed(tmp_path / "a.tar.gz", ("a/b.txt", b"good"), ("manifest.json", manifest))
    packing.unpack(archive, tmp_path / "model")
    assert artifacts.verify(tmp_path / "model")["files"]
    assert (tmp_path / "model" / "a" / "b.txt").read_bytes() == b"good"


_KILLED = """
import os, signal, sys
from pathlib import Path
from llmtuner_kit import packing
def extract(opened, item, work, filter):
    if item.name == "b":
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGKILL)
    Path(work, item.name).write_bytes(opened.extractfile(item).read())
    print("one", flush=True)
packing._TarFile.extract = extract
packing.unpack(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_what_a_killed_process_has_unpacked_is_removed_and_what_a_living_one_unpacks_is_not(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.tar.gz", ("a", b"good"), ("b", b"good"))
    command = [sys.executable, "-c", _KILLED, str(archive), str(tmp_path / "model")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"one\n"
        packing.remove_abandoned(tmp_path / "model")
        assert list(tmp_path.glob(".model-*/a"))
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    packing.remove_abandoned(tmp_path / "model")
    assert list(tmp_path.iterdir()) == [archive]
    packing.unpack(archive, tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar.gz", "model"}


def test_the_empty_archive_of_a_stopped_job_is_nothing_to_download_or_deploy(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "require_own_job", lambda *_: {"TrainingJobStatus": "Stopped"})
    client = workspace.aws.client("s3")
    client.put_object(Bucket=workspace.bucket, Key=workspace.paths.model_archive("job"), Body=tar({}, "w:gz"))
    seen = {item.name: (item.available, item.why) for item in artifacts.actions(workspace, "job")}
    assert seen["download"] == seen["deploy"] == (False, "the job is Stopped and left no model")
    output = tar({"manifest.json": b"{}"}, "w:gz")
    client.put_object(Bucket=workspace.bucket, Key=workspace.paths.output_archive("job"), Body=output)
    assert {item.name for item in artifacts.actions(workspace, "job") if item.available} >= {"download", "deploy"}


@pytest.mark.parametrize(
    ("lasting", "limit"), [(60, ""), (12, "not for 60 minutes"), (None, "at the latest: the temporary credentials")]
)
def test_a_link_says_when_it_ends_and_why_before_it_was_asked_for(
    lasting: int | None, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "archive_head", lambda *_: {"ContentLength": 7})
    client = SimpleNamespace(generate_presigned_url=lambda *_, **__: "https://link")
    aws = SimpleNamespace(client=lambda _: client, credentials_last=lambda _: lasting)
    workspace = Workspace(cast(Aws, aws), "bucket", "ada")
    link = artifacts.presign(workspace, "lamp", minutes=60)
    assert limit in link.limit
    assert bool(link.limit) == (lasting != 60)
    left = (link.expires_at - datetime.now(UTC)).total_seconds() / 60
    assert (lasting or 60) - 1 < left <= (lasting or 60)
