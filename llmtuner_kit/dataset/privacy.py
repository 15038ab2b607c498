"""Personal data and secrets in text: found by form, checked by their own check digits, masked when asked."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hit:
    """One find: kind of defect, and where in the text (from, to)."""

    kind: str
    start: int
    end: int


_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
# International form, or a national one in at least three groups; a run of digits alone is not a phone number.
_PHONE = re.compile(
    r"(?<![\w+.,/-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?(?:\d{1,4}[ .-]?){2,5}\d{2,4}"
    r"|\(\d{2,5}\)[ .-]?\d{3,4}[ .-]?\d{3,4}|\d{3}[ .-]\d{3}[ .-]\d{4}|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5})"
    r"(?![\w/-]|[.,]\d)"
)
_CARD = re.compile(r"(?<![\w.,-])(?:\d[ -]?){12,18}\d(?![\w-]|[.,]\d)")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]\d|\w)")
_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[\s\S]{0,20000}?(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|\Z)"
    r"|(?<!\w)(?:AKIA|ASIA)[A-Z0-9]{16}(?!\w)"
    r"|(?<!\w)(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{36,251}(?!\w)|(?<!\w)github_pat_\w{22,255}"
    r"|(?<!\w)(?:sk|pk|rk)[-_](?:live|test|proj|ant|or)?[-_]?[A-Za-z0-9_-]{20,200}(?!\w)|(?<!\w)hf_[A-Za-z0-9]{30,60}(?!\w)"
    r"|(?<!\w)xox[abeoprs]-[A-Za-z0-9-]{10,250}|(?<!\w)AIza[A-Za-z0-9_-]{35}(?![\w-])|(?<!\w)glpat-[\w-]{20,60}"
    r"|(?<!\w)eyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,2000}"
    r"|(?i:\b(?:password|passwd|pwd|api[ _-]?key|secret[ _-]?key|access[ _-]?token)\b[\"']?\s*(?:=|:|is)\s*)"
    r"(?P<value>[\"']?(?=\S*[\d!@#$%^&*])[^\s\"',;]{8,200})"
)
_PLACEHOLDER = {
    "email": "[EMAIL]",
    "phone": "[PHONE]",
    "card_number": "[CARD]",
    "iban": "[IBAN]",
    "ip_address": "[IP]",
    "secret": "[SECRET]",
}


def find(text: str) -> list[Hit]:
    """Everything found in a text, in order, not overlapping; on overlap the more serious kind wins."""
    hits: list[Hit] = []
    for kind, needed, pattern, accepted in _SEARCHES:
        if not needed(text):
            continue
        for match in pattern.finditer(text):
            start, end = match.span("value") if kind == "secret" and match.group("value") else match.span()
            if accepted(match.group()) and not any(start < hit.end and hit.start < end for hit in hits):
                hits.append(Hit(kind, start, end))
    return sorted(hits, key=lambda hit: hit.start)


def mask(text: str, hits: list[Hit]) -> str:
    """The text with each find replaced by its placeholder."""
    parts, position = [], 0
    for hit in hits:
        parts += [text[position : hit.start], _PLACEHOLDER[hit.kind]]
        position = hit.end
    return "".join([*parts, text[position:]])


def _luhn(text: str) -> bool:
    """Payment cards: 13 to 19 digits whose Luhn sum is a multiple of ten, from a range that cards use."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (2, 3, 4, 5, 6) or len(set(digits)) < 2:
        return False
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _iban(text: str) -> bool:
    """ISO 13616: the first four characters moved to the end, letters as numbers, remainder 1 of 97."""
    packed = text.replace(" ", "")
    if not 15 <= len(packed) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in packed[4:] + packed[:4])) % 97 == 1


def _phone(text: str) -> bool:
    return 8 <= sum(c.isdigit() for c in text) <= 15


def _public_address(text: str) -> bool:
    """An address that can point at somebody: not loopback, private, documentation or a version number like 1.2.3.4."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return address.is_global and not text.startswith(("0.", "1.", "2."))


def _always(_: str) -> bool:
    return True


_NUMBER = re.compile(r"\d[\d\W]")
# One of these stands in every secret the expression knows; asking for them is much faster than the expression.
_SIGNS = (
    "private key", "akia", "asia", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat", "sk-", "sk_", "pk-", "pk_",
    "rk-", "rk_", "hf_", "xox", "aiza", "glpat", "eyj", "passw", "pwd", "key", "token",
)  # fmt: skip


def _may_hold_secret(text: str) -> bool:
    lowered = text.lower()
    return any(sign in lowered for sign in _SIGNS)


# Cheap questions first: most texts have no @ and few have long numbers.
_SEARCHES: tuple[tuple[str, Callable[[str], object], re.Pattern[str], Callable[[str], bool]], ...] = (
    ("secret", _may_hold_secret, _SECRET, _always),
    ("email", lambda text: "@" in text, _EMAIL, _always),
    ("iban", _NUMBER.search, _IBAN, _iban),
    ("card_number", _NUMBER.search, _CARD, _luhn),
    ("ip_address", _NUMBER.search, _ADDRESS, _public_address),
    ("phone", _NUMBER.search, _PHONE, _phone),
)
