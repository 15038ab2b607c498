"""Requests in, answers out, driven by botocore's own service models: nothing here knows one operation from another."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from botocore.loaders import Loader
from botocore.model import ListShape, MapShape, ServiceModel, Shape, StructureShape
from llmtuner_local.emulator import constraints
from llmtuner_local.emulator.errors import ServiceError, unknown_operation, validation

# What a client may send for a shape: Python types of its JSON, and the name AWS gives the type.
_SCALARS: dict[str, tuple[tuple[type, ...], str]] = {
    "string": ((str,), "a String"),
    "blob": ((str,), "a String"),
    "integer": ((int,), "an Integer"),
    "long": ((int,), "a Long"),
    "boolean": ((bool,), "a Boolean"),
    "double": ((int, float), "a Double"),
    "float": ((int, float), "a Float"),
    "timestamp": ((int, float, str), "a Timestamp"),
}
_LARGEST = {"integer": 2**31 - 1, "long": 2**63 - 1, "timestamp": 253_402_300_799}  # the last second of year 9999
_NESTED = (dict, list)
_ENCODER = json.JSONEncoder(separators=(",", ":"))


@lru_cache(maxsize=4)
def service_model(name: str) -> ServiceModel:
    """botocore's description of a service."""
    return ServiceModel(Loader().load_service_model(name, "service-2"), service_name=name)


def parse(service: str, operation: str, body: bytes) -> dict[str, Any]:
    """The checked input of an operation: members its shape knows, no nulls.

    Raises ServiceError with AWS's text: SerializationException for what is no JSON of this shape,
    ValidationException with every constraint that does not hold.
    """
    model = service_model(service)
    if operation not in model.operation_names:
        raise unknown_operation(operation)
    values = _decode(body)
    if not isinstance(values, dict):
        raise _unreadable("Unexpected field type")
    shape = model.operation_model(operation).input_shape
    if shape is None:
        return {}
    try:
        cleaned = _clean(shape, values)
        found = constraints.broken(shape, cleaned)
    except RecursionError:
        raise _unreadable("The request is nested too deeply.") from None
    if found:
        plural = "error" if len(found) == 1 else "errors"
        raise validation(f"{len(found)} validation {plural} detected: {'; '.join(found)}")
    return cleaned


def _unreadable(message: str) -> ServiceError:
    return ServiceError("SerializationException", message)


def _decode(body: bytes) -> Any:
    try:
        text = body.decode()
        values = json.loads(text or "{}", parse_constant=_no_number)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(values, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError):
        raise _unreadable("Could not parse request body into json.") from None
    return values


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _clean(shape: Shape, value: Any) -> Any:
    """The value with members that the shape knows; AWS ignores the others and takes null as not given."""
    if getattr(shape, "is_document_type", False):
        return value
    if isinstance(shape, StructureShape):
        _expect(value, dict)
        members = shape.members
        return {
            name: _clean(members[name], item) for name, item in value.items() if name in members and item is not None
        }
    if isinstance(shape, ListShape):
        _expect(value, list)
        return [_clean(shape.member, item) for item in value if item is not None]
    if isinstance(shape, MapShape):
        _expect(value, dict)
        return {name: _clean(shape.value, item) for name, item in value.items() if item is not None}
    types, name = _SCALARS[shape.type_name]
    if isinstance(value, list | dict):
        _expect(value, str)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise _unreadable(f"{_kind(value)}_VALUE can not be converted to {name}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _unreadable(f"NUMBER_VALUE can not be converted to {name}")
    largest = _LARGEST.get(shape.type_name)
    if largest is not None and isinstance(value, int | float) and abs(value) > largest:
        raise _unreadable(f"NUMBER_VALUE can not be converted to {name}")
    return value


def _expect(value: Any, wanted: type) -> None:
    if isinstance(value, wanted):
        return
    if isinstance(value, dict):
        raise _unreadable("Start of structure or map found where not expected.")
    if isinstance(value, list):
        raise _unreadable("Start of list found where not expected")
    raise _unreadable("Unexpected field type")


def _kind(value: Any) -> str:
    return {str: "STRING", bool: f"{value}".upper()}.get(type(value), "NUMBER")


def serialise(service: str, operation: str, answer: Mapping[str, Any] | None) -> bytes:
    """The body of a success: members the operation's output knows, empty ones left out as AWS does."""
    shape = service_model(service).operation_model(operation).output_shape
    if shape is None or not answer:
        return b"{}" if shape is not None else b""
    return _ENCODER.encode(_shaped(shape, answer)).encode()


def _shaped(shape: Shape, value: Any) -> Any:
    if isinstance(shape, StructureShape):
        members, required = shape.members, shape.required_members
        # An empty structure breaks SDK v3's typed resources; a required one must be there all the same.
        return {
            name: _shaped(members[name], item) if isinstance(item, _NESTED) else item
            for name, item in value.items()
            if item is not None and name in members and (item != {} or name in required)
        }
    if isinstance(shape, ListShape):
        return [_shaped(shape.member, item) for item in value]
    if isinstance(shape, MapShape):
        return {name: _shaped(shape.value, item) for name, item in value.items()}
    return value
