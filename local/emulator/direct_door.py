"""A short way for InvokeEndpoint: from the parsed request to the runtime and back, without ASGI's messages.

uvicorn's scope, events and checks of our own headers cost as much as everything else on the way of an invocation. All
other requests, and everything about connections, stay with uvicorn.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

from llmtuner_local.emulator import gate
from llmtuner_local.emulator.runtime import BODY_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

_PATH = re.compile(rb"/endpoints/([A-Za-z0-9-]+)/invocations")


class DirectProtocol(gate.BoundedProtocol):
    """The protocol of one connection; the application must have `doors` (RuntimeDoors)."""

    cycle: Any

    def on_headers_complete(self) -> None:
        found = _PATH.fullmatch(self.url)
        is_free = self.cycle is None or self.cycle.response_complete
        if not (found and is_free and not self.expect_100_continue and self.parser.get_method() == b"POST"):
            super().on_headers_complete()
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}
        refused = gate.foreign(headers) or gate.unsigned(headers, "", "sagemaker")
        if refused or self.parser.get_http_version() != "1.1":
            super().on_headers_complete()
            return
        self._head = -1
        self.cycle = _Cycle(self, found.group(1).decode(), headers, self.parser.should_keep_alive())

    def begin(self, cycle: _Cycle) -> None:
        task = self.loop.create_task(cycle.answer(self.app.doors))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)


class _Cycle:
    """One request and its answer, with the members that uvicorn's protocol looks at."""

    def __init__(self, protocol: DirectProtocol, name: str, headers: dict[str, str], keep_alive: bool) -> None:
        self.protocol, self.name, self.headers, self.keep_alive = protocol, name, headers, keep_alive
        self.body = bytearray()
        self.more_body = True
        self.disconnected = self.response_complete = False
        self.message_event: Any = self  # its `set` is how the protocol tells what has come
        self._begun = False

    def set(self) -> None:
        """More of the body has come, or its end, or the client has gone."""
        if self._begun or self.disconnected:
            return
        if not self.more_body or len(self.body) > BODY_LIMIT:
            self._begun = True
            self.protocol.begin(self)
        else:
            self.protocol.flow.resume_reading()

    async def answer(self, doors: Any) -> None:
        if self.more_body:  # it is too large, and what is still to come is not wanted
            self.keep_alive = False
        status, headers, content = await doors.invoke(self.name, self.headers, bytes(self.body))
        self.response_complete = True
        if self.disconnected:
            return
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        lines.append(f"x-amzn-requestid: {uuid.uuid4()}\r\ncontent-length: {len(content)}\r\n")
        if not self.keep_alive:
            lines.append("connection: close\r\n")
        head = STATUS_LINE[status] + "".join(lines).encode("latin-1") + b"\r\n"
        self.protocol.transport.write(head + content)
        if not self.keep_alive:
            self.protocol.transport.close()
        self.protocol.on_response_complete()
