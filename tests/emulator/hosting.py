"""A tiny container, and short ways to endpoints that run it."""

from __future__ import annotations

import json
from typing import Any

from emulator.conftest import ROLE, Cloud
from packed import tar

# A server that does what the body says: fail, die, mute (leave pings unanswered), or {"sleep"|"stream"|"big": n}; it
# answers anything else with what it got. The image's name says that the archive brings it.
SERVER = """
import asyncio, json, os, sys
print("server starts", flush=True)
mute, adapters, who = False, {}, os.urandom(6).hex()

def whole(status, body, kind="application/json"):
    head = f"HTTP/1.1 {status} X\\r\\nContent-Type: {kind}\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
    return head.encode() + body

async def stream(writer, order):
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
    for n in range(order["stream"]):
        part = f"data: {n}\\n\\n".encode()
        writer.write(f"{len(part):x}\\r\\n".encode() + part + b"\\r\\n")
        await writer.drain()
        await asyncio.sleep(order.get("pause", 0))
    if order.get("break"):
        return writer.transport.abort()
    writer.write(b"0\\r\\n\\r\\n")

async def answer(method, path, headers, body, writer):
    global mute
    if path == "/ping":
        if mute:
            await asyncio.sleep(3600)
        return writer.write(whole(200, b""))
    if path.startswith("/adapters"):
        if method == "DELETE":
            adapters.pop(path.rpartition("/")[2])
            return writer.write(whole(200, b"{}"))
        order = json.loads(body)
        adapters[order["name"]] = open(order["src"] + "/adapter.txt").read()
        return writer.write(whole(200, b"{}"))
    if body == b"fail":
        return writer.write(whole(400, b'{"error": "no such thing"}'))
    if body == b"die":
        os._exit(1)
    if body == b"mute":
        mute = True
    try:
        order = json.loads(body)
    except ValueError:
        order = {}
    if not isinstance(order, dict):
        order = {}
    if "stream" in order:
        return await stream(writer, order)
    if "big" in order:
        return writer.write(whole(200, b"x" * order["big"]))
    await asyncio.sleep(order.get("sleep", 0))
    adapter = headers.get("x-amzn-sagemaker-adapter-identifier")
    seen = {"body": body.decode(), "type": headers.get("content-type"), "who": who, "path": path,
            "custom": headers.get("x-amzn-sagemaker-custom-attributes"), "env": os.environ.get("MINE"),
            "model": headers.get("x-amzn-sagemaker-target-model"), "adapter": adapters.get(adapter),
            "files": sorted(os.listdir(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml") + "/model"))}
    writer.write(whole(200, json.dumps(seen).encode()))

async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\\r\\n\\r\\n")).decode().split("\\r\\n")
            method, path, _ = head[0].split()
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            await answer(method, path, headers, body, writer)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"]))
    await server.serve_forever()

asyncio.run(main())
"""
IMAGE = "example/vllm:1"


def archive(text: str, name: str = "code/serve.py") -> bytes:
    """A tar.gz with one file."""
    return tar({name: text.encode()}, "w:gz")


def model(emulator: Cloud, value: str = "yes", server: str = SERVER, **more: Any) -> str:
    """A model whose server tells a value; `more` goes into its container."""
    name = emulator.name("model")
    uri = emulator.put(f"models/{name}.tar.gz", archive(server))
    container = {"Image": IMAGE, "ModelDataUrl": uri, "Environment": {"MINE": value}} | more
    emulator.sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    return name


def variant(model_name: str | None, name: str = "AllTraffic", *, instances: int = 1, **more: Any) -> dict[str, Any]:
    """One production variant; without a model it is for inference components."""
    made: dict[str, Any] = {"VariantName": name, "InstanceType": "ml.g5.xlarge", "InitialInstanceCount": instances}
    if model_name:
        made |= {"ModelName": model_name, "ContainerStartupHealthCheckTimeoutInSeconds": 60}
    return made | more


def config(emulator: Cloud, *variants: dict[str, Any], **more: Any) -> str:
    name = emulator.name("cfg")
    emulator.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=list(variants), **more)
    return name


def deploy(emulator: Cloud, *variants: dict[str, Any], **more: Any) -> str:
    """An endpoint in service."""
    name = emulator.name("ep")
    emulator.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config(emulator, *variants, **more))
    found = settled(emulator, name)
    assert found["EndpointStatus"] == "InService", found
    return name


def create(emulator: Cloud, server: str = SERVER, *, instances: int = 1, startup: int = 60) -> str:
    """Model, configuration and endpoint of one name; the endpoint is only being created."""
    name = emulator.name("ep")
    uri = emulator.put(f"models/{name}.tar.gz", archive(server))
    container = {"Image": IMAGE, "ModelDataUrl": uri, "Environment": {"MINE": "yes"}}
    emulator.sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    made = variant(name, instances=instances, ContainerStartupHealthCheckTimeoutInSeconds=startup)
    emulator.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[made])
    emulator.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    return name


def describe(emulator: Cloud, name: str) -> dict[str, Any]:
    found: dict[str, Any] = emulator.sagemaker.describe_endpoint(EndpointName=name)
    return found


def settled(emulator: Cloud, name: str) -> dict[str, Any]:
    found: dict[str, Any] = emulator.until(
        lambda: describe(emulator, name),
        lambda item: item["EndpointStatus"] not in ("Creating", "Updating", "RollingBack", "Deleting"),
    )
    return found


def ask(emulator: Cloud, name: str, body: bytes = b"{}", **more: Any) -> dict[str, Any]:
    """What the server tells about one request."""
    answer = emulator.runtime.invoke_endpoint(EndpointName=name, Body=body, ContentType="application/json", **more)
    found: dict[str, Any] = json.loads(answer["Body"].read())
    return found | {"_variant": answer["InvokedProductionVariant"]}


def remove(emulator: Cloud, name: str) -> None:
    """Delete an endpoint, and wait until it is gone."""
    emulator.sagemaker.delete_endpoint(EndpointName=name)
    emulator.until(lambda: emulator.sagemaker.list_endpoints(NameContains=name)["Endpoints"], lambda found: not found)


def starts(emulator: Cloud, name: str) -> int:
    """How often a server of the endpoint has started, by its log."""
    group = f"/aws/sagemaker/Endpoints/{name}"
    streams = emulator.logs.describe_log_streams(logGroupName=group)["logStreams"]
    events = [
        event
        for stream in streams
        for event in emulator.logs.get_log_events(
            logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True
        )["events"]
    ]
    return sum(event["message"] == "server starts" for event in events)
