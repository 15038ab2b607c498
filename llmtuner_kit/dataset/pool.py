"""Worker processes: chunks go in, summaries come out as they are done, never more in hand than there are workers.

So it is with ranges of pages, which come before the chunks that are made of them.
"""

from __future__ import annotations

import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import IO, Any

from llmtuner_kit.dataset.chunks import Chunk
from llmtuner_kit.dataset.page_ranges import PageRange
from llmtuner_kit.dataset.worker import Context, Worker
from llmtuner_kit.errors import KitError

Work = Chunk | PageRange


def run(chunks: Iterable[Work], context: Context, workers: int = 0) -> Iterator[tuple[int, Any]]:
    """(number, what the worker answers) of every chunk, in the order they are done. `workers` 0: one a core.

    The first exception, of a worker or of the chunks themselves, ends the run and is raised here.
    """
    source = _Shared(chunks)
    results: queue.Queue[tuple[int, Any] | BaseException | None] = queue.Queue()
    count = workers or len(os.sched_getaffinity(0))
    threads = [threading.Thread(target=_serve, args=(source, context, results), daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    running = count
    failure: BaseException | None = None
    try:
        while running:
            result = results.get()
            if result is None:
                running -= 1
            elif isinstance(result, BaseException):
                failure = failure or result
                source.stop()
            elif failure is None:
                yield result
    finally:
        source.stop()
        for thread in threads:
            thread.join()
    if failure is not None:
        raise failure


# Not `-m`: the package has imported this module already, and would do it twice.
_WORKER = "from llmtuner_kit.dataset.pool import main; main()"


class _Shared:
    """An iterator that several threads take from."""

    def __init__(self, chunks: Iterable[Work]) -> None:
        self._chunks = iter(chunks)
        self._lock = threading.Lock()
        self._stopped = False

    def take(self) -> Work | None:
        with self._lock:
            return None if self._stopped else next(self._chunks, None)

    def stop(self) -> None:
        self._stopped = True


def _serve(source: _Shared, context: Context, results: queue.Queue[Any]) -> None:
    """Feed one worker process until there is nothing more to do. The process is started with the first chunk."""
    process: subprocess.Popen[bytes] | None = None
    try:
        while (chunk := source.take()) is not None:
            if process is None:
                # In a group of its own: Jupyter's ■ and Ctrl-C mean this program, and its workers end when it lets go.
                process = subprocess.Popen(
                    [sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
                )
                _send(process.stdin, context)
            _send(process.stdin, chunk)
            answer = _receive(process.stdout)
            if answer is None:
                raise KitError(
                    f"A worker of the preparation ended with exit code {process.wait()} in {chunk.name}.",
                    fix="run the cell again: it goes on where it stopped; if it repeats, the machine lacks memory",
                )
            if isinstance(answer, BaseException):
                raise answer
            results.put((chunk.number, answer))
    except BaseException as error:  # noqa: BLE001 (it is raised again in the thread that waits for results)
        results.put(error)
    finally:
        if process is not None:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
            process.wait()
        results.put(None)


def _send(stream: IO[bytes] | None, value: object) -> None:
    assert stream is not None
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    try:
        stream.write(struct.pack(">Q", len(data)) + data)
        stream.flush()
    except BrokenPipeError:
        return  # the other side is gone; reading its answer tells


def _receive(stream: IO[bytes] | None) -> Any:
    """The next value, or None at the end. Both ends are this program: nothing from outside is unpickled."""
    assert stream is not None
    head = stream.read(8)
    if len(head) < 8:
        return None
    return pickle.loads(stream.read(struct.unpack(">Q", head)[0]))  # noqa: S301


def main() -> None:
    """Be a worker: a context, then chunks, until the other side closes."""
    # What a library prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    context = _receive(sys.stdin.buffer)
    if context is None:
        return
    worker = Worker(context)
    while (chunk := _receive(sys.stdin.buffer)) is not None:
        try:
            answer: object = worker.read(chunk) if isinstance(chunk, PageRange) else worker.process(chunk)
        except Exception as error:  # noqa: BLE001 (it travels to the side that asked)
            answer = error
        _send(answers, answer)
    worker.close()
