"""InvokeEndpointAsync: accepted requests wait in a queue that survives the emulator; answers go to S3."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
import uuid
from collections import deque
from typing import Any

from llmtuner_local.emulator import refusals
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.operations import endpoints, fleets
from llmtuner_local.emulator.runtime import PREFIX, Runtime, passed_headers
from llmtuner_local.emulator.shim import cloud

log = logging.getLogger("llmtuner_local.emulator")
KIND = "async-invocation"
INLINE_LIMIT = 128_000
OBJECT_LIMIT = 1024**3
_TTL_SECONDS, _TIMEOUT_SECONDS = 21_600, 900
_PER_INSTANCE = 4  # requests at once where ClientConfig does not say
_QUIET_REPORT_SECONDS = 60.0
_ATTEMPTS = 3  # when an instance goes while it has the request


class AsyncInvocations:
    """The queues of all asynchronous endpoints."""

    def __init__(self, context: Context, runtime: Runtime) -> None:
        self.context, self.runtime = context, runtime
        self._queues: dict[str, deque[str]] = {}
        self._running: dict[str, set[asyncio.Task[None]]] = {}
        self._reported: dict[str, tuple[float, int]] = {}
        self._wake = asyncio.Event()
        for request_id, document in context.store.items(KIND):
            self._queues.setdefault(document["endpoint"], deque()).append(request_id)

    def accept(self, name: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
        """Queue a request; returns `id`, `output` and perhaps `failure` (S3 URIs)."""
        endpoint = self.context.store.get(endpoints.KIND, name)
        if endpoint is None or endpoint["EndpointStatus"] not in endpoints.SERVING:
            raise refusals.no_such_endpoint(self.context, name)
        config = endpoint["_settings"].get("AsyncInferenceConfig")
        if config is None:
            raise refusals.invalid(f"Endpoint {name} is not asynchronous: it has no AsyncInferenceConfig.")
        location = headers.get(f"{PREFIX}inputlocation", "")
        if bool(location) == bool(body):
            raise refusals.invalid("Exactly one of Body and InputLocation is required.")
        if len(body) > INLINE_LIMIT:
            raise refusals.invalid(f"Body has {len(body)} bytes; at most {INLINE_LIMIT}. Use InputLocation for more.")
        request_id, now = str(uuid.uuid4()), self.context.now()
        kept = passed_headers(headers)
        kept |= {"content-type": headers[f"{PREFIX}content-type"]} if f"{PREFIX}content-type" in headers else {}
        document: dict[str, Any] = {
            "endpoint": name,
            "inference_id": headers.get(f"{PREFIX}inference-id", request_id),
            "location": location,
            "body": base64.b64encode(body).decode(),
            "headers": kept,
            "received": now,
            "expires": now + _number(headers, "requestttlseconds", 60, _TTL_SECONDS, _TTL_SECONDS),
            "timeout": _number(headers, "invocationtimeoutseconds", 1, 3600, _TIMEOUT_SECONDS),
            "attempts": 0,
            **_places(config["OutputConfig"], request_id, headers),
        }
        self.context.store.put(KIND, request_id, document)
        self._queues.setdefault(name, deque()).append(request_id)
        self._wake.set()
        return {"id": document["inference_id"], "output": document["output"], "failure": document["failure"]}

    async def run(self) -> None:
        """Hand out queued requests as instances have room for them, until cancelled."""
        while True:
            for name in list(self._queues):
                try:
                    self._hand_out(name)
                except Exception:
                    log.exception("the queue of endpoint %s failed", name)
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), 0.5)
            except TimeoutError:
                continue

    def _hand_out(self, name: str) -> None:
        queue, running = self._queues[name], self._running.setdefault(name, set())
        endpoint = self.context.store.get(endpoints.KIND, name)
        if endpoint is None:
            for request_id in queue:
                self.context.store.delete(KIND, request_id)
            del self._queues[name]
            return
        self._expire(name, queue)
        room = self._room(endpoint) - len(running)
        while queue and room > 0:
            task = asyncio.create_task(self._process(name, queue.popleft()))
            running.add(task)
            task.add_done_callback(running.discard)
            task.add_done_callback(lambda _: self._wake.set())
            room -= 1

    @staticmethod
    def _room(endpoint: dict[str, Any]) -> int:
        """How many requests the endpoint takes at once."""
        client = endpoint["_settings"].get("AsyncInferenceConfig", {}).get("ClientConfig", {})
        return serving(endpoint) * int(client.get("MaxConcurrentInvocationsPerInstance", _PER_INSTANCE))

    def _expire(self, name: str, queue: deque[str]) -> None:
        now = self.context.now()
        for request_id in [
            item for item in queue if (self.context.store.get(KIND, item) or {}).get("expires", 0) < now
        ]:
            queue.remove(request_id)
            self._count(name, "ExpiredRequests")
            task = asyncio.create_task(
                self._fail(name, request_id, "The request was in the queue for longer than RequestTTLSeconds.")
            )
            self._running[name].add(task)
            task.add_done_callback(self._running[name].discard)

    async def _process(self, name: str, request_id: str) -> None:
        """One request from the queue to its place in S3."""
        document = self.context.store.get(KIND, request_id)
        if document is None:
            return
        started = self.context.now()
        try:
            body = await asyncio.to_thread(self._input, document)
        except Exception as error:
            # S3's own words: whatever they are, they are the reason of the failure.
            self._count(name, "RequestDownloadFailures")
            await self._fail(name, request_id, f"The input at {document['location']} could not be read: {error}")
            return
        try:
            sent, content = await self.runtime.invoke_for_queue(name, document["headers"], body, document["timeout"])
        except refusals.RefusalError as error:
            if error.code == "ServiceUnavailable" and document["attempts"] + 1 < _ATTEMPTS:
                self.context.store.put(KIND, request_id, dict(document, attempts=document["attempts"] + 1))
                self._queues.setdefault(name, deque()).appendleft(request_id)
                return
            self._count(name, "InvocationFailures")
            await self._fail(name, request_id, error.body.get("OriginalMessage") or str(error))
            return
        await self._end(name, request_id, "output", content, sent["content-type"])
        meter = self._meter(name)
        meter.count("InvocationsProcesssed")  # AWS's spelling
        meter.observe("TimeInBacklog", (started - document["received"]) * 1000)
        meter.observe("TotalProcessingTime", (self.context.now() - document["received"]) * 1000)

    def _input(self, document: dict[str, Any]) -> bytes:
        if not document["location"]:
            return base64.b64decode(document["body"])
        bucket, key = cloud.split_uri(document["location"])
        found = self.context.s3.get_object(Bucket=bucket, Key=key)
        if found["ContentLength"] > OBJECT_LIMIT:
            raise ValueError(f"it has {found['ContentLength']} bytes; at most {OBJECT_LIMIT} are taken")
        content: bytes = found["Body"].read()
        return content

    async def _fail(self, name: str, request_id: str, reason: str) -> None:
        log.warning("asynchronous request %s failed: %s", request_id, reason)
        await self._end(name, request_id, "failure", reason.encode(), "text/plain")

    async def _end(self, name: str, request_id: str, place: str, content: bytes, kind: str) -> None:
        """Store what came of a request where it asked for that, and forget the request whatever S3 says."""
        document = self.context.store.get(KIND, request_id)
        if document is None:
            return
        if document[place]:
            try:
                await asyncio.to_thread(self._put, document[place], content, kind)
            except Exception:
                log.exception("what came of %s could not be stored at %s", request_id, document[place])
                self._count(name, "ResponseUploadFailures")
        self.context.store.delete(KIND, request_id)

    def _put(self, uri: str, content: bytes, kind: str) -> None:
        bucket, key = cloud.split_uri(uri)
        self.context.s3.put_object(Bucket=bucket, Key=key, Body=content, ContentType=kind)

    def _meter(self, name: str) -> Any:
        endpoint = self.context.store.get(endpoints.KIND, name)
        variant = endpoint["_variants"][0]["VariantName"] if endpoint else "AllTraffic"
        return self.context.metrics.variant(name, variant)

    def _count(self, name: str, metric: str) -> None:
        self._meter(name).count(metric)

    def backlog(self, name: str) -> int:
        """Requests that wait or are under way."""
        return len(self._queues.get(name, ())) + len(self._running.get(name, ()))

    def report(self) -> None:
        """Queue the metrics of every asynchronous endpoint for delivery; of a quiet one only now and then."""
        for endpoint in self.context.store.all(endpoints.KIND):
            if "AsyncInferenceConfig" not in endpoint["_settings"]:
                continue
            name, now = endpoint["EndpointName"], time.monotonic()
            size, instances = self.backlog(name), serving(endpoint)
            before, last = self._reported.get(name, (0.0, -1))
            if size == last == 0 and now - before < _QUIET_REPORT_SECONDS:
                continue
            self._reported[name] = (now, size)
            oldest = next((self.context.store.get(KIND, item) for item in self._queues.get(name, ())), None)
            age = self.context.now() - oldest["received"] if oldest else 0.0
            for metric, value in (
                ("ApproximateBacklogSize", size),
                ("ApproximateBacklogSizePerInstance", size / instances if instances else size),
                ("ApproximateAgeOfOldestRequest", age),
                ("HasBacklogWithoutCapacity", float(size > 0 and not instances)),
            ):
                self.context.metrics.point(metric, value, EndpointName=name)


def serving(endpoint: dict[str, Any]) -> int:
    """How many healthy instances of production variants an endpoint has."""
    found = [fleets.of_variant(endpoint["_replicas"], item["VariantName"]) for item in endpoint["_variants"]]
    return sum(replica["state"] == "InService" for group in found for replica in group)


def _places(output: dict[str, Any], request_id: str, headers: dict[str, str]) -> dict[str, str]:
    """Where the answer, or the reason of a failure, goes."""
    extension, file = headers.get(f"{PREFIX}s3outputpathextension"), headers.get(f"{PREFIX}filename")
    parts = [part.strip("/") for part in (extension,) if part]
    path = "/".join([output["S3OutputPath"].rstrip("/"), *parts, file or f"{request_id}.out"])
    failure = output.get("S3FailurePath")
    return {"output": path, "failure": f"{failure.rstrip('/')}/{request_id}-error.out" if failure else ""}


def _number(headers: dict[str, str], name: str, low: int, high: int, default: int) -> int:
    text = headers.get(PREFIX + name)
    if text is None:
        return default
    if not text.isdecimal() or not low <= int(text) <= high:
        raise refusals.invalid(f"{name} must be between {low} and {high}; it is {text}.")
    return int(text)
