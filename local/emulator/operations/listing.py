"""Pages, filters and order of the List operations."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from llmtuner_local.emulator.errors import validation

Document = dict[str, Any]


def page(
    documents: list[Document],
    params: dict[str, Any],
    *,
    name: str,
    output: str,
    summary: Callable[[Document], Document],
    status: str = "",
    default_order: str = "Descending",
) -> Document:
    """One page of summaries, and the token of the next.

    Args:
        name: the member that holds a document's name.
        status: the member that holds its status, where the operation can filter and sort by it.
    """
    keeps = _filter(params, name, status)
    found = [item for item in documents if keeps(item)] if keeps else list(documents)
    keys: dict[str, Callable[[Document], Any]] = {
        "Name": lambda item: (item[name],),
        "CreationTime": lambda item: (item["CreationTime"], item[name]),
        "Status": lambda item: (item.get(status, ""), item[name]),
    }
    found.sort(
        key=keys[params.get("SortBy", "CreationTime")], reverse=params.get("SortOrder", default_order) == "Descending"
    )
    start = _offset(params.get("NextToken"))
    size = params.get("MaxResults", 10)
    answer: Document = {output: [summary(item) for item in found[start : start + size]]}
    if start + size < len(found):
        answer["NextToken"] = base64.urlsafe_b64encode(json.dumps({"offset": start + size}).encode()).decode()
    return answer


def _offset(token: str | None) -> int:
    if not token:
        return 0
    try:
        return int(json.loads(base64.urlsafe_b64decode(token))["offset"])
    except (ValueError, KeyError, TypeError):
        raise validation("Invalid NextToken.") from None


def _filter(params: dict[str, Any], name: str, status: str) -> Callable[[Document], bool] | None:
    """The filters of a request as one question; None when it asks for everything, as most do."""
    part = params.get("NameContains", "").lower()
    wanted = params.get("StatusEquals") if status else None
    bounds = [
        (member, side, epoch(params[f"{member}{side}"], 0.0))
        for member in ("CreationTime", "LastModifiedTime")
        for side in ("After", "Before")
        if f"{member}{side}" in params
    ]
    if not part and wanted is None and not bounds:
        return None

    def keeps(item: Document) -> bool:
        if part not in item[name].lower() or (wanted is not None and item.get(status) != wanted):
            return False
        for member, side, bound in bounds:
            moment: float = item[member] if member in item else item["CreationTime"]
            if (moment < bound) if side == "After" else (moment > bound):
                return False
        return True

    return keeps


def epoch(value: Any, default: float) -> float:
    """Epoch seconds of a timestamp on the wire (a number, or ISO text)."""
    if value is None:
        return default
    if isinstance(value, int | float):
        return float(value)
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        raise validation(f"'{value}' is not a valid timestamp.") from None


def pick(*names: str) -> Callable[[Document], Document]:
    """A summary that takes some members of a document."""
    return lambda item: {name: item[name] for name in names if name in item}
