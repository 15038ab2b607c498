"""The HTTP side of sagemaker-runtime: invocations, streams, asynchronous invocations, and the OpenAI-compatible door."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator

from llmtuner_local.emulator import openai_door
from llmtuner_local.emulator.asgi import Receive, Send, answer, begin, read_body, too_large
from llmtuner_local.emulator.async_inference import AsyncInvocations
from llmtuner_local.emulator.errors import ServiceError
from llmtuner_local.emulator.refusals import RefusalError
from llmtuner_local.emulator.runtime import BODY_LIMIT, PREFIX, Runtime
from llmtuner_local.emulator.store import StoreError

log = logging.getLogger("llmtuner_local.emulator")
_PATH = re.compile(r"/endpoints/([^/]+)/(invocations|invocations-response-stream|async-invocations)")
_CHAT = re.compile(r"/endpoints/([^/]+)(?:/inference-components/([^/]+))?/openai/v1/chat/completions")
_JSON = {"content-type": "application/json"}
_COMPONENT_HEADER = f"{PREFIX}inference-component"


class RuntimeDoors:
    """Answers everything below /endpoints/."""

    def __init__(self, runtime: Runtime, queues: AsyncInvocations) -> None:
        self.runtime, self.queues = runtime, queues

    async def answer(self, path: str, headers: dict[str, str], receive: Receive, send: Send) -> bool:
        """Answer a request; False when the path is not one of these doors."""
        if found := _PATH.fullmatch(path):
            await self._invocation(found.group(1), found.group(2), headers, receive, send)
        elif found := _CHAT.fullmatch(path):
            await self._chat(found.group(1), found.group(2), headers, receive, send)
        else:
            return False
        return True

    async def invoke(self, name: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """InvokeEndpoint: (status, headers, body), refusals included."""
        try:
            if len(body) > BODY_LIMIT:
                raise too_large(BODY_LIMIT)
            sent, content = await self.runtime.invoke(name, headers, body)
            return 200, sent, content
        except Exception as error:
            return _refused(name, error)

    async def _invocation(self, name: str, kind: str, headers: dict[str, str], receive: Receive, send: Send) -> None:
        frames = None
        try:
            body = await read_body(receive, BODY_LIMIT)
            if kind == "invocations":
                told = await self.invoke(name, headers, body)
            elif kind == "async-invocations":
                told = self._accepted(name, headers, body)
            else:
                sent, frames = await self.runtime.stream(name, headers, body)
        except Exception as error:
            told = _refused(name, error)
        if frames is None:
            await answer(send, *told)
            return
        await begin(send, 200, sent)
        await _pour(frames, receive, send)

    def _accepted(self, name: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        accepted = self.queues.accept(name, headers, body)
        sent = _JSON | {f"{PREFIX}outputlocation": accepted["output"]}
        if accepted["failure"]:
            sent[f"{PREFIX}failurelocation"] = accepted["failure"]
        return 202, sent, json.dumps({"InferenceId": accepted["id"]}).encode()

    async def _chat(
        self, name: str, component: str | None, headers: dict[str, str], receive: Receive, send: Send
    ) -> None:
        problem = openai_door.token_problem(headers.get("authorization", ""))
        if problem:
            await answer(send, 403, _JSON, openai_door.envelope(problem, "invalid_request_error", "access_denied"))
            return
        try:
            body = await read_body(receive, BODY_LIMIT)
            if _COMPONENT_HEADER in headers:
                text = f"The header {_COMPONENT_HEADER} is not allowed here: the address names the inference component."
                raise ServiceError("ValidationException", text)
            if component:
                headers = headers | {_COMPONENT_HEADER: component}
            status, sent, parts = await self.runtime.chat(name, headers, body)
        except RefusalError as error:
            kind, code = "invalid_request_error", "validation_error"
            if error.code == "ModelError":
                kind, code = "server_error", "model_error"
            await answer(send, error.status, _JSON, openai_door.envelope(str(error), kind, code))
        except ServiceError as error:
            envelope = openai_door.envelope(error.message, "invalid_request_error", "validation_error")
            await answer(send, error.status, _JSON, envelope)
        else:
            await begin(send, status, sent)
            await _pour(parts, receive, send)


def _refused(name: str, error: Exception) -> tuple[int, dict[str, str], bytes]:
    """A refusal, or a failure of our own, as the runtime's clients read it: (status, headers, body)."""
    if isinstance(error, RefusalError):
        return error.status, _JSON | {"x-amzn-errortype": error.code}, json.dumps(error.body).encode()
    if not isinstance(error, ServiceError):
        log.exception("an invocation of %s failed", name)
        text = (
            str(error) if isinstance(error, StoreError) else "The invocation failed inside the emulator; see its log."
        )
        body = {"Message": text, "ErrorCode": "INTERNAL_FAILURE"}
        return 500, _JSON | {"x-amzn-errortype": "InternalFailure"}, json.dumps(body).encode()
    # A body that is too large has no error type on AWS: clients take the status as its code.
    sent = _JSON | ({} if error.code == "413" else {"x-amzn-errortype": error.code})
    return error.status, sent, json.dumps({"message": error.message, "Message": error.message}).encode()


async def _pour(parts: AsyncGenerator[bytes, None], receive: Receive, send: Send) -> None:
    """Send the parts of a body as they come; a client that hangs up ends the container's work as well."""
    gone = asyncio.ensure_future(_hung_up(receive))
    try:
        async for part in parts:
            if gone.done():
                return
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()
        await parts.aclose()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
