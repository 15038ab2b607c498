"""The parts of target local-docker that need no engine: the image's name, messages, and LocalStack's way into containers."""

from __future__ import annotations

import socket
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
