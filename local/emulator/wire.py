"""Requests in, answers out, driven by botocore's own service models: nothing here knows one operation from another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import regex
from botocore.loaders import Loader
from botocore.model import ListShape, MapShape, ServiceModel, Shape, StructureShape
from llmtuner_local.emulator.errors import ServiceError, unknown_operation, validation

_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "long": int,
    "boolean": bool,
    "double": (int, float),
    "float": (int, float),
    "timestamp": (int, float, str),
    "structure": dict,
    "map": dict,
    "list": list,
}


@lru_cache(maxsize=4)
def service_model(name: str) -> ServiceModel:
    """botocore's description of a service."""
    return ServiceModel(Loader().load_service_model(name, "service-2"), service_name=name)


def parse(service: str, operation: str, body: bytes) -> dict[str, Any]:
    """The checked input of an operation; raises ServiceError with AWS's text for what does not hold."""
    model = service_model(service)
    if operation not in model.operation_names:
        raise unknown_operation(operation)
    try:
        values = json.loads(body or b"{}")
    except ValueError:
        raise ServiceError("SerializationException", "The request body is not valid JSON.") from None
    if not isinstance(values, dict):
        raise ServiceError("SerializationException", "The request body is not a JSON object.")
    shape = model.operation_model(operation).input_shape
    if shape is None:
        return {}
    found = problems(shape, values)
    if found:
        plural = "error" if len(found) == 1 else "errors"
        raise validation(f"{len(found)} validation {plural} detected: {'; '.join(found)}")
    return values


def problems(shape: Shape, value: Any, path: str = "") -> list[str]:
    """What does not hold, in AWS's words, with AWS's lower-camel path; at most ten as AWS lists them."""
    found: list[str] = []
    _check(shape, value, path, found)
    return found[:10]


def _check(shape: Shape, value: Any, path: str, found: list[str]) -> None:
    kind = _TYPES.get(shape.type_name)
    if kind is not None and (not isinstance(value, kind) or (isinstance(value, bool) and shape.type_name != "boolean")):
        raise ServiceError("SerializationException", f"The value at {path or 'the top level'} has the wrong type.")
    if isinstance(shape, StructureShape):
        for name in shape.required_members:
            if value.get(name) is None:
                found.append(_text("null", _join(path, name), "Member must not be null"))
        for name, item in value.items():
            member = shape.members.get(name)
            if member is not None and item is not None:  # unknown members are ignored, as AWS does
                _check(member, item, _join(path, name), found)
    elif isinstance(shape, ListShape):
        _check_size(shape, value, path, found, "length")
        for number, item in enumerate(value, 1):
            _check(shape.member, item, f"{path}.{number}.member", found)
    elif isinstance(shape, MapShape):
        _check_size(shape, value, path, found, "length")
        for name, item in value.items():
            _check(shape.key, name, f"{path}.key", found)
            if item is not None:
                _check(shape.value, item, f"{path}.{name}.member", found)
    elif shape.type_name == "string":
        _check_string(shape, value, path, found)
    elif shape.type_name in ("integer", "long", "double", "float"):
        _check_size(shape, value, path, found, "value")


def _check_string(shape: Shape, value: str, path: str, found: list[str]) -> None:
    allowed = shape.metadata.get("enum")
    if allowed and value not in allowed:
        found.append(_text(value, path, f"Member must satisfy enum value set: [{', '.join(allowed)}]"))
        return
    _check_size(shape, value, path, found, "length")
    pattern = shape.metadata.get("pattern")
    if pattern and not _compiled(pattern).fullmatch(value):
        found.append(_text(value, path, f"Member must satisfy regular expression pattern: {pattern}"))


def _check_size(shape: Shape, value: Any, path: str, found: list[str], what: str) -> None:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    size = len(value) if what == "length" else value
    if high is not None and size > high:
        found.append(_text(value, path, f"Member must have {what} less than or equal to {high}"))
    elif low is not None and size < low:
        found.append(_text(value, path, f"Member must have {what} greater than or equal to {low}"))


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> regex.Pattern[str]:
    # Java's patterns: the standard library does not know \p{L}, and characters beyond 16 bits are surrogates there.
    return regex.compile(pattern.replace(r"\uD800\uDC00-\uDBFF\uDFFF", r"\U00010000-\U0010FFFF"))


def _join(path: str, name: str) -> str:
    lower = name[:1].lower() + name[1:]
    return f"{path}.{lower}" if path else lower


def _text(value: Any, path: str, constraint: str) -> str:
    shown = value if isinstance(value, str) else json.dumps(value)
    return f"Value '{shown[:300]}' at '{path}' failed to satisfy constraint: {constraint}"


def serialise(service: str, operation: str, answer: Mapping[str, Any] | None) -> bytes:
    """The body of a success: members the operation's output knows, empty ones left out as AWS does."""
    shape = service_model(service).operation_model(operation).output_shape
    if shape is None or not answer:
        return b"{}" if shape is not None else b""
    return json.dumps(_shaped(shape, answer), separators=(",", ":")).encode()


def _shaped(shape: Shape, value: Any) -> Any:
    if isinstance(shape, StructureShape):
        return {
            name: _shaped(member, value[name])
            for name, member in shape.members.items()
            if value.get(name) is not None and not _is_empty(name, value[name], shape)
        }
    if isinstance(shape, ListShape):
        return [_shaped(shape.member, item) for item in value]
    if isinstance(shape, MapShape):
        return {name: _shaped(shape.value, item) for name, item in value.items()}
    return value


def _is_empty(name: str, value: Any, shape: StructureShape) -> bool:
    # An empty structure breaks SDK v3's typed resources; a required one must be there all the same.
    return value == {} and name not in shape.required_members
