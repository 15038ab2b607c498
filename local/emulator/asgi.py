"""The few steps of HTTP that every door needs: read a body, answer."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from llmtuner_local.emulator.errors import ServiceError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body of a request; raises ServiceError (413, as AWS says it) above `limit` bytes."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ServiceError("RequestAborted", "The client went away before its request was complete.")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
        if not message.get("more_body"):
            return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


def too_large(limit: int) -> ServiceError:
    """The refusal of a body with more than `limit` bytes."""
    return ServiceError("413", f"HTTP content length exceeded {limit} bytes.", 413)


async def begin(send: Send, status: int, headers: dict[str, str]) -> None:
    """The head of an answer whose body follows in parts."""
    await send({"type": "http.response.start", "status": status, "headers": _pairs(headers)})


async def answer(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    """A whole answer."""
    pairs = [*_pairs(headers), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _pairs(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    found = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
    return [*found, (b"x-amzn-requestid", str(uuid.uuid4()).encode())]
