"""JSON text in blocks: one value after the other with the bytes it is, those too large to be held passed over."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llmtuner_kit.dataset import lines, readers

_BLOCK = 1 << 20
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n\ufeff]*")
_ENDS = frozenset(" \t\r\n,]}")
_MARK = re.compile(r'["\[\]{}]')
_IN_STRING = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


class MistakeError(ValueError):
    """Text that is not JSON; `place` is the byte of the file where what cannot be read begins."""

    def __init__(self, reason: str, place: int) -> None:
        super().__init__(reason)
        self.place = place


class Value(NamedTuple):
    """A value, its first character and the bytes it is: from `start` up to `end`. raw: None where it was too large."""

    opening: str
    value: Any
    raw: bytes | None
    start: int
    end: int


class Text:
    """A JSON text being read, from its first character that is not blank; `place` is the byte of the file it stands at."""

    def __init__(self, path: Path, encoding: str, place: int = 0) -> None:
        self.encoding = lines.line_encoding(encoding)
        self.place = place or (len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0)
        self._errors = lines.keeping(encoding)
        file = path.open("rb")
        file.seek(self.place)
        self._file = io.TextIOWrapper(file, self.encoding, self._errors, newline="")
        self._text, self._at, self._ended = "", 0, False
        self.skip()

    def __enter__(self) -> Text:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def head(self) -> str:
        """The next character, after `skip` empty only at the end."""
        return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Go behind blanks."""
        while True:
            match = _BLANK.match(self._text, self._at)
            assert match is not None
            self._take(match.end())
            if self.head or not self._more():
                return

    def step(self) -> str:
        """The next character, and go behind it and the blanks after it."""
        character = self.head
        self._take(self._at + len(character))
        self.skip()
        return character

    def value(self) -> Value:
        """The value that the text stands at, and go behind it. Raises MistakeError."""
        opening, start = self.head, self.place
        while True:
            held = len(self._text) - self._at
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if _unfinished(error):
                    if held > readers.LARGEST_ROW and opening in ('"', "[", "{"):
                        self._pass_over()
                        return Value(opening, None, None, start, self.place)
                    if self._more():
                        continue
                told = json.JSONDecodeError(error.msg, self._text[self._at :], error.pos - self._at)
                raise MistakeError(readers.json_problem(told, told.doc), start) from None
            except (ValueError, RecursionError) as error:
                raise MistakeError(readers.json_problem(error, ""), start) from None
            # A number may go on in the next block: 1|2, -1.5|e3.
            goes_on = isinstance(value, int | float) and self._text[end : end + 1] not in _ENDS
            if goes_on and held <= readers.LARGEST_ROW and self._more():
                continue
            return Value(opening, value, self._take(end), start, self.place)

    def items(self) -> Iterator[Value]:
        """The elements of the list that the text stands at, which is then behind it. Raises MistakeError."""
        self.step()
        if self.head == "]":
            self.step()
            return
        while True:
            yield self.value()
            self.skip()
            place = self.place
            following = self.step()
            if following == "]":
                return
            if following != ",":
                problem = (
                    f"{following!r} after an element" if following else "the list ends without its closing bracket"
                )
                raise MistakeError(f"not JSON: {problem}", place)

    def _take(self, end: int) -> bytes:
        """Go to a character of the text held; the bytes between."""
        raw = self._text[self._at : end].encode(self.encoding, self._errors)
        self._at = end
        self.place += len(raw)
        return raw

    def _more(self) -> bool:
        """Hold another block, growing with what is held already but not without bound; False at the end."""
        held = len(self._text) - self._at
        block = "" if self._ended else self._file.read(max(_BLOCK, min(held, readers.LARGEST_ROW - held)))
        self._ended = not block
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)

    def _pass_over(self) -> None:
        """Go behind a text, list or object by its quotes and brackets alone, holding nothing. Raises MistakeError."""
        start, depth, in_string = self.place, 0, False
        while True:
            if in_string:
                match = _IN_STRING.match(self._text, self._at)
                assert match is not None
                self._take(match.end())
                if self.head == '"':
                    self._take(self._at + 1)
                    in_string = False
                    if not depth:
                        return
                    continue
            elif (mark := _MARK.search(self._text, self._at)) is not None:
                self._take(mark.end())
                in_string = mark[0] == '"'
                depth += (mark[0] in "[{") - (mark[0] in "]}")
                if not depth and not in_string:
                    return
                continue
            else:
                self._take(len(self._text))
            if not self._more():
                raise MistakeError("not JSON: the file ends inside a value", start)


def _unfinished(mistake: json.JSONDecodeError) -> bool:
    """Whether the mistake may be that the block ends here: it is at the end, or a text has no end yet."""
    return mistake.pos >= len(mistake.doc) - 16 or mistake.msg.startswith("Unterminated string")
