"""What is refused at the door, before anything is read or done: foreign hosts, web pages, sizes, unsigned requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_LIMIT = 64 * 1024  # all header lines of a request together, and its address
OPERATION_LIMIT = 4 * 1024 * 1024  # the body of an operation; the largest real ones have a few hundred KB
_LOCAL_HOSTS = {"127.0.0.1", "localhost", "::1"}
_SIGNATURE = re.compile(r"AWS4-(HMAC-SHA256|ECDSA-P256-SHA256) (.+)")
_SCOPE = re.compile(r"[^/\s]+/\d{8}(/[a-z0-9-]+)?/[a-z0-9-]+/aws4_request")


@dataclass(frozen=True)
class Refusal:
    """An answer of the gate. `code` empty: plain text, for what is no AWS request at all."""

    status: int
    message: str
    code: str = ""


def oversized(headers: list[tuple[bytes, bytes]], query: str) -> Refusal | None:
    """Header lines that nobody needs."""
    if sum(len(name) + len(value) for name, value in headers) + len(query) > HEADER_LIMIT:
        return Refusal(431, "The headers of the request are too large.\n")
    return None


def foreign(headers: Mapping[str, str]) -> Refusal | None:
    """A page in a browser may reach a loopback port under a name of its own (DNS rebinding), or post to it blindly."""
    if _name(f"//{headers.get('host', '')}") not in _LOCAL_HOSTS:
        return Refusal(403, "Only local host names are answered.\n")
    origin = headers.get("origin")
    if origin is not None and _name(origin) not in _LOCAL_HOSTS:
        return Refusal(403, "Web pages of other hosts are not answered.\n")
    return None


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def unsigned(headers: Mapping[str, str], query: str, service: str) -> Refusal | None:
    """What is wrong with the form of a request's signature. Signatures themselves are not computed: keys are dummies."""
    given = headers.get("authorization", "")
    if not given:
        if "X-Amz-Signature=" in query and "X-Amz-Credential=" in query:
            return None
        return Refusal(403, "Missing Authentication Token", "MissingAuthenticationTokenException")
    found = _SIGNATURE.fullmatch(given)
    if found is None:
        return Refusal(
            403, f"Unsupported AWS 'algorithm': '{given.split(' ')[0][:40]}'.", "IncompleteSignatureException"
        )
    parts = dict(part.strip().partition("=")[::2] for part in found.group(2).split(","))
    missing = [
        f"Authorization header requires '{name}' parameter."
        for name in ("Credential", "Signature", "SignedHeaders")
        if not parts.get(name)
    ]
    if missing:
        return Refusal(403, f"{' '.join(missing)} Authorization={given[:60]}", "IncompleteSignatureException")
    if not _SCOPE.fullmatch(parts["Credential"]):
        text = f"Credential must have exactly 5 slash-delimited elements, got '{parts['Credential'][:80]}'"
        return Refusal(403, text, "IncompleteSignatureException")
    if parts["Credential"].split("/")[-2] != service:
        text = f"Credential should be scoped to correct service: '{service}'."
        return Refusal(403, text, "InvalidSignatureException")
    return None


class BoundedProtocol(HttpToolsProtocol):
    """HTTP with an end to headers: neither uvicorn nor httptools has one."""

    _head = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head < 0:  # between the headers of one request and the start of the next
            return
        self._head += len(data)
        if self._head > HEADER_LIMIT and not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
            self.transport.close()

    def on_message_begin(self) -> None:
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head = -1
        super().on_headers_complete()
