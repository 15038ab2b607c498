"""AWS's event stream encoding of a streamed answer."""

from __future__ import annotations

import json
import struct
from binascii import crc32
from collections.abc import Iterator


def _packed(headers: dict[str, str]) -> bytes:
    return b"".join(
        struct.pack("!B", len(name)) + name.encode() + b"\x07" + struct.pack("!H", len(value.encode())) + value.encode()
        for name, value in headers.items()
    )


def _message(packed: bytes, payload: bytes) -> bytes:
    """Lengths, checksum, headers, payload, checksum."""
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    message = prelude + struct.pack("!I", crc32(prelude)) + packed + payload
    return message + struct.pack("!I", crc32(message))


_PART = _packed({":event-type": "PayloadPart", ":content-type": "application/octet-stream", ":message-type": "event"})


def part(payload: bytes) -> bytes:
    """Some bytes of the container's answer."""
    return _message(_PART, payload)


def failure(message: str, code: str) -> bytes:
    """The stream's end by an error: ModelStreamError with ErrorCode ModelInvocationTimeExceeded or StreamBroken."""
    headers = {":exception-type": "ModelStreamError", ":content-type": "application/json", ":message-type": "exception"}
    return _message(_packed(headers), json.dumps({"Message": message, "ErrorCode": code}).encode())


def cut(payload: bytes, size: int) -> Iterator[bytes]:
    """Pieces of at most `size` bytes, whatever they hold; 0: the whole."""
    for start in range(0, len(payload), size or len(payload) or 1):
        yield payload[start : start + (size or len(payload))]
