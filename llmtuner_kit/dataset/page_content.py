"""The content of a PDF's page -> its operands and operators at once, as pdfminer has them one by one; half of its time."""

from __future__ import annotations

import re
from typing import Any

from pdfminer.psparser import KWD, LIT, literal_name

# What is seldom on a page, as inline images, comments and odd ways to write a string, matches nothing.
_TOKEN = re.compile(
    rb"""[\s\0]*+(?:
      (?P<number>[-+]?[0-9]++(?![.]))
    | (?P<fraction>[-+]?[0-9]*+\.[0-9]*+)
    | (?P<keyword>[A-Za-z][^\#/%\[\]()<>{}\s]*+|['"])
    | /(?P<name>[^\#/%\[\]()<>{}\s]*+)(?!\#)
    | \((?P<text>(?:[^()\\]++|\\[^0-9]|\\[0-3][0-7]{2})*+)\)
    | <(?P<hex>(?:\s*+[0-9a-fA-F]\s*+[0-9a-fA-F])*+)\s*+>(?!>)
    | (?P<open>\[|<<)
    | (?P<close>\]|>>)
    | (?P<end>\Z)
    )""",
    re.X | re.S,
)
_ESCAPED = re.compile(rb"\\([0-7]{3}|\r\n|.)", re.S)
_ESCAPES = {b"b": b"\b", b"t": b"\t", b"n": b"\n", b"f": b"\f", b"r": b"\r", b"(": b"(", b")": b")", b"\\": b"\\"}
_INLINE_IMAGE = frozenset({b"BI", b"ID"})
_CONSTANTS = {b"true": True, b"false": False}


def objects(content: bytes) -> list[Any] | None:
    """Numbers, names, strings, arrays, dictionaries and keywords in their order; None where pdfminer has to look itself."""
    found: list[Any] = []
    around: list[tuple[bytes, list[Any]]] = []
    place = 0
    while match := _TOKEN.match(content, place):
        place, kind = match.end(), match.lastgroup
        token = match[kind or 0]
        if kind == "open":
            around.append((token, found))
            found = []
        elif kind == "close":
            opened, outer = around.pop() if around else (b"", [])
            if opened + token == b"[]":
                outer.append(found)
            elif opened + token == b"<<>>" and not len(found) % 2:
                pairs = zip(found[::2], found[1::2], strict=True)
                outer.append({literal_name(name): value for name, value in pairs if value is not None})
            else:
                return None
            found = outer
        elif kind == "end":
            return None if around else found
        elif token in _INLINE_IMAGE or token in (b".", b"-.", b"+."):
            return None
        else:
            found.append(_OBJECTS[kind or ""](token))
    return None


def _name(token: bytes) -> object:
    try:
        return LIT(token.decode())
    except UnicodeDecodeError:
        return LIT(token)


def _unescaped(match: re.Match[bytes]) -> bytes:
    return bytes((int(match[1], 8),)) if len(match[1]) == 3 else _ESCAPES.get(match[1], b"")


_OBJECTS: dict[str, Any] = {
    "number": int,
    "fraction": float,
    "keyword": lambda token: _CONSTANTS[token] if token in _CONSTANTS else KWD(token),
    "name": _name,
    "text": lambda token: _ESCAPED.sub(_unescaped, token) if b"\\" in token else token,
    "hex": lambda token: bytes.fromhex(b"".join(token.split()).decode()),
}
