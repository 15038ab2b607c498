"""The parts of target local-docker that need no engine: the image's name, messages, and LocalStack's way into containers."""

from __future__ import annotations

import importlib.metadata
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from llmtuner_local.docker import engine, image
from llmtuner_local.emulator.containers import docker as containers
from llmtuner_local.emulator.containers.forwarder import Forwarder
from llmtuner_local.home import LocalError


@pytest.fixture
def echo() -> Iterator[int]:
    """A server of loopback that sends back what it gets, until the other side has said all; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    while block := peer.recv(65536):
                        peer.sendall(block)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_forwarder_carries_every_byte_both_ways_and_the_end_of_it(echo: int) -> None:
    forwarder = Forwarder("127.0.0.1", echo)
    try:
        sent = bytes(range(256)) * 4096
        with socket.create_connection(("127.0.0.1", forwarder.port), timeout=10) as client:
            got = bytearray()
            reader = threading.Thread(target=lambda: got.extend(iter_all(client)))
            reader.start()
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            reader.join(10)
        assert bytes(got) == sent
    finally:
        forwarder.close()


def iter_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def test_forwarder_listens_on_its_address_alone_and_not_after_close(echo: int) -> None:
    forwarder = Forwarder("127.0.0.2", echo)

    def listening() -> list[str]:
        found = psutil.Process().net_connections("tcp")
        return [
            item.laddr.ip for item in found if item.status == psutil.CONN_LISTEN and item.laddr.port == forwarder.port
        ]

    assert listening() == ["127.0.0.2"]
    forwarder.close()
    assert listening() == []


def test_image_s_name_follows_from_what_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.image_name()
    assert image.image_name() == before
    pinned = image.requirements()
    assert {line.partition("==")[0] for line in pinned} >= {"torch", "transformers", "peft", "safetensors"}
    assert all("==" in line for line in pinned)
    monkeypatch.setattr(image, "requirements", lambda: [*pinned, "another==1"])
    assert image.image_name() != before


class Pip:
    """Answers `pip download` as if only these builds of PyTorch could be had, each at its place; keeps what is asked."""

    def __init__(self, *had: tuple[str, str]) -> None:
        self.had, self.asked = had, list[tuple[str, str]]()
        self.constraints = ""

    def __call__(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        Path(command[command.index("--dest") + 1]).mkdir(exist_ok=True)
        index = command[command.index("--index-url") + 1] if "--index-url" in command else ""
        if "--no-deps" in command:
            self.asked.append((command[-1], index))
            return subprocess.CompletedProcess(command, int(self.asked[-1] not in self.had), "", "No matching")
        assert not index, "only PyTorch comes from PyTorch's index"
        assert "--find-links" in command
        self.constraints = Path(command[command.index("--constraint") + 1]).read_text()
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.mark.parametrize("installed", ["2.13.0", "2.13.0+cpu", "2.13.0+cu130"])
@pytest.mark.parametrize("place", ["", image._CPU_BUILDS], ids=["own index", "PyTorch's index"])
def test_the_image_takes_pytorch_without_cuda_whatever_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: str, place: str
) -> None:
    pip, told = Pip(("torch==2.13.0+cpu", place)), list[str]()
    fetch(monkeypatch, tmp_path, installed, pip, told)
    assert pip.asked[-1] == ("torch==2.13.0+cpu", place)
    assert "torch==2.13.0+cpu\n" in pip.constraints
    assert pip.constraints.count("torch==") == 1
    assert told == []
    assert "torch==2.13.0" in image.requirements()  # which the wheel of the CPU build meets
    pip.asked.clear()
    fetch(monkeypatch, tmp_path, installed, pip, told)
    assert pip.asked == []  # what was fetched is kept


def test_where_no_build_without_cuda_can_be_had_its_cost_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pip, told = Pip(("torch==2.13.0", "")), list[str]()
    fetch(monkeypatch, tmp_path, "2.13.0", pip, told)
    assert [version for version, _ in pip.asked] == ["torch==2.13.0+cpu", "torch==2.13.0+cpu", "torch==2.13.0"]
    assert "3 GB more to fetch" in told[0]
    with pytest.raises(LocalError, match="could not fetch PyTorch for the image: No matching"):
        fetch(monkeypatch, tmp_path / "other", "2.13.0", Pip(), told)


def fetch(monkeypatch: pytest.MonkeyPatch, folder: Path, installed: str, pip: Pip, told: list[str]) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(
        image.importlib.metadata, "version", lambda name: installed if name == "torch" else version(name)
    )
    monkeypatch.setattr(image, "docker", lambda *_: "amd64")
    monkeypatch.setattr(image, "_run", pip)
    folder.mkdir(exist_ok=True)
    image._fetch_wheels(folder, told.append)


def test_without_an_engine_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalError, match=r"no `docker` command .* Or use target local"):
        engine.require()


def test_nothing_is_asked_of_an_engine_where_no_container_was_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: str, **__: object) -> str:
        raise AssertionError("asked")

    monkeypatch.setattr(containers, "docker", refuse)
    assert containers.sweep(tmp_path) == 0
