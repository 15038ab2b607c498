"""HTTP to the containers of replicas: kept connections, as few steps as possible on the way of an invocation.

A general client library costs more time for one request than everything else the emulator does with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

import httptools

_IDLE_SECONDS = 4.0  # uvicorn and others close a connection that is idle for 5 s
_HIGH_WATER = 1024 * 1024  # bytes of a stream that wait for its reader before the container has to


class ReplicaGoneError(Exception):
    """The container does not answer: no connection, or it closed one before its answer was whole."""


class AnswerTooLargeError(Exception):
    """The container's answer has more bytes than may be taken."""


class ReplicaClient:
    """Requests to containers on this machine, by port."""

    def __init__(self) -> None:
        self._idle: dict[int, list[_Connection]] = {}

    async def request(
        self, port: int, method: str, path: str, headers: dict[str, str], body: bytes, seconds: float, limit: int
    ) -> tuple[int, dict[str, str], bytes]:
        """A whole answer: (status, headers, body).

        Raises:
            ReplicaGoneError, TimeoutError.
            AnswerTooLargeError: the body has more than `limit` bytes.
        """
        connection = await self._sent(port, method, path, headers, body, seconds, limit)
        try:
            await connection.ended()
            return connection.status, connection.headers, b"".join(connection.parts)
        finally:
            self._done(connection)

    async def open(
        self, port: int, method: str, path: str, headers: dict[str, str], body: bytes, seconds: float
    ) -> Answer:
        """An answer whose body is still to come; it must be read to its end, or closed."""
        connection = await self._sent(port, method, path, headers, body, seconds)
        return Answer(connection, self)

    async def _sent(
        self, port: int, method: str, path: str, headers: dict[str, str], body: bytes, seconds: float, limit: int = 0
    ) -> _Connection:
        """A connection on which the request was sent and the head of the answer has come."""
        lines = [f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-length: {len(body)}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        data = "".join(lines).encode("latin-1") + b"\r\n" + body
        loop = asyncio.get_running_loop()
        while True:
            connection = self._kept(port, loop.time())
            kept = connection is not None
            if connection is None:
                try:
                    _, connection = await loop.create_connection(lambda: _Connection(loop, port), "127.0.0.1", port)
                except OSError as error:
                    raise ReplicaGoneError(str(error)) from None
            connection.begin(data, seconds, limit)
            try:
                await connection.head()
                return connection
            except ReplicaGoneError:
                # A kept connection may have been closed by the container just now: that request never reached it.
                if not kept or connection.touched:
                    raise
            except BaseException:
                connection.close()
                raise

    def _kept(self, port: int, now: float) -> _Connection | None:
        idle = self._idle.get(port)
        while idle:
            connection = idle.pop()
            if connection.open and now - connection.idle_since < _IDLE_SECONDS:
                return connection
            connection.close()
        return None

    def _done(self, connection: _Connection) -> None:
        if connection.rest():
            self._idle.setdefault(connection.port, []).append(connection)

    def forget(self, ports: set[int]) -> None:
        """Close what is kept for ports that no replica has any longer."""
        for port in self._idle.keys() - ports:
            for connection in self._idle.pop(port):
                connection.close()

    def close(self) -> None:
        self.forget(set())


class Answer:
    """A streamed answer: status, headers, and the parts of its body."""

    def __init__(self, connection: _Connection, client: ReplicaClient) -> None:
        self.status, self.headers = connection.status, connection.headers
        self._connection, self._client = connection, client

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes; raises ReplicaGoneError, TimeoutError. The connection is released at the end."""
        try:
            while chunk := await self._connection.next_part():
                yield chunk
        finally:
            self.close()

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.parts()])

    def close(self) -> None:
        self._client._done(self._connection)


class _Connection(asyncio.Protocol):
    """One connection to a container; one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int) -> None:
        self.port = port
        self.open = False
        self.touched = False  # something of the answer has come
        self.status = 0
        self.headers: dict[str, str] = {}
        self.parts: deque[bytes] = deque()
        self.idle_since = 0.0
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._has_head = self._is_complete = self._keep = self._until_close = self._paused = False
        self._waiting = self._limit = 0  # bytes in parts
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # What the client does.

    def begin(self, data: bytes, seconds: float, limit: int) -> None:
        """Send a request; the whole answer must come within so many seconds.

        Args:
            limit: bytes of the body that may wait at most; 0: it is read as it comes, and the container waits.
        """
        self._limit = limit
        self.touched = self._has_head = self._is_complete = self._until_close = False
        self.headers, self._waiting = {}, 0
        self.parts.clear()
        self._timer = self._loop.call_later(seconds, self._expire)
        if self._error is None:
            self._transport.write(data)

    async def head(self) -> None:
        while not self._has_head:
            await self._change()

    async def ended(self) -> None:
        while not self._is_complete:
            await self._change()

    async def next_part(self) -> bytes:
        """The next bytes of the body; empty at its end."""
        while not self.parts and not self._is_complete:
            await self._change()
        if not self.parts:
            return b""
        chunk = b"".join(self.parts) if len(self.parts) > 1 else self.parts[0]
        self.parts.clear()
        self._waiting = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    def rest(self) -> bool:
        """The exchange is over; whether the connection can be used again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not (self._is_complete and self._keep and self.open):
            self.close()
            return False
        self.idle_since = self._loop.time()
        return True

    def close(self) -> None:
        self.open = False
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def _change(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self.open = False
        self._wake()

    def _expire(self) -> None:
        self._fail(TimeoutError())
        self._transport.abort()

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.open = transport, True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._until_close and not self._is_complete and exc is None and self._error is None:
            self.on_message_complete()
        self._fail(ReplicaGoneError(str(exc or "the container closed the connection")))

    def data_received(self, data: bytes) -> None:
        self.touched = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ReplicaGoneError(f"not HTTP: {error}"))
            self._transport.abort()

    # What the parser tells.

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:  # 100 Continue and the like: the answer is still to come
            self.headers = {}
            return
        self._keep = self._parser.should_keep_alive()
        if "content-length" not in self.headers and "transfer-encoding" not in self.headers:
            self._until_close = self.status not in (204, 304)
        self._has_head = True
        self._wake()

    def on_body(self, chunk: bytes) -> None:
        self.parts.append(chunk)
        self._waiting += len(chunk)
        if self._limit and self._waiting > self._limit:
            self._fail(AnswerTooLargeError())
            self._transport.abort()
        elif not self._limit and self._waiting > _HIGH_WATER and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._has_head and self._error is None:
            self._is_complete = True
            self._wake()
