"""What is wrong with settings, in words for people: one line for each of pydantic's errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ValidationError

from llmtuner_kit.errors import SettingsError


def problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Flatten pydantic's errors to `field: what is wrong (the value)`, one line each."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        cause = item.get("ctx", {}).get("error")
        text = _told(cause) if isinstance(cause, ValueError) else _plain(item["msg"])
        text = text.removeprefix(f"{where} ") if where else text
        if item["type"] == "extra_forbidden":
            text = no_setting(where, model.model_fields)
        shown = (
            f" (it is {item['input']!r})"
            if where and item["type"] not in ("extra_forbidden", "missing", "value_error")
            else ""
        )
        lines.append(f"{where}: {text}{shown}" if where else text)
    return lines


def _plain(message: str) -> str:
    """pydantic's words for people: `Input should be less than or equal to 1` -> `must be at most 1`."""
    for said, plain in (
        ("Input should", "must"),
        ("greater than or equal to", "at least"),
        ("less than or equal to", "at most"),
    ):
        message = message.replace(said, plain, 1)
    return message


def _told(cause: ValueError) -> str:
    """A problem in one line: what is wrong, what to do, and last what would be valid, which may be long."""
    if not isinstance(cause, SettingsError):
        return str(cause).replace("\n", " ")
    return f"{cause.problem.rstrip('.')}" + "".join(
        text for text in (cause.fix and f"; {cause.fix}", cause.valid and f" (valid: {cause.valid})") if text
    )


def no_setting(name: str, fields: Iterable[str]) -> str:
    """Says so of a name that is none of these, with the one that may have been meant."""
    near = difflib.get_close_matches(name, list(fields), n=1)
    return "there is no such setting" + (f"; did you mean {near[0]}?" if near else "")
