"""What the runtime remembers of its requests: nothing, once they are over."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
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
            assert set(runtime._sessions) == {("ep", "mine")}
            inside.store.delete(endpoints.KIND, "ep")
            runtime.forget_gone()
            assert not runtime._sessions

    asyncio.run(scenario())


def test_a_session_holds_its_instance_until_it_ends_and_is_forgotten_then(
    inside: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    monkeypatch.setattr(Context, "now", lambda _: now.timestamp())

    async def scenario() -> None:
        nonlocal now
        created = answering(
            b"{}", f"{PREFIX}new-session-id: mine; Expires={now + timedelta(minutes=5):%Y-%m-%dT%H:%M:%SZ}"
        )
        async with runtime_of(inside, created) as runtime:
            held = runtime.target("ep", {}).place.replica
            await runtime.invoke("ep", {}, b"{}")
            document = inside.store.get(endpoints.KIND, "ep") or {}
            (first,) = document["_replicas"]
            inside.store.put(endpoints.KIND, "ep", document | {"_replicas": [first, first | {"id": "i-2"}]})
            session = {f"{PREFIX}session-id": "mine"}
            assert {runtime.target("ep", session).place.replica for _ in range(4)} == {held}
            now += timedelta(minutes=6)
            assert {runtime.target("ep", session).place.replica for _ in range(4)} == {held, "i-2"}
            runtime.forget_gone()
            assert not runtime._sessions

    asyncio.run(scenario())


@pytest.mark.parametrize(("execution", "copies"), [("Direct", 1), ("Serial", 0)])
def test_a_shadow_of_containers_called_by_name_gets_what_it_can_take_and_refuses_nobody(
    inside: Context, execution: str, copies: int
) -> None:
    asked = asyncio.Queue[None]()

    async def shadow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked.put(None)
        await answering(b"dropped")(reader, writer)

    async def scenario() -> None:
        async with runtime_of(inside, answering(b"real"), shadow) as runtime:
            document = inside.store.get(endpoints.KIND, "ep") or {}
            ports = document["_replicas"][0]["ports"]
            real, copy = (
                {"VariantName": name, "DesiredWeight": 1.0, "_execution": "Direct", "_containers": ["c"]}
                for name in ("v", "s")
            )
            inside.store.put(endpoints.KIND, "ep", document | {
                "_variants": [real], "_shadows": [copy | {"_execution": execution}],
                "_replicas": [
                    {"variant": name, "id": name, "state": "InService", "ports": {"c": port}}
                    for name, port in (("v", ports["c0"]), ("s", ports["c1"]))
                ],
            })  # fmt: skip
            _, body = await runtime.invoke("ep", {f"{PREFIX}target-container-hostname": "c"}, b"{}")
            assert body == b"real"
            assert len(runtime._shadowing) == copies
            for _ in range(copies):
                await asyncio.wait_for(asked.get(), 10)

    asyncio.run(scenario())
