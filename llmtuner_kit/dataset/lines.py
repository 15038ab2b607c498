"""Lines of a text file of any encoding, each with its place in the file, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple


class Line(NamedTuple):
    """A line with its end, and the bytes of the file it is: from `start` up to `end`. raw: None where it is too long."""

    raw: bytes | None
    start: int
    end: int


def read(path: Path, encoding: str, most: int, start: int = 0, end: int = 0) -> Iterator[Line]:
    """The lines from one byte up to another (0: the last); those of more than `most` bytes are passed over unread."""
    newline = newline_of(encoding)
    with path.open("rb") as file:
        file.seek(start)
        while (not end or start < end) and (raw := read_line(file, newline, most + 1)):
            place = start + len(raw)
            if len(raw) <= most:
                yield Line(raw, start, place)
            else:
                while not raw.endswith(newline) and (raw := read_line(file, newline, most + 1)):
                    place += len(raw)
                yield Line(None, start, place)
            start = place


def read_line(file: BinaryIO, newline: bytes, most: int) -> bytes:
    """The next line with its end, or its first `most` bytes; of wide units always whole ones."""
    unit = len(newline)
    if unit == 1:
        return file.readline(most)
    line = b""
    while piece := file.readline(max(1, most - len(line))):
        line += piece
        line += file.read(-len(line) % unit)
        if line.endswith(newline) or len(line) >= most:
            break
    return line


def newline_of(encoding: str) -> bytes:
    """The bytes that end a line: one, or as many as the units of a wide encoding have."""
    return "\n".encode(encoding) if is_wide(encoding) else b"\n"


def count(data: bytes, encoding: str) -> int:
    """Line ends in whole characters of an encoding."""
    return data.decode(encoding, "replace").count("\n") if is_wide(encoding) else data.count(b"\n")


def is_blank(raw: bytes, encoding: str) -> bool:
    """Whether there is nothing in a line to be read."""
    return not raw.decode(encoding, "replace").strip("\ufeff \t\r\n") if is_wide(encoding) else raw.isspace()


def is_wide(encoding: str) -> bool:
    """Whether a line end has more than one byte."""
    return encoding.startswith(("utf-16", "utf-32"))


def line_encoding(encoding: str) -> str:
    """The encoding of one line of a file: without the byte order mark that only the file's first line has."""
    return "utf-8" if encoding == "utf-8-sig" else encoding


def keeping(encoding: str) -> str:
    """The way of decoding that keeps the bytes of broken characters; encodings of wide units cannot."""
    return "replace" if is_wide(encoding) else "surrogateescape"
