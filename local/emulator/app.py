"""The doors: JSON 1.1 at `/`, invocations at `/endpoints/...`, health at `/_health`. Plain ASGI, one process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging

from llmtuner_local.emulator import gate, supervisors, wire
from llmtuner_local.emulator.asgi import Receive, Scope, Send, answer, read_body
from llmtuner_local.emulator.async_inference import AsyncInvocations
from llmtuner_local.emulator.context import Context, engine
from llmtuner_local.emulator.errors import ServiceError, not_emulated, unknown_operation
from llmtuner_local.emulator.keeper import Keeper
from llmtuner_local.emulator.operations import AUTOSCALING, SAGEMAKER, tags
from llmtuner_local.emulator.runtime import Runtime
from llmtuner_local.emulator.runtime_doors import RuntimeDoors
from llmtuner_local.emulator.shim.cloud import is_unreachable
from llmtuner_local.emulator.store import StoreError

log = logging.getLogger("llmtuner_local.emulator")

_SERVICES = {
    "SageMaker": ("sagemaker", SAGEMAKER),
    "AnyScaleFrontendService": ("application-autoscaling", AUTOSCALING),
}
_JSON = "application/x-amz-json-1.1"


class App:
    """One emulator as an ASGI application."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.runtime = Runtime(context)
        self.queues = AsyncInvocations(context, self.runtime)
        self.doors = RuntimeDoors(self.runtime, self.queues)
        self._keeper: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        query = scope["query_string"].decode("latin-1")
        path = scope["path"].removeprefix("/docker") or "/"
        if refusal := gate.oversized(scope["headers"], query) or gate.foreign(headers):
            await _refuse(send, refusal)
        elif path == "/_health":
            await answer(send, 200, {"content-type": "application/json"}, b'{"status":"ok"}')
        elif refusal := self._unsigned(path, headers, query):
            await _refuse(send, refusal)
        elif path.startswith("/endpoints/") and await self.doors.answer(path, headers, receive, send):
            return
        elif path == "/" and "x-amz-target" in headers:
            engine.set("docker" if scope["path"].startswith("/docker") else "")  # for this request's task only
            await self._operation(headers["x-amz-target"], receive, send)
        else:
            await _refuse(send, gate.Refusal(404, "No such address in the local SageMaker.\n"))

    @staticmethod
    def _unsigned(path: str, headers: dict[str, str], query: str) -> gate.Refusal | None:
        if "/openai/" in path:  # the doors with bearer tokens
            return None
        prefix = headers.get("x-amz-target", "").partition(".")[0]
        return gate.unsigned(headers, query, _SERVICES[prefix][0] if prefix in _SERVICES else "sagemaker")

    async def _operation(self, target: str, receive: Receive, send: Send) -> None:
        prefix, _, name = target.partition(".")
        headers = {"content-type": _JSON}
        try:
            body = await read_body(receive, gate.OPERATION_LIMIT)
            if prefix not in _SERVICES:
                raise unknown_operation(target)
            self.context.faults.check_rate(name)
            service, table = _SERVICES[prefix]
            params = wire.parse(service, name, body)
            if name not in table:
                raise not_emulated(name)
            if service == "sagemaker":
                tags.check(params.get("Tags", []))
            with self.context.store.batch():
                found = table[name](self.context, params)
            content = wire.serialise(service, name, found)
            await answer(send, 200, headers, content)
        except ServiceError as error:
            text = {"__type": error.code, "message": error.message, "Message": error.message}
            await answer(send, error.status, headers | {"x-amzn-errortype": error.code}, json.dumps(text).encode())
        except Exception as error:
            log.exception("%s failed", target)
            told = f"{target} failed inside the emulator; see its log."
            if isinstance(error, StoreError):
                told = str(error)
            elif is_unreachable(error):
                told = "LocalStack, which keeps S3 and IAM, does not answer. Start it: llmtuner local up."
            text = {"__type": "InternalFailure", "message": told}
            await answer(send, 500, headers, json.dumps(text).encode())

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                supervisors.sweep(self.context)
                self._keeper = asyncio.create_task(Keeper(self.context, self.runtime, self.queues).run())
                await send({"type": "lifespan.startup.complete"})
            else:
                if self._keeper:
                    self._keeper.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await self._keeper
                await self.runtime.close()
                self.context.store.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


async def _refuse(send: Send, refusal: gate.Refusal) -> None:
    if not refusal.code:
        await answer(send, refusal.status, {"content-type": "text/plain"}, refusal.message.encode())
        return
    text = {"__type": refusal.code, "message": refusal.message}
    headers = {"content-type": _JSON, "x-amzn-errortype": refusal.code}
    await answer(send, refusal.status, headers, json.dumps(text).encode())
