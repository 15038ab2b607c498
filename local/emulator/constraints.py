"""What a service model asks of values (required members, lengths, ranges, patterns, enums), in AWS's words."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import regex
from botocore.model import ListShape, MapShape, Shape, StructureShape

_NUMBERS = {"integer", "long", "double", "float"}
_MOST = 10  # AWS lists no more
_SHOWN = 300
_PATTERN_SECONDS = 0.5


def broken(shape: Shape, value: Any, path: str = "") -> list[str]:
    """Every constraint that does not hold, e.g. `Value 'a_b' at 'modelName' failed to satisfy constraint: ...`."""
    found: list[str] = []
    _check(shape, value, path, found)
    return found[:_MOST]


def _check(shape: Shape, value: Any, path: str, found: list[str]) -> None:
    if isinstance(shape, StructureShape):
        for name in shape.required_members:
            if name not in value:
                found.append(_text(None, _join(path, name), "Member must not be null"))
        members = shape.members
        for name, item in value.items():
            _check(members[name], item, _join(path, name), found)
    elif isinstance(shape, ListShape):
        _add(_sizes(shape, len(value), "length"), value, path, found)
        if isinstance(shape.member, StructureShape | ListShape | MapShape):
            for number, item in enumerate(value, 1):
                _check(shape.member, item, f"{path}.{number}.member", found)
        else:
            _check_all(shape.member, value, "Member", value, path, found)
    elif isinstance(shape, MapShape):
        _add(_sizes(shape, len(value), "length"), value, path, found)
        _check_all(shape.key, list(value), "Map keys", value, path, found)
        if isinstance(shape.value, StructureShape | ListShape | MapShape):
            for name, item in value.items():
                _check(shape.value, item, f"{path}.{name}.member", found)
        else:
            _check_all(shape.value, list(value.values()), "Map value", value, path, found)
    else:
        _add(_of_scalar(shape, value), value, path, found)


def _check_all(shape: Shape, items: list[Any], what: str, whole: Any, path: str, found: list[str]) -> None:
    """Items of a list or map: AWS shows the whole, and every constraint of an item."""
    if any(_of_scalar(shape, item) for item in items):
        found.append(_text(whole, path, f"{what} must satisfy constraint: [{', '.join(_all_of(shape))}]"))


def _of_scalar(shape: Shape, value: Any) -> list[str]:
    if shape.type_name in _NUMBERS:
        return _sizes(shape, value, "value")
    if shape.type_name != "string":
        return []
    allowed = shape.metadata.get("enum")
    if allowed:
        return [] if value in allowed else [_enum(allowed)]
    problems = _sizes(shape, len(value), "length")
    pattern = shape.metadata.get("pattern")
    if pattern and not matches(pattern, value):
        problems.append(_pattern(pattern))
    return problems


def _sizes(shape: Shape, size: float, what: str) -> list[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if high is not None and size > high:
        return [f"Member must have {what} less than or equal to {high}"]
    if low is not None and size < low:
        return [f"Member must have {what} greater than or equal to {low}"]
    return []


def _all_of(shape: Shape) -> list[str]:
    found = []
    what = "value" if shape.type_name in _NUMBERS else "length"
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if high is not None:
        found.append(f"Member must have {what} less than or equal to {high}")
    if low is not None:
        found.append(f"Member must have {what} greater than or equal to {low}")
    if pattern := shape.metadata.get("pattern"):
        found.append(_pattern(pattern))
    if allowed := shape.metadata.get("enum"):
        found.append(_enum(allowed))
    return found


def matches(pattern: str, value: str) -> bool:
    """Whether the whole value satisfies a pattern of a service model."""
    try:
        return _compiled(pattern).fullmatch(value, timeout=_PATTERN_SECONDS) is not None
    except TimeoutError:
        return False


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> regex.Pattern[str]:
    # Java's patterns: the standard library does not know \p{L}, and characters beyond 16 bits are surrogates there.
    return regex.compile(pattern.replace(r"\uD800\uDC00-\uDBFF\uDFFF", r"\U00010000-\U0010FFFF"))


def _add(constraints: list[str], value: Any, path: str, found: list[str]) -> None:
    found += [_text(value, path, item) for item in constraints]


def _join(path: str, name: str) -> str:
    lower = name[:1].lower() + name[1:]
    return f"{path}.{lower}" if path else lower


def _enum(allowed: list[str]) -> str:
    return f"Member must satisfy enum value set: [{', '.join(allowed)}]"


def _pattern(pattern: str) -> str:
    return f"Member must satisfy regular expression pattern: {pattern}"


def _text(value: Any, path: str, constraint: str) -> str:
    quoted = "null" if value is None else f"'{_shown(value)[:_SHOWN]}'"
    return f"Value {quoted} at '{path}' failed to satisfy constraint: {constraint}"


def _shown(value: Any) -> str:
    """A value as Java prints it, which is what AWS shows."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}={_shown(item)}" for name, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
