"""What the emulator adds to an invocation: time from client to handler and back, minus the handler's own time.

Part of emulator.py. The load generator is one asyncio process with a raw protocol per client (boto3, or threads of
http.client, would be the limit, not the emulator). Each client sends its next request when it has its answer. The handler
tells its own time (from the last byte of the request to the first byte of the answer) in every answer, and exactly that
is subtracted. The same load is sent to the container directly: what remains there is the cost of the client, the
handler's server and the machine; the difference is the emulator's.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import uvloop
from emulator_cloud import SIGNATURE, Cloud

HANDLER_SECONDS = 0.02


@dataclass
class Load:
    """The answers to one load: overhead of each in seconds (sorted), and the whole time in seconds."""

    overheads: list[float]
    seconds: float

    def __str__(self) -> str:
        p50, p99 = (self.overheads[int(len(self.overheads) * part)] * 1e3 for part in (0.5, 0.99))
        return f"{p50:.2f} / {p99:.2f} ms"

    @property
    def rate(self) -> float:
        return len(self.overheads) / self.seconds


class _Client(asyncio.Protocol):
    """Sends one request after the other on one connection."""

    def __init__(self, request: bytes, count: int, overheads: list[float], done: asyncio.Future[None]) -> None:
        self.request, self.left, self.overheads, self.done = request, count, overheads, done
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.send()

    def send(self) -> None:
        self.left -= 1
        self.began = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        ended = time.perf_counter()
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(f"an invocation failed: {self.data[:400]!r}"))
            return
        self.overheads.append(ended - self.began - float(body))
        self.data = b""
        if self.left:
            self.send()
        else:
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"the connection was lost: {exc}"))


def load(port: int, path: str, requests: int, clients: int, handler_seconds: float) -> Load:
    """Send requests from so many clients at once; any answer but 200 ends the benchmark."""
    body = str(handler_seconds).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: text/plain\r\n"
    head += f"Authorization: {SIGNATURE}\r\nContent-Length: {len(body)}\r\n\r\n"
    overheads: list[float] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        ends = [loop.create_future() for _ in range(clients)]
        for end in ends:
            await loop.create_connection(
                lambda end=end: _Client(head.encode() + body, requests // clients, overheads, end), "127.0.0.1", port
            )
        await asyncio.gather(*ends)

    began = time.perf_counter()
    uvloop.run(run())
    seconds = time.perf_counter() - began
    assert len(overheads) == requests // clients * clients
    return Load(sorted(overheads), seconds)


def measure(cloud: Cloud, endpoint: str, requests: int, clients: int) -> dict[str, Load]:
    """Loads on an endpoint of `emulator_cloud.serve`, and on its container directly; any failed answer ends all."""
    path = f"/endpoints/{endpoint}/invocations"
    journal = next((cloud.home / "endpoints" / endpoint).glob("*/*/journal.jsonl")).read_text().splitlines()
    direct = next(line["port"] for line in map(json.loads, reversed(journal)) if "port" in line)
    load(cloud.port, path, 50 * clients, clients, 0.0)  # connections are made, code is warm
    return {
        "working": load(cloud.port, path, requests, clients, HANDLER_SECONDS),
        "working, direct": load(direct, "/invocations", requests, clients, HANDLER_SECONDS),
        "idle": load(cloud.port, path, requests, clients, 0.0),
        "idle, direct": load(direct, "/invocations", requests, clients, 0.0),
    }
