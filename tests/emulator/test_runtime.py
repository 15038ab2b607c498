"""What the runtime remembers of its requests: nothing, once they are over."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from emulator.inside import context
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.endpoint_metrics import Meter
from llmtuner_local.emulator.operations import endpoints
from llmtuner_local.emulator.refusals import RefusalError
from llmtuner_local.emulator.routing import Place, Route
from llmtuner_local.emulator.runtime import BODY_LIMIT, PREFIX, Runtime

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Context]:
    made = context(tmp_path)
    yield made
    made.store.close()


def answering(body: bytes, *headers: str) -> Handler:
    """A container that gives every request one answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = "\r\n".join(["HTTP/1.1 200 OK", f"content-length: {len(body)}", "connection: close", *headers])
        writer.write(head.encode() + b"\r\n\r\n" + body)
        writer.close()

    return handle


@asynccontextmanager
async def runtime_of(inside: Context, *handlers: Handler) -> AsyncIterator[Runtime]:
    """A runtime with the endpoint `ep`: one instance that passes requests through these containers."""
    servers = [await asyncio.start_server(handler, "127.0.0.1", 0) for handler in handlers]
    ports = {f"c{number}": server.sockets[0].getsockname()[1] for number, server in enumerate(servers)}
    inside.store.put(endpoints.KIND, "ep", {
        "EndpointName": "ep", "EndpointStatus": "InService", "_settings": {}, "_shadows": [],
        "_variants": [{"VariantName": "v", "DesiredWeight": 1.0, "_containers": list(ports)}],
        "_replicas": [{"variant": "v", "id": "i-1", "state": "InService", "ports": ports}],
    })  # fmt: skip
    runtime = Runtime(inside)
    yield runtime
    await runtime.close()
    for server in servers:
        server.close()
        await server.wait_closed()


def test_an_answer_too_large_for_the_next_container_is_a_model_error_and_frees_its_place(inside: Context) -> None:
    async def scenario() -> None:
        async with runtime_of(inside, answering(b"x" * (BODY_LIMIT + 1)), answering(b"never asked")) as runtime:
            for call in (runtime.invoke, runtime.stream, runtime.chat):
                with pytest.raises(RefusalError, match=r"error \(500\) from c0 and could not load the entire response"):
                    await call("ep", {}, b"{}")

    asyncio.run(scenario())
    assert not +inside.in_flight
    assert inside.metrics.variant("ep", "v").in_flight == 0
    counts = {item["MetricName"]: item.get("Value") for item in inside.metrics.take()}
    assert (counts["Invocations"], counts["Invocation5XXErrors"]) == (3, 3)


def test_least_outstanding_requests_go_to_the_idlest_and_others_in_turn() -> None:
    places = [Place(name, {}) for name in "abc"]
    least = {"RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"}}
    idlest, in_turn = (Route("v", 1.0, places, Meter({}), document) for document in (least, {}))
    busy = Counter(a=2, b=3, c=1)
    assert [idlest.next_place(busy).replica for _ in range(3)] == ["c", "c", "c"]
    assert [in_turn.next_place(busy).replica for _ in range(4)] == ["b", "c", "a", "b"]
    assert {idlest.next_place(Counter()).replica for _ in range(3)} == {"a", "b", "c"}


def test_sessions_of_an_endpoint_that_is_gone_are_forgotten(inside: Context) -> None:
    async def scenario() -> None:
        async with runtime_of(inside, answering(b"{}", f"{PREFIX}new-session-id: mine; Expires=soon")) as runtime:
            await runtime.invoke("ep", {}, b"{}")
            runtime.forget_gone()
            assert runtime._sessions == {("ep", "mine"): "i-1"}
            inside.store.delete(endpoints.KIND, "ep")
            runtime.forget_gone()
            assert not runtime._sessions

    asyncio.run(scenario())
