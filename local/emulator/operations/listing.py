"""Pages, filters and order of the List operations."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime
from operator import itemgetter
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
    found = [item for item in documents if keeps(item)] if keeps else documents
    member = {"Name": name, "Status": status}.get(params.get("SortBy", "CreationTime"), "CreationTime")
    descending = params.get("SortOrder", default_order) == "Descending"
    shown, token = cut(found, params, itemgetter(member), itemgetter(name), descending=descending)
    answer: Document = {output: [summary(item) for item in shown]}
    if token:
        answer["NextToken"] = token
    return answer


def cut(
    found: list[Document],
    params: dict[str, Any],
    value: Callable[[Document], Any],
    name: Callable[[Document], str],
    *,
    descending: bool,
    size: int = 10,
) -> tuple[list[Document], str]:
    """The page a request asks for, and the token of the next ("" on the last).

    Args:
        found: in the order of creation, which decides between equal values.
        value: what to sort by.
        name: what tells a document from all others.
        size: documents on a page when the request does not say.

    A token says which document was the last one shown, so what comes or goes meanwhile shifts nothing.
    """
    found.sort(key=value, reverse=descending)
    start = _start(found, _last(params["NextToken"]), value, name, descending) if "NextToken" in params else 0
    shown = found[start : start + params.get("MaxResults", size)]
    if start + len(shown) >= len(found) or not shown:
        return shown, ""
    return shown, base64.urlsafe_b64encode(json.dumps([value(shown[-1]), name(shown[-1])]).encode()).decode()


def _start(
    found: list[Document],
    last: list[Any],
    value: Callable[[Document], Any],
    name: Callable[[Document], str],
    descending: bool,
) -> int:
    """Where the page after the last document starts; that one may be gone by now."""
    for number, item in enumerate(found):
        if name(item) == last[1]:
            return number + 1
    try:
        for number, item in enumerate(found):
            if value(item) <= last[0] if descending else value(item) >= last[0]:
                return number
    except TypeError:  # a token of a list that was sorted by something else
        raise validation("Invalid NextToken.") from None
    return len(found)


def _last(token: str) -> list[Any]:
    try:
        found = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        raise validation("Invalid NextToken.") from None
    if not isinstance(found, list) or len(found) != 2:
        raise validation("Invalid NextToken.")
    return found


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
