"""Chats as WhatsApp exports them -> conversations: `[12.03.24, 18:05:11] Name: text`, `12/03/24, 18:05 - Name: text`.

Who answers is told by the setting output_column, as for tables: the names are the columns of a chat. A conversation ends
with a pause, and where something stood that is not in the export.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from llmtuner_kit.dataset import characters, lines, readers, shapes
from llmtuner_kit.dataset.records import LARGEST_HELD, Record, refused
from llmtuner_kit.dataset.shapes import ColumnMapping
from llmtuner_kit.errors import DataError
from llmtuner_kit.settings import PrepareSettings

MAPPING = ColumnMapping("chat-export", messages="messages")
_SAMPLE_BYTES, _SAMPLE_LINES = 64 << 10, 200
_PAUSE = 3 * 60  # minutes of silence after which a message begins a conversation of its own
_EVENING, _NIGHT = 21 * 60, 3 * 60
_TIME = r"(?P<date>\d{1,4}([./-])\d{1,2}\2\d{1,4}), (?P<hour>\d{1,2}):(?P<minute>\d\d)(:\d\d)?([ \u00a0\u202f]?(?P<half>[AaPp])\.?[Mm]\.?)?"
_STAMPS = [
    re.compile(rf"\u200e?{before}{_TIME}{after}(?P<rest>.*)", re.DOTALL)
    for before, after in ((r"\[", r"\] "), ("", " - "))
]
_NAMED = re.compile(r"(?P<name>[^:\"“”«»]{1,80}):(?: (?P<text>.*))?", re.DOTALL)
# What WhatsApp marks as its own words, in any language: notices, and media that were left out.
_MARK = "\u200e"
_EDITED = re.compile(rf"[\s{_MARK}]*(?:{_MARK}\s*<|<{_MARK})[^<>]*>$")
_LEFT_OUT = re.compile(
    rf"{_MARK}.*|<[^<>]+>|(image|video|audio|sticker|GIF|document|contact card) omitted"
    r"|[^\n]*\.\w{2,4} \((file attached|Datei angehängt)\)"
    r"|(Bild|Video|Audio|Sticker|GIF|Dokument|Kontaktkarte) weggelassen"
    r"|(This message was deleted|You deleted this message|Diese Nachricht wurde gelöscht|Du hast diese Nachricht gelöscht)\.?",
    re.DOTALL,
)


class _Stamped(NamedTuple):
    """A line that begins a message: its date as it is written, its minute of the day, and who said what; a notice has no name."""

    date: str
    minute: int
    name: str
    text: str


def _stamped(line: str) -> _Stamped | None:
    found = next((match for stamp in _STAMPS if (match := stamp.fullmatch(line))), None)
    if found is None:
        return None
    hour = int(found["hour"])
    if found["half"]:
        hour = hour % 12 + 12 * (found["half"] in "Pp")
    said = _NAMED.fullmatch(found["rest"])
    name, text = (said["name"].strip(f"{_MARK} "), said["text"] or "") if said else ("", found["rest"])
    return _Stamped(found["date"], 60 * hour + int(found["minute"]), name, text)


def names_in(path: Path, encoding: str) -> list[str]:
    """Who speaks in the first lines of a chat; empty for any other text.

    A chat begins with such a line, at least two speak in it, and at least a third of its lines begin a message.
    """
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES).decode(encoding, "replace")
    told = [line.rstrip("\r") for line in sample.lstrip("\ufeff").split("\n") if line.strip()][:_SAMPLE_LINES]
    if not told or _stamped(told[0]) is None:
        return []
    found = [stamped for line in told if (stamped := _stamped(line))]
    names = list(dict.fromkeys(item.name for item in found if item.name))
    return names if len(names) > 1 and 3 * len(found) >= len(told) else []


def answering(source: str, names: Sequence[str], settings: PrepareSettings) -> frozenset[str]:
    """Whose messages are the answers. Raises DataError with the names where output_column names none of them."""
    if settings.output_column and (found := shapes.columns_of(settings.output_column, names)):
        return frozenset(found)
    raise DataError(
        f"{source} is a chat of {', '.join(map(repr, names))}, and nothing says whose messages are the answers to learn.",
        valid="one of the names, or several with commas between",
        fix=f"set output_column to who answers, such as {shapes.several(settings.output_column, names[-1])!r}, or shape to "
        "'text' to read it as plain text",
    )


def read(path: Path, source: str, encoding: str, answering: frozenset[str]) -> Iterator[Record]:
    """The conversations of a chat, each a record of `messages` with the number of its first line.

    What was left out of the export, and lines that cannot be read, are records with a problem.
    """
    talk = _Talk(source, answering)
    begun = False
    for number, line in enumerate(lines.read(path, encoding, readers.LARGEST_ROW), 1):
        if line.raw is None:
            yield from talk.end()
            problem = ("too_large", readers.too_large(line.end - line.start))
            yield refused(source, number, path, line.start, line.end, problem)
            continue
        text, broken = characters.decode(line.raw, lines.line_encoding(encoding))
        stamped = _stamped(text := text.lstrip("\ufeff").rstrip("\r\n"))
        if broken:
            yield from talk.end()
            yield Record(source, number, line.raw, problem=broken)
        elif stamped is None:
            talk.go_on(text, line.raw)
        elif not stamped.name or (not begun and stamped.text.startswith(_MARK)):
            continue  # a notice of the service
        elif _LEFT_OUT.fullmatch(stamped.text):
            yield from talk.end()
            yield Record(
                source, number, line.raw, problem=("not_text", f"not in the export: {stamped.text.strip(_MARK)}")
            )
        else:
            if talk.is_over(stamped):
                yield from talk.end()
            talk.say(stamped, number, line.raw)
        begun = begun or bool(stamped and stamped.name)
    yield from talk.end()


class _Talk:
    """The conversation that is being read."""

    def __init__(self, source: str, answering: frozenset[str]) -> None:
        self._source, self._answering = source, answering
        self._messages: list[dict[str, str]] = []
        self._raw: list[bytes] = []
        self._row, self._last = 0, _Stamped("", 0, "", "")

    def say(self, said: _Stamped, number: int, raw: bytes) -> None:
        """A message; those that one side writes in a row are one turn."""
        role = "assistant" if said.name in self._answering else "user"
        text = _EDITED.sub("", said.text) if said.text.endswith(">") else said.text
        if not self._messages:
            self._row = number
        if self._messages and self._messages[-1]["role"] == role:
            self._messages[-1]["content"] += f"\n{text}"
        else:
            self._messages.append({"role": role, "content": text})
        self._raw.append(raw)
        self._last = said

    def go_on(self, text: str, raw: bytes) -> None:
        """A further line of the message said last; below what was left out it stands alone and is passed over."""
        if self._messages:
            self._messages[-1]["content"] += f"\n{text}"
            self._raw.append(raw)

    def is_over(self, said: _Stamped) -> bool:
        """Whether a message comes so late that it begins a conversation. Dates are compared as they are written."""
        if sum(map(len, self._raw)) > LARGEST_HELD:
            return True
        if said.date == self._last.date:
            return said.minute - self._last.minute > _PAUSE
        return self._last.minute < _EVENING or said.minute > _NIGHT

    def end(self) -> Iterator[Record]:
        """The conversation as a record, if there is one."""
        if self._messages:
            yield Record(self._source, self._row, b"".join(self._raw), {"messages": self._messages})
        self._messages, self._raw = [], []
