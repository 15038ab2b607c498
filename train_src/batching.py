"""Continuous batching: one thread decodes all answers together; requests join at any token and leave at their last.

Each round reads one part of one waiting prompt and moves every running answer forward by a token. Places are bounded
by rows and by the memory of their caches, the queue before them by its length; who finds it full is told so at once.
Requests with several prompts take turns with the others.
"""

import collections
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from generation import Answer, Generator, Piece, RequestError
from sampling import Sampling

Deliver = Callable[[int, Piece | BaseException], None]  # the number of the prompt in its request, and what came


class Ticket:
    """A request's prompts on their way. `cancel` may be called from any thread."""

    def __init__(self, answers: Sequence[Answer], deliver: Deliver) -> None:
        self.waiting = collections.deque(enumerate(answers))
        self.deliver = deliver
        self.is_cancelled = False

    def cancel(self) -> None:
        """Give up: running answers end before their next token, the others never begin."""
        self.is_cancelled = True


class _Running:
    """An answer that has a place."""

    def __init__(self, ticket: Ticket, number: int, answer: Answer, size: int) -> None:
        self.ticket, self.number, self.answer, self.size = ticket, number, answer, size

    def deliver(self, piece: Piece | BaseException) -> None:
        self.ticket.deliver(self.number, piece)


class Scheduler:
    """Decides who is decoded next. `run` is the decoding thread's; the other methods may be called from any."""

    def __init__(self, generator: Generator, *, most_rows: int, longest_queue: int, cache_bytes: int) -> None:
        self.generator = generator
        self.most_rows, self.longest_queue, self.cache_bytes = most_rows, longest_queue, cache_bytes
        self._changed = threading.Condition()
        self._queue: collections.deque[Ticket] = collections.deque()
        self._reading: collections.deque[_Running] = collections.deque()
        self._answering: list[_Running] = []
        self._stopped = False
        self._rate = 20.0  # tokens per second of all rows together, a running mean

    def submit(self, prompts: Sequence[list[int]], sampling: Sampling, model: str, deliver: Deliver) -> Ticket:
        """Queue a request. Raises RequestError when it cannot be answered (400, 404, 413) or not now (429)."""
        answers = [self.generator.start(ids, sampling, model) for ids in prompts]
        for answer in answers:
            if self._size(answer) > self.cache_bytes:
                raise RequestError(
                    f"prompt and answer of up to {answer.row.room} tokens need more memory than this server has for "
                    f"them ({self.cache_bytes / 1e9:.1f} GB): ask for fewer new tokens",
                    status=413,
                )
        ticket = Ticket(answers, deliver)
        with self._changed:
            self._forget_cancelled()
            if len(self._queue) >= self.longest_queue:
                raise RequestError(f"{len(self._queue)} requests are waiting already: try again later", status=429)
            self._queue.append(ticket)
            self._changed.notify()
        return ticket

    def load(self) -> dict[str, int]:
        """How many requests wait and how many answers are being made."""
        with self._changed:
            self._forget_cancelled()
            return {"waiting": len(self._queue), "answering": len(self._answering) + len(self._reading)}

    def retry_after(self) -> int:
        """Seconds until a place may be free, from what the running answers may still need at the present rate."""
        with self._changed:
            left = [answer.answer.budget for answer in (*self._answering, *self._reading)]
        return max(1, min(60, math.ceil(min(left, default=0) * max(1, len(left)) / self._rate)))

    def stop(self) -> None:
        """End `run` after its round."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        """Decode until `stop`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._queue or self._reading or self._answering)
                if self._stopped:
                    return
                self._admit()
            started = time.monotonic()
            self._reading = collections.deque(each for each in self._reading if not each.ticket.is_cancelled)
            self._answering = [each for each in self._answering if not each.ticket.is_cancelled]
            self._read_part()
            moved = len(self._answering)
            self._move()
            if moved:
                self._rate += 0.05 * (moved / (time.monotonic() - started) - self._rate)

    def _size(self, answer: Answer) -> int:
        return answer.row.room * self.generator.decoder.bytes_per_token

    def _forget_cancelled(self) -> None:
        self._queue = collections.deque(ticket for ticket in self._queue if not ticket.is_cancelled)

    def _admit(self) -> None:
        """Give free places to the requests in turn, a prompt each."""
        self._forget_cancelled()
        running = [*self._reading, *self._answering]
        used = sum(each.size for each in running)
        free = self.most_rows - len(running)
        while self._queue and free > 0:
            ticket = self._queue.popleft()
            number, answer = ticket.waiting[0]
            size = self._size(answer)
            if used + size > self.cache_bytes and used:
                self._queue.appendleft(ticket)
                return
            ticket.waiting.popleft()
            self._reading.append(_Running(ticket, number, answer, size))
            used, free = used + size, free - 1
            if ticket.waiting:
                self._queue.append(ticket)

    def _read_part(self) -> None:
        if not self._reading:
            return
        first = self._reading[0]
        try:
            logits = self.generator.decoder.prefill(first.answer.row)
            if logits is None:
                return
            self._reading.popleft()
            self._hand_out([first], self.generator.advance([first.answer], logits.reshape(1, -1)))
            self._answering.append(first)
        except Exception as error:  # noqa: BLE001 (one request's failure is told to it and ends nothing else)
            self._reading = collections.deque(each for each in self._reading if each is not first)
            self._fail([first], error)
        self._forget_finished()

    def _move(self) -> None:
        if not self._answering:
            return
        answers = [each.answer for each in self._answering]
        try:
            logits = self.generator.decoder.step([answer.row for answer in answers], [a.last for a in answers])
            self._hand_out(self._answering, self.generator.advance(answers, logits))
        except Exception as error:  # noqa: BLE001 (as above)
            failed, self._answering = self._answering, []
            self._fail(failed, error)
        self._forget_finished()

    def _hand_out(self, running: Sequence[_Running], pieces: Sequence[Piece]) -> None:
        for each, piece in zip(running, pieces, strict=True):
            each.deliver(piece)

    def _forget_finished(self) -> None:
        self._answering = [each for each in self._answering if not each.answer.is_finished]

    @staticmethod
    def _fail(running: Sequence[_Running], error: BaseException) -> None:
        traceback.print_exception(error, file=sys.stderr)
        for each in running:
            each.deliver(error)
