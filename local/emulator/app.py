"""The doors: JSON 1.1 at `/`, invocations at `/endpoints/...`, health at `/_health`. Plain ASGI, one process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from llmtuner_local.emulator import openai_door, wire
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import ServiceError, not_emulated, unknown_operation, validation
from llmtuner_local.emulator.keeper import Keeper
from llmtuner_local.emulator.operations import AUTOSCALING, SAGEMAKER
from llmtuner_local.emulator.refusals import RefusalError
from llmtuner_local.emulator.runtime import BODY_LIMIT, Runtime

log = logging.getLogger("llmtuner_local.emulator")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_SERVICES = {
    "SageMaker": ("sagemaker", SAGEMAKER),
    "AnyScaleFrontendService": ("application-autoscaling", AUTOSCALING),
}
_CHAT = re.compile(r"/endpoints/([^/]+)/openai/v1/chat/completions")
_INVOCATION = re.compile(r"/endpoints/([^/]+)/(invocations|invocations-response-stream)")
_LOCAL_HOSTS = {"127.0.0.1", "localhost", "[::1]"}
_RUNS_CONTAINERS = {"CreateTrainingJob", "CreateProcessingJob", "CreateEndpoint"}


class App:
    """One emulator as an ASGI application."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.runtime = Runtime(context)
        self._keeper: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        path = scope["path"].removeprefix("/docker") or "/"
        if headers.get("host", "").rsplit(":", 1)[0] not in _LOCAL_HOSTS:
            # A page in a browser may reach this port under a name of its own (DNS rebinding).
            await _answer(send, 403, {"content-type": "text/plain"}, b"Only local host names are answered.\n")
        elif path == "/_health":
            await _answer(send, 200, {"content-type": "application/json"}, b'{"status":"ok"}')
        elif found := _INVOCATION.fullmatch(path):
            await self._invocation(found.group(1), found.group(2), headers, receive, send)
        elif found := _CHAT.fullmatch(path):
            await self._chat(found.group(1), headers, receive, send)
        elif path == "/" and "x-amz-target" in headers:
            await self._operation(
                headers["x-amz-target"], receive, send, containers=scope["path"].startswith("/docker")
            )
        else:
            await _answer(send, 404, {"content-type": "text/plain"}, b"No such address in the local SageMaker.\n")

    async def _operation(self, target: str, receive: Receive, send: Send, *, containers: bool) -> None:
        prefix, _, name = target.partition(".")
        headers = {"content-type": "application/x-amz-json-1.1"}
        try:
            body = await _body(receive)
            if prefix not in _SERVICES:
                raise unknown_operation(target)
            self.context.faults.check_rate(name)
            service, table = _SERVICES[prefix]
            params = wire.parse(service, name, body)
            if name not in table:
                raise not_emulated(name)
            if containers and name in _RUNS_CONTAINERS:
                # Running it as a process would be a lie to somebody who asked for containers.
                raise validation(
                    "Jobs and endpoints in containers are not available in this version; use target local."
                )
            answer = wire.serialise(service, name, table[name](self.context, params))
            await _answer(send, 200, headers, answer)
        except ServiceError as error:
            text = {"__type": error.code, "message": error.message, "Message": error.message}
            await _answer(send, error.status, headers | {"x-amzn-errortype": error.code}, json.dumps(text).encode())
        except Exception:
            log.exception("%s failed", target)
            text = {"__type": "InternalFailure", "message": f"{target} failed inside the emulator; see its log."}
            await _answer(send, 500, headers, json.dumps(text).encode())

    async def _invocation(self, name: str, kind: str, headers: dict[str, str], receive: Receive, send: Send) -> None:
        try:
            body = await _body(receive, BODY_LIMIT)
            if kind == "invocations":
                sent, content = await self.runtime.invoke(name, headers, body)
                await _answer(send, 200, sent, content)
                return
            sent, frames = await self.runtime.stream(name, headers, body)
            await send({"type": "http.response.start", "status": 200, "headers": _pairs(sent)})
            async for part in frames:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except RefusalError as error:
            sent = {"content-type": "application/json", "x-amzn-errortype": error.code}
            await _answer(send, error.status, sent, json.dumps(error.body).encode())
        except ServiceError as error:
            sent = {"content-type": "application/json", "x-amzn-errortype": error.code}
            await _answer(send, error.status, sent, json.dumps({"Message": error.message}).encode())

    async def _chat(self, name: str, headers: dict[str, str], receive: Receive, send: Send) -> None:
        kind = {"content-type": "application/json"}
        problem = openai_door.token_problem(headers.get("authorization", ""))
        if problem:
            await _answer(send, 403, kind, openai_door.envelope(problem, "invalid_request_error", "access_denied"))
            return
        try:
            status, sent, parts = await self.runtime.chat(name, headers, await _body(receive, BODY_LIMIT))
            await send({"type": "http.response.start", "status": status, "headers": _pairs(sent)})
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except RefusalError as error:
            model = error.code == "ModelError"
            text = openai_door.envelope(
                str(error),
                "server_error" if model else "invalid_request_error",
                "model_error" if model else "validation_error",
            )
            await _answer(send, error.status, kind, text)
        except ServiceError as error:
            text = openai_door.envelope(error.message, "invalid_request_error", "validation_error")
            await _answer(send, error.status, kind, text)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._keeper = asyncio.create_task(Keeper(self.context, self.runtime).run())
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


async def _body(receive: Receive, limit: int = 64 * 1024 * 1024) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise ServiceError("ValidationException", f"The request body is larger than {limit} bytes.", 413)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _pairs(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    found = headers | {"x-amzn-requestid": str(uuid.uuid4())}
    return [(key.encode("latin-1"), value.encode("latin-1")) for key, value in found.items()]


async def _answer(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    pairs = [*_pairs(headers), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
