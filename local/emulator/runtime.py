"""InvokeEndpoint and its streaming twin: a request goes to a replica, its answer comes back."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import datetime

from llmtuner_local.emulator import event_stream, refusals
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.operations import endpoints
from llmtuner_local.emulator.replica_client import Answer, AnswerTooLargeError, ReplicaClient, ReplicaGoneError
from llmtuner_local.emulator.routing import Place, Route, Router, choose

BODY_LIMIT = 6_291_456
SERVERLESS_BODY_LIMIT = 4 * 1024 * 1024
QUEUED_LIMIT = 1024**3
COMPONENT_KIND = endpoints.COMPONENT_KIND
PREFIX = "x-amzn-sagemaker-"
_PASSED = ("content-type", "accept", f"{PREFIX}custom-attributes", f"{PREFIX}target-model", f"{PREFIX}session-id")
_EXPIRES = re.compile(r";\s*Expires=([^;\s]+)", re.IGNORECASE)
_NO_ANSWER = (TimeoutError, AnswerTooLargeError, ReplicaGoneError)
_RETURNED = (f"{PREFIX}custom-attributes", f"{PREFIX}new-session-id", f"{PREFIX}closed-session-id")


@dataclass
class Target:
    """Where a request goes."""

    endpoint: str
    route: Route
    place: Place
    containers: list[str]  # one, or those of a serial pipeline
    group: str  # its log group
    headers: dict[str, str] = field(default_factory=dict)  # besides the client's
    shadows: list[Route] = field(default_factory=list)  # which get a copy
    label: str = ""  # how messages call the container, where it is not by its name


class Runtime:
    """The invocation door of one emulator."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.router = Router(context)
        self.client = ReplicaClient()
        self._sessions: dict[tuple[str, str], tuple[str, float]] = {}  # the replica, and when the session ends
        self._turns = itertools.count()
        self._shadowing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self._shadowing:
            task.cancel()
        self.client.close()

    def forget_gone(self) -> None:
        """Drop what is remembered of endpoints and replicas that are no more."""
        living = [{name for name, _ in self.context.store.items(kind)} for kind in (endpoints.KIND, COMPONENT_KIND)]
        self.router.drop(*living)
        self.client.forget(self.router.ports())
        now = self.context.now()
        self._sessions = {key: held for key, held in self._sessions.items() if key[0] in living[0] and held[1] > now}
        self.context.in_flight = +self.context.in_flight  # without those that have none

    def target(self, name: str, headers: dict[str, str], *, queued: bool = False) -> Target:
        """The replica for an invocation; raises RefusalError as AWS answers.

        Args:
            queued: the request comes from an asynchronous endpoint's queue, the only way to such an endpoint.
        """
        document = self.context.store.get(endpoints.KIND, name)
        if document and document["EndpointStatus"] == "Creating":
            document = endpoints.refresh(self.context, document)
        if document is None or document["EndpointStatus"] not in endpoints.SERVING:
            raise refusals.no_such_endpoint(self.context, name)
        if not queued and "AsyncInferenceConfig" in document["_settings"]:
            raise refusals.invalid(f"Endpoint {name} is asynchronous: it takes InvokeEndpointAsync only.")
        table = self.router.table(document)
        if table.for_components:
            return self._component_target(name, headers)
        if f"{PREFIX}inference-component" in headers:
            raise refusals.invalid(refusals.COMPONENT_SUPERFLUOUS, "INFERENCE_COMPONENT_NAME_NOT_ALLOWED")
        wanted = headers.get(f"{PREFIX}target-variant")
        if wanted and wanted not in {item["VariantName"] for item in document["_variants"]}:
            raise refusals.invalid(f"Variant {wanted} of endpoint {name} not found.")
        route = choose(table.routes, wanted)
        if route is None:
            endpoints.refresh(self.context, document)
            raise refusals.unavailable("The endpoint has no healthy instance at the moment.")
        place = self._place(name, route, headers)
        group = f"/aws/sagemaker/Endpoints/{name}"
        return Target(name, route, place, _containers(route, headers), group, shadows=table.shadows)

    def _component_target(self, name: str, headers: dict[str, str]) -> Target:
        """The copy of an inference component; of an adapter: a copy of its base that has loaded it."""
        wanted = headers.get(f"{PREFIX}inference-component")
        if not wanted:
            raise refusals.invalid(refusals.COMPONENT_MISSING, "INFERENCE_COMPONENT_NAME_MISSING")
        document = self.context.store.get(COMPONENT_KIND, wanted)
        if document is None or document["EndpointName"] != name:
            raise refusals.invalid(f"Inference Component {wanted} of endpoint {name} not found.")
        route, more = self.router.component(document), {}
        if "_base" in document:
            base = self.context.store.get(COMPONENT_KIND, document["_base"])
            places = self.router.component(base).places if base else []
            loaded = document["_loaded"]
            places = [item for item in places if loaded.get(item.replica) == next(iter(item.ports.values()))]
            route = Route(wanted, 1.0, places, self.context.metrics.component(wanted), document, turn=next(self._turns))
            more = {f"{PREFIX}adapter-identifier": wanted}
        if not route.places:
            route.meter.count("NoCapacityInvocationFailures")
            raise refusals.invalid(refusals.NO_CAPACITY)
        place = self._place(name, route, headers)
        group = f"/aws/sagemaker/InferenceComponents/{document.get('_base', wanted)}"
        return Target(name, route, place, list(place.ports), group, more, label=place.replica)

    def _place(self, name: str, route: Route, headers: dict[str, str]) -> Place:
        """The replica that has the request's session, or the next one."""
        session = headers.get(f"{PREFIX}session-id")
        holder, ends = self._sessions.get((name, session or ""), ("", 0.0))
        living = ends > self.context.now()
        held = next((item for item in route.places if living and item.replica == holder), None)
        return held or route.next_place(self.context.in_flight)

    async def invoke(self, name: str, headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
        """One invocation: (headers, body)."""
        begun = time.perf_counter()
        target = self.target(name, headers)
        self._check_serverless(target, body)
        if target.shadows:
            self._copy_to_shadows(target, headers, body)
        return await self._answered(target, headers, body, begun, self.context.limits.invocation_seconds, BODY_LIMIT)

    async def invoke_for_queue(
        self, name: str, headers: dict[str, str], body: bytes, seconds: float
    ) -> tuple[dict[str, str], bytes]:
        """One request of an asynchronous endpoint's queue: the same without a real-time endpoint's limits."""
        target = self.target(name, headers, queued=True)
        return await self._answered(target, headers, body, time.perf_counter(), seconds, QUEUED_LIMIT)

    async def _answered(
        self, target: Target, headers: dict[str, str], body: bytes, begun: float, seconds: float, limit: int
    ) -> tuple[dict[str, str], bytes]:
        status, received, content = await self._exchange(target, headers, body, begun, seconds, limit)
        if status >= 400:
            raise self._model_error(target, received["_container"], status, _text(content))
        return self._sent_back(target, received), content

    @staticmethod
    def _check_serverless(target: Target, body: bytes) -> None:
        """Refuse what a serverless variant does not take: large bodies, more requests at once than it may have."""
        serverless = target.route.document.get("_serverless")
        if serverless is None:
            return
        if len(body) > SERVERLESS_BODY_LIMIT:
            raise refusals.invalid(f"The request body is larger than {SERVERLESS_BODY_LIMIT} bytes.")
        if target.route.meter.in_flight >= serverless["MaxConcurrency"]:
            raise refusals.RefusalError("ThrottlingException", 429, "Rate exceeded")

    def _sent_back(self, target: Target, received: dict[str, str]) -> dict[str, str]:
        """The headers of the client's answer."""
        sent = {
            "content-type": received.get("content-type", "application/octet-stream"),
            "x-amzn-invoked-production-variant": target.route.document.get("VariantName", target.route.name),
        }
        sent |= {name: received[name] for name in _RETURNED if name in received}
        if created := received.get(f"{PREFIX}new-session-id"):
            self._sessions[target.endpoint, created.partition(";")[0]] = (target.place.replica, _end_of(created))
        if closed := received.get(f"{PREFIX}closed-session-id"):
            self._sessions.pop((target.endpoint, closed), None)
        return sent

    async def _exchange(
        self, target: Target, headers: dict[str, str], body: bytes, begun: float, seconds: float, limit: int
    ) -> tuple[int, dict[str, str], bytes]:
        """Body in, body out, through every container of the target; counted."""
        sent, content = passed_headers(headers) | target.headers, body
        meter, status, started = target.route.meter, 0, time.perf_counter()
        meter.enter()
        self.context.in_flight[target.place.replica] += 1
        container = target.containers[0]
        try:
            for container in target.containers:
                port = target.place.ports[container]
                status, received, content = await self.client.request(
                    port, "POST", "/invocations", sent, content, seconds, limit
                )
                received["_container"] = container
                if status >= 400:
                    break
                sent = sent | {"content-type": received.get("content-type", "application/octet-stream")}
            return status, received, content
        except _NO_ANSWER as error:
            status = 0
            raise self._without_answer(target, container, error) from None
        finally:
            self.context.in_flight[target.place.replica] -= 1
            ended = time.perf_counter()
            meter.leave(status, ended - started, started - begun)

    async def stream(
        self, name: str, headers: dict[str, str], body: bytes
    ) -> tuple[dict[str, str], AsyncGenerator[bytes, None]]:
        """A streaming invocation: headers, and the frames of the event stream."""
        target = self.target(name, headers)
        self._check_serverless(target, body)
        answer = await self._open(target, headers, body, "/invocations")
        sent = self._sent_back(target, answer.headers)
        sent |= {"content-type": "application/vnd.amazon.eventstream", f"{PREFIX}content-type": sent["content-type"]}
        return sent, self._frames(target, answer)

    async def chat(
        self, name: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], AsyncGenerator[bytes, None]]:
        """A chat completion: the container's own answer, status and bytes unchanged, streaming or not."""
        target = self.target(name, headers)
        answer = await self._open(target, headers, body, "/v1/chat/completions")
        kind = answer.headers.get("content-type", "application/json")
        return answer.status, {"content-type": kind}, self._parts(target, answer)

    async def _open(self, target: Target, headers: dict[str, str], body: bytes, path: str) -> Answer:
        """An answer whose body is still to come; an error of the container is read and raised."""
        sent, container = passed_headers(headers) | target.headers, target.containers[-1]
        target.route.meter.enter()
        self.context.in_flight[target.place.replica] += 1
        begun = time.perf_counter()
        try:
            seconds = self.context.limits.stream_seconds
            for container in target.containers[:-1]:  # the first ones of a pipeline answer whole
                port = target.place.ports[container]
                status, received, body = await self.client.request(
                    port, "POST", "/invocations", sent, body, seconds, BODY_LIMIT
                )
                if status >= 400:
                    raise self._model_error(target, container, status, _text(body))
                sent = sent | {"content-type": received.get("content-type", "application/octet-stream")}
            container = target.containers[-1]
            answer = await self.client.open(target.place.ports[container], "POST", path, sent, body, seconds)
            if answer.status >= 400:
                raise self._model_error(target, container, answer.status, _text(await answer.read()))
            return answer
        except refusals.RefusalError as error:
            self._leave(target, error.body["OriginalStatusCode"], begun)
            raise
        except _NO_ANSWER as error:
            self._leave(target, 0, begun)
            raise self._without_answer(target, container, error) from None

    def _leave(self, target: Target, status: int, begun: float) -> None:
        self.context.in_flight[target.place.replica] -= 1
        target.route.meter.leave(status, time.perf_counter() - begun, 0.0)

    async def _parts(self, target: Target, answer: Answer) -> AsyncGenerator[bytes, None]:
        """The body of an answer; whatever ends it (the client may hang up), the container is told and it is counted."""
        begun, status = time.perf_counter(), 0
        parts = answer.parts()
        try:
            async for part in parts:
                yield part
            status = answer.status
        finally:
            await parts.aclose()
            self._leave(target, status, begun)

    async def _frames(self, target: Target, answer: Answer) -> AsyncGenerator[bytes, None]:
        fault = self.context.faults.find("split-stream", target.endpoint)
        size = int(fault.number) if fault else 0
        parts = self._parts(target, answer)
        try:
            async for part in parts:
                for piece in event_stream.cut(part, size):
                    yield event_stream.part(piece)
        except TimeoutError:
            text = refusals.STREAM_TIMED_OUT.format(name=target.containers[-1])
            yield event_stream.failure(text, "ModelInvocationTimeExceeded")
        except ReplicaGoneError:
            yield event_stream.failure("The model's response stream broke off.", "StreamBroken")
        finally:
            await parts.aclose()

    def _model_error(self, target: Target, container: str, status: int, text: str | None) -> refusals.RefusalError:
        return refusals.model_error(self.context, target.group, target.label or container, status, text)

    def _copy_to_shadows(self, target: Target, headers: dict[str, str], body: bytes) -> None:
        """Send shadow variants their part of the requests; what they answer is counted and dropped.

        A variant whose containers work together in another way than those of the real one gets no copy.
        """
        for shadow in target.shadows:
            try:
                containers = _containers(shadow, headers)
            except refusals.RefusalError:
                continue
            shadow.lead += min(1.0, shadow.document["DesiredWeight"] / (target.route.document["DesiredWeight"] or 1.0))
            if shadow.lead < 1.0:
                continue
            shadow.lead -= 1.0
            copy = Target(
                target.endpoint,
                shadow,
                shadow.next_place(self.context.in_flight),
                containers,
                target.group,
            )
            task = asyncio.create_task(self._shadow(copy, headers, body))
            self._shadowing.add(task)
            task.add_done_callback(self._shadowing.discard)

    async def _shadow(self, target: Target, headers: dict[str, str], body: bytes) -> None:
        try:
            await self._exchange(
                target, headers, body, time.perf_counter(), self.context.limits.invocation_seconds, BODY_LIMIT
            )
        except refusals.RefusalError:
            return  # counted already; the client never learns of it

    def _without_answer(self, target: Target, container: str, error: Exception) -> refusals.RefusalError:
        """The refusal when a container's answer has not come, or not whole."""
        if isinstance(error, TimeoutError):
            return self._model_error(target, container, 0, refusals.TIMED_OUT.format(name=container))
        if isinstance(error, AnswerTooLargeError):
            return self._model_error(target, container, 500, None)
        if document := self.context.store.get(endpoints.KIND, target.endpoint):
            endpoints.refresh(self.context, document)  # which instances still answer
        return refusals.unavailable("The instance that had the request is gone; try again.")


def passed_headers(headers: dict[str, str]) -> dict[str, str]:
    """What a container gets of a client's headers."""
    sent = {key: headers[key] for key in _PASSED if key in headers}
    if accept := headers.get(f"{PREFIX}accept"):
        sent["accept"] = accept
    return sent


def _end_of(session: str) -> float:
    """When a new session ends: `ID; Expires=2026-01-31T12:00:00Z`; one without a time never does."""
    found = _EXPIRES.search(session)
    try:
        return datetime.fromisoformat(found[1]).timestamp() if found else math.inf
    except ValueError:
        return math.inf


def _containers(route: Route, headers: dict[str, str]) -> list[str]:
    """The containers a request passes through: all in turn, or the one that a Direct endpoint's client names."""
    names = list(route.places[0].ports)
    wanted = headers.get(f"{PREFIX}target-container-hostname")
    if route.document.get("_execution") != "Direct":
        if wanted:
            raise refusals.invalid(
                "TargetContainerHostname is not allowed: the endpoint's model does not run its containers in Direct mode."
            )
        return names
    if not wanted or wanted not in names:
        raise refusals.invalid(
            f"TargetContainerHostname {wanted or ''} is not one of the containers of this endpoint: {', '.join(names)}."
        )
    return [wanted]


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")
