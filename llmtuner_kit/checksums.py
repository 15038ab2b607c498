"""The checksums that S3 keeps with an object, computed from a local file.

S3 keeps one of the whole object (`FULL_OBJECT`), or one over the checksums of its parts (`COMPOSITE`, written
`...-n` for n parts): https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

PART = 16 << 20
MOST_PARTS = 10_000
_BLOCK = 1 << 20


class Digest(Protocol):
    """What hashlib's objects do."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class _Crc32:
    """zlib's CRC-32 with the interface of hashlib."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4)


# What checksums are made of, strongest first. CRC32C and CRC64NVME need a library of AWS's that the kit has no other use for.
_ALGORITHMS: Mapping[str, Callable[[], Digest]] = {
    "SHA256": hashlib.sha256,
    "SHA1": lambda: hashlib.sha1(usedforsecurity=False),
    "CRC32": _Crc32,
}
_SUMS = {**_ALGORITHMS, "MD5": lambda: hashlib.md5(usedforsecurity=False)}  # of ETags


def part_size(size: int) -> int:
    """Bytes in a part: 16 MiB, more only where S3's 10,000 parts would not hold the file. Depends on nothing else,
    so that the same file has the same checksum on every machine."""
    part = PART
    while part * MOST_PARTS < size:
        part *= 2
    return part


def sha256(data: bytes) -> str:
    """SHA-256 as S3 writes it: base64 of the digest."""
    return text(hashlib.sha256(data))


def new(algorithm: str) -> Digest:
    """A digest of one of S3's algorithms, to be fed."""
    return _SUMS[algorithm]()


def text(digest: Digest) -> str:
    """A digest as S3 writes it: base64."""
    return base64.b64encode(digest.digest()).decode()


def composite(checksums: list[str], algorithm: str = "SHA256") -> str:
    """The checksum of an object made of parts with these checksums."""
    digest = new(algorithm)
    for checksum in checksums:
        digest.update(base64.b64decode(checksum))
    return f"{text(digest)}-{len(checksums)}"


def checksum_of(path: Path) -> str:
    """The SHA-256 that S3 keeps for a file the kit has uploaded: of the bytes, or `...-n` over its n parts."""
    size = path.stat().st_size
    part = part_size(size)
    return _of_file(path, "SHA256", part if size > part else 0)


def of_object(head: Mapping[str, Any]) -> tuple[str, str]:
    """(algorithm, checksum) that an answer of S3 with ChecksumMode=ENABLED carries; ("", "") for none known here."""
    for algorithm in _ALGORITHMS:
        if found := head.get(f"Checksum{algorithm}"):
            return algorithm, str(found)
    return "", ""


def matches(path: Path, algorithm: str, checksum: str, part: int) -> bool:
    """Whether a file has a checksum that S3 keeps; `part` is the size of the object's first part in bytes."""
    return _of_file(path, algorithm, part if "-" in checksum else 0) == checksum


def has_etag(path: Path, etag: str, part: int) -> bool:
    """Whether a file has the ETag that S3 makes of MD5 sums: of its bytes, or `...-n` over those of its n parts."""
    made = _of_file(path, "MD5", part if "-" in etag else 0)
    digest, dash, count = made.partition("-")
    return base64.b64decode(digest).hex() + dash + count == etag


def _of_file(path: Path, algorithm: str, part: int) -> str:
    """The checksum of a file as one object (part 0), or made of parts of this size."""
    with path.open("rb") as file:
        if not part:
            return _digest(iter(lambda: file.read(_BLOCK), b""), algorithm)
        parts = []
        for _ in range(-(-path.stat().st_size // part)):
            parts.append(_digest(_blocks(file, part), algorithm))
    return composite(parts, algorithm)


def _blocks(file: Any, size: int) -> Iterator[bytes]:
    while size > 0 and (data := file.read(min(_BLOCK, size))):
        size -= len(data)
        yield data


def _digest(blocks: Iterator[bytes], algorithm: str) -> str:
    digest = new(algorithm)
    for data in blocks:
        digest.update(data)
    return text(digest)
