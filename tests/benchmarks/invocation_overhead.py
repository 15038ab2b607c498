"""What the emulator adds to an invocation: time from client to handler and back, minus the handler's own time.

    .venv/bin/python tests/benchmarks/invocation_overhead.py [--requests 20000] [--clients 32] [--handler-ms 20]

The load generator is one asyncio process with a raw protocol per client (boto3, or threads of http.client, would be the
limit, not the emulator). Each client sends its next request when it has its answer. The handler tells its own time
(from the last byte of the request to the first byte of the answer) in every answer, and exactly that is subtracted.
The same load is sent to the container directly: what remains there is the cost of the client, the handler's server and
the machine; the difference is the emulator's. A second row without any handler time shows the most it can pass on.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
import uvloop

ROLE = "arn:aws:iam::000000000000:role/llmtuner-execution"
SIGNATURE = (
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sagemaker/aws4_request, SignedHeaders=host, Signature=x"
)
SERVER = """
import asyncio, os, time, uvloop
class Handler(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b""
    def data_received(self, data):
        self.data += data
        head, found, body = self.data.partition(b"\\r\\n\\r\\n")
        if not found:
            return
        length = head.lower().partition(b"content-length:")[2].split(b"\\r\\n", 1)[0]
        if len(body) < int(length or 0):
            return
        self.data, began = b"", time.perf_counter()
        seconds = float(body or 0)
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self.answer, began)
        else:
            self.answer(began)
    def answer(self, began):
        body = b"%.9f" % (time.perf_counter() - began)
        self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Handler, "127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"]), backlog=256)
    await server.serve_forever()
uvloop.run(main())
"""


@dataclass
class Load:
    """The answers to one load: overhead of each in seconds (sorted), the whole time, the emulator's CPU time."""

    overheads: list[float]
    seconds: float
    cpu_seconds: float

    def row(self, title: str) -> str:
        p50, p99 = (self.overheads[int(len(self.overheads) * part)] * 1e3 for part in (0.5, 0.99))
        count = len(self.overheads)
        cpu = f"{self.cpu_seconds / count * 1e6:8.0f}" if self.cpu_seconds else f"{'-':>8}"
        return f"{title:58} {count:7} {count / self.seconds:8.0f} {p50:8.2f} {p99:8.2f} {cpu}"


HEAD = f"{'overhead of an invocation':58} {'answers':>7} {'per s':>8} {'p50 ms':>8} {'p99 ms':>8} {'CPU us':>8}"


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


def load(port: int, path: str, requests: int, clients: int, handler_seconds: float, emulator: int = 0) -> Load:
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

    def cpu() -> float:
        times = psutil.Process(emulator).cpu_times() if emulator else None
        return times.user + times.system if times else 0.0

    used, began = cpu(), time.perf_counter()
    uvloop.run(run())
    seconds, used = time.perf_counter() - began, cpu() - used
    assert len(overheads) == requests // clients * clients
    return Load(sorted(overheads), seconds, used)


def deploy(cloud: dict[str, Any]) -> None:
    """An endpoint `overhead` whose handler works as long as the body says."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    s3 = boto3.client("s3", endpoint_url=cloud["localstack_url"], **keys)
    sagemaker = boto3.client("sagemaker", endpoint_url=cloud["sagemaker_url"], **keys)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        info = tarfile.TarInfo("code/serve.py")
        info.size = len(SERVER.encode())
        archive.addfile(info, io.BytesIO(SERVER.encode()))
    s3.create_bucket(Bucket="overhead")
    s3.put_object(Bucket="overhead", Key="model.tar.gz", Body=data.getvalue())
    container = {"Image": "x/vllm:1", "ModelDataUrl": "s3://overhead/model.tar.gz"}
    sagemaker.create_model(ModelName="overhead", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = {"VariantName": "AllTraffic", "ModelName": "overhead", "InstanceType": "ml.g5.xlarge"}
    sagemaker.create_endpoint_config(
        EndpointConfigName="overhead", ProductionVariants=[variant | {"InitialInstanceCount": 1}]
    )
    sagemaker.create_endpoint(EndpointName="overhead", EndpointConfigName="overhead")
    while (status := sagemaker.describe_endpoint(EndpointName="overhead")["EndpointStatus"]) == "Creating":
        time.sleep(0.1)
    assert status == "InService", status


def measure(cloud: dict[str, Any], home: Path, requests: int, clients: int, handler_ms: float) -> Iterator[str]:
    """The table, line by line."""
    deploy(cloud)
    emulator = json.loads((home / "local.json").read_text())["emulator"]["pid"]
    port, path = int(cloud["sagemaker_url"].rpartition(":")[2]), "/endpoints/overhead/invocations"
    journal = next((home / "endpoints" / "overhead").glob("*/*/journal.jsonl")).read_text().splitlines()
    direct = next(line["port"] for line in map(json.loads, reversed(journal)) if "port" in line)
    load(port, path, 50 * clients, clients, 0.0)  # connections are made, code is warm
    yield HEAD
    for handler in (handler_ms, 0.0):
        words = f"{clients} clients, handler of {handler:g} ms"
        yield load(port, path, requests, clients, handler / 1e3, emulator).row(f"InvokeEndpoint, {words}")
        yield load(direct, "/invocations", requests, clients, handler / 1e3).row(f"the container directly, {words}")
    yield load(port, path, requests // 10, 1, 0.0, emulator).row("InvokeEndpoint, 1 client, handler of 0 ms")


@contextmanager
def local_cloud() -> Iterator[tuple[dict[str, Any], Path]]:
    """A fresh local cloud; its addresses and home."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"LLMTUNER_HOME": folder, "LLMTUNER_LOCALSTACK_PORT": "0", "LLMTUNER_SAGEMAKER_PORT": "0"}
        command = [sys.executable, "-m", "llmtuner_local"]
        up = subprocess.run([*command, "up", "--json"], capture_output=True, text=True, check=True)
        try:
            yield json.loads(up.stdout.splitlines()[-1]), Path(folder)
        finally:
            subprocess.run([*command, "down"], capture_output=True, check=True)


def main() -> None:
    """Run everything once and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--handler-ms", type=float, default=20.0)
    options = parser.parse_args()
    with local_cloud() as (cloud, home):
        for line in measure(cloud, home, options.requests, options.clients, options.handler_ms):
            print(line, flush=True)


if __name__ == "__main__":
    main()
