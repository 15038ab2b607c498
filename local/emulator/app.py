"""The doors: JSON 1.1 at `/`, invocations at `/endpoints/...`, health at `/_health`. Plain ASGI, one process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging

from llmtuner_local.emulator import wire
from llmtuner_local.emulator.asgi import Receive, Scope, Send, answer, read_body
from llmtuner_local.emulator.async_inference import AsyncInvocations
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import ServiceError, not_emulated, unknown_operation, validation
from llmtuner_local.emulator.keeper import Keeper
from llmtuner_local.emulator.operations import AUTOSCALING, SAGEMAKER
from llmtuner_local.emulator.runtime import Runtime
from llmtuner_local.emulator.runtime_doors import RuntimeDoors

log = logging.getLogger("llmtuner_local.emulator")

_SERVICES = {
    "SageMaker": ("sagemaker", SAGEMAKER),
    "AnyScaleFrontendService": ("application-autoscaling", AUTOSCALING),
}
_LOCAL_HOSTS = {"127.0.0.1", "localhost", "[::1]"}
_RUNS_CONTAINERS = {"CreateTrainingJob", "CreateProcessingJob", "CreateEndpoint"}


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
        path = scope["path"].removeprefix("/docker") or "/"
        if headers.get("host", "").rsplit(":", 1)[0] not in _LOCAL_HOSTS:
            # A page in a browser may reach this port under a name of its own (DNS rebinding).
            await answer(send, 403, {"content-type": "text/plain"}, b"Only local host names are answered.\n")
        elif path == "/_health":
            await answer(send, 200, {"content-type": "application/json"}, b'{"status":"ok"}')
        elif path.startswith("/endpoints/") and await self.doors.answer(path, headers, receive, send):
            return
        elif path == "/" and "x-amz-target" in headers:
            await self._operation(
                headers["x-amz-target"], receive, send, containers=scope["path"].startswith("/docker")
            )
        else:
            await answer(send, 404, {"content-type": "text/plain"}, b"No such address in the local SageMaker.\n")

    async def _operation(self, target: str, receive: Receive, send: Send, *, containers: bool) -> None:
        prefix, _, name = target.partition(".")
        headers = {"content-type": "application/x-amz-json-1.1"}
        try:
            body = await read_body(receive)
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
            content = wire.serialise(service, name, table[name](self.context, params))
            await answer(send, 200, headers, content)
        except ServiceError as error:
            text = {"__type": error.code, "message": error.message, "Message": error.message}
            await answer(send, error.status, headers | {"x-amzn-errortype": error.code}, json.dumps(text).encode())
        except Exception:
            log.exception("%s failed", target)
            text = {"__type": "InternalFailure", "message": f"{target} failed inside the emulator; see its log."}
            await answer(send, 500, headers, json.dumps(text).encode())

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
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
