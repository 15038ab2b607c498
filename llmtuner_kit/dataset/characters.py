"""Bytes -> text: which encoding a file has, and exactly where it breaks its own rule."""

from __future__ import annotations

import codecs
import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from charset_normalizer import from_bytes

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BLOCK = 4 << 20
_SAMPLE = 256 << 10
_PROOF = 3
_TELLING = 24
_WESTERN_SIGNS = frozenset("–—‘’“”…€£§°•´·«»¿¡\xa0")
_OLDER = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "iso8859_2", "koi8_r", "cp437", "cp850",
    "mac_roman", "shift_jis", "cp932", "euc_jp", "gb18030", "big5", "euc_kr", "cp949",
)  # fmt: skip


@dataclass(frozen=True)
class TextEncoding:
    """The encoding of a file. `certain` is False when it was told from the look of the text."""

    name: str
    certain: bool = True


def detect(path: Path, *, json: bool = False) -> TextEncoding:
    """The encoding of a file, from all of its bytes and in bounded memory.

    A byte order mark decides. A file that is UTF-8 but for a minority of its lines is UTF-8 with broken lines (those
    are reported one by one); a file most of whose accented lines are not UTF-8 was saved in an older encoding. JSON
    is UTF-8 by its standard (RFC 8259), so there a line or two prove nothing.
    """
    with path.open("rb") as file:
        return _detect(file, json)


def detect_bytes(data: bytes, *, json: bool = False) -> TextEncoding:
    """The encoding of bytes in memory; the same rule as `detect`."""
    return _detect(io.BytesIO(data), json)


def _detect(file: BinaryIO, json: bool) -> TextEncoding:
    head = file.read(4096)
    for mark, name in _BOMS:
        if head.startswith(mark):
            return TextEncoding(name)
    if (wide := _wide(head)) is not None:
        return wide
    file.seek(0)
    good = broken = 0
    sample: list[bytes] = []
    # Read, not mapped: pages of a mapped file would count as this process's memory.
    while block := file.read(_BLOCK) + file.readline(_BLOCK):
        if block.isascii():
            continue
        try:
            block.decode("utf-8")
            good += 1 + block.count(b"\n")
            continue
        except UnicodeDecodeError:
            pass
        for line in block.split(b"\n"):
            if line.isascii():
                continue
            try:
                line.decode("utf-8")
                good += 1
            except UnicodeDecodeError:
                broken += 1
                if sum(map(len, sample)) < _SAMPLE:
                    sample.append(line[:_SAMPLE])
    if broken <= good or (json and broken < _PROOF):
        return TextEncoding("utf-8")
    return TextEncoding(_likeliest(b"\n".join(sample)), certain=False)


def _likeliest(sample: bytes) -> str:
    """The older encoding of a sample. With little to go by, that of Windows in the west, by far the commonest."""
    if sum(byte > 127 for byte in sample) < _TELLING:
        try:
            if all(c.isalpha() or c in _WESTERN_SIGNS for c in sample.decode("cp1252") if c > "\x7f"):
                return "cp1252"
        except UnicodeDecodeError:
            pass
    for name in ("euc_jp", "cp932"):
        if _kana(sample, name):
            return name
    best = from_bytes(sample, cp_isolation=list(_OLDER)).best()
    # Where it reads the same in the commonest, it is that: letters that come later may differ.
    same = best is not None and str(best) == sample.decode("cp1252", "replace")
    return best.encoding if best and not same else "cp1252"


def _kana(sample: bytes, encoding: str) -> bool:
    """Whether bytes are Japanese in this encoding: nothing else gives running text of full-width kana by accident."""
    letters = [c for c in sample.decode(encoding, errors="replace") if c > "\x7f"]
    return sum("\u3041" <= c <= "\u30fe" for c in letters) > 0.3 * len(letters)


def _wide(head: bytes) -> TextEncoding | None:
    """UTF-16 without a mark: every second byte of Latin text is zero."""
    if len(head) < 8:
        return None
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if odd > len(head) // 2 * 0.4 and even < len(head) // 2 * 0.05:
        return TextEncoding("utf-16-le", certain=False)
    if even > len(head) // 2 * 0.4 and odd < len(head) // 2 * 0.05:
        return TextEncoding("utf-16-be", certain=False)
    return None


def decode(raw: bytes, encoding: str = "utf-8") -> tuple[str, tuple[str, str] | None]:
    """(text, None), or (text with U+FFFD in place of what is broken, problem naming the byte)."""
    try:
        return raw.decode(encoding), None
    except UnicodeDecodeError as error:
        byte = raw[error.start : error.start + 1].hex()
        return raw.decode(encoding, errors="replace"), (
            "wrong_encoding",
            f"byte 0x{byte} at position {error.start + 1} is not {encoding.removesuffix('-sig').upper()}"
            f" (near {raw[max(0, error.start - 20) : error.start].decode(encoding, errors='replace')!r})",
        )
