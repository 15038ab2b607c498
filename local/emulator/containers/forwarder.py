"""Lets containers reach a service that listens on this machine's loopback only: one more listener, on the address of
the container network, which nothing outside of this machine can reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

_BLOCK = 256 * 1024


class Forwarder:
    """Forwards connections to `address` (any free port) to a port of 127.0.0.1, until it is closed."""

    def __init__(self, address: str, target_port: int) -> None:
        """Listens when this returns; raises OSError when the address is not this machine's."""
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        server = asyncio.start_server(self._serve, address, 0)
        try:
            self._server = self._loop.run_until_complete(server)
        except OSError:
            self._loop.close()
            raise
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, name="forwarder", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and drop what is open."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        open_now = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in open_now:
            task.cancel()
        await asyncio.gather(*open_now, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, there_writer))
                group.create_task(_copy(there_reader, writer))
        except* OSError:
            pass  # one side has hung up in the middle; the other is told by closing it
        finally:
            writer.close()
            there_writer.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while block := await source.read(_BLOCK):
        target.write(block)
        await target.drain()
    with contextlib.suppress(OSError):
        target.write_eof()
