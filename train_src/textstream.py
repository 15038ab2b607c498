"""Token ids to text as they come, held back while a character or a stop sequence may still be incomplete."""

from typing import Any

INCOMPLETE = "\ufffd"  # what the bytes of an unfinished character decode to


class TextStream:
    """The text of one answer. After each token only the last few are decoded again."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.stopped = False
        self._ids: list[int] = []
        self._context = self._read = 0  # ids before `_read` are in the text; those from `_context` on say how to join
        self._held = ""

    def add(self, token: int) -> str:
        """The text that is certain after this token."""
        self._ids.append(token)
        known = self._decode(self._ids[self._context : self._read])
        text = self._decode(self._ids[self._context :])
        if text.endswith(INCOMPLETE):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return self._release(text[len(known) :])

    def flush(self) -> str:
        """What was held back."""
        rest = ""
        if not self.stopped:
            known = self._decode(self._ids[self._context : self._read])
            rest = self._held + self._decode(self._ids[self._context :])[len(known) :]
        self._held = ""
        return rest

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _release(self, text: str) -> str:
        text = self._held + text
        ends = [found for stop in self.stop if (found := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        held = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of `stop` that `text` ends with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
