"""Search: resources by filters on their properties, tags, hyperparameters and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from llmtuner_local.emulator import wire
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import validation
from llmtuner_local.emulator.operations import endpoints, listing, models, tags, training_jobs

Document = dict[str, Any]
_NO_VALUE = ("Exists", "NotExists")
# Names whose Contains may be used several times; all others share one.
_CONTAINS_FREELY = ("Tags",)


def _training_jobs(context: Context) -> Iterator[Document]:
    for item in context.store.all(training_jobs.KIND):
        yield training_jobs.refresh(context, item)


def _endpoints(context: Context) -> Iterator[Document]:
    for item in context.store.all(endpoints.KIND):
        if endpoints.refresh(context, item):
            yield endpoints.describe(context, {"EndpointName": item["EndpointName"]})


def _models(context: Context) -> Iterator[Document]:
    for item in context.store.all(models.KIND):
        yield {"Model": item, "CreationTime": item["CreationTime"]}


# Resource -> (member of a result, its documents, where its ARN is). The others exist on AWS only: nothing is found.
_RESOURCES: dict[str, tuple[str, Callable[[Context], Iterator[Document]], Callable[[Document], str]]] = {
    "TrainingJob": ("TrainingJob", _training_jobs, lambda item: item["TrainingJobArn"]),
    "Endpoint": ("Endpoint", _endpoints, lambda item: item["EndpointArn"]),
    "Model": ("Model", _models, lambda item: item["Model"]["ModelArn"]),
}


def search(context: Context, params: Document) -> Document:
    expression = params.get("SearchExpression", {})
    _check(params["Resource"], expression)
    if params["Resource"] not in _RESOURCES:
        return {"Results": [], "TotalHits": {"Value": 0, "Relation": "EqualTo"}}
    member, documents, arn = _RESOURCES[params["Resource"]]
    found = []
    for item in documents(context):
        record = dict(item, Tags=tags.of(context, arn(item)))
        if _satisfies(record, expression):
            found.append(record)
    by = params.get("SortBy", "LastModifiedTime")
    descending = params.get("SortOrder", "Descending") == "Descending"
    shown, token = listing.cut(found, params, lambda item: _order(item, by), arn, descending=descending)
    answer: Document = {
        "Results": [{member: item} for item in shown],
        "TotalHits": {"Value": len(found), "Relation": "EqualTo"},
    }
    return answer | ({"NextToken": token} if token else {})


def _check(resource: str, expression: Document) -> None:
    filters = list(_all_filters(expression))
    known = _known_properties(resource)
    for item in filters:
        operator = item.get("Operator", "Equals")
        if operator not in _NO_VALUE and "Value" not in item:
            raise validation(f"The filter on {item['Name']} with operator {operator} needs a Value.")
        if known is not None and item["Name"].partition(".")[0] not in known:
            raise validation(f"Unknown property name: {item['Name']}.")
    counted = [
        item for item in filters if item.get("Operator") == "Contains" and not item["Name"].startswith(_CONTAINS_FREELY)
    ]
    if len(counted) > 1:
        raise validation("'CONTAINS' operator usage limit of 1 exceeded.")


def _known_properties(resource: str) -> set[str] | None:
    """The first words of names a filter may use; None for resources that only AWS has."""
    if resource not in _RESOURCES:
        return None
    record = wire.service_model("sagemaker").shape_for("SearchRecord").members[_RESOURCES[resource][0]]
    return {*record.members, "Metrics"}


def _all_filters(expression: Document) -> Iterator[Document]:
    yield from expression.get("Filters", [])
    for nested in expression.get("NestedFilters", []):
        yield from nested["Filters"]
    for part in expression.get("SubExpressions", []):
        yield from _all_filters(part)


def _satisfies(record: Document, expression: Document) -> bool:
    verdicts = [
        *(_holds(_values(record, item["Name"]), item) for item in expression.get("Filters", [])),
        *(_nested(record, item) for item in expression.get("NestedFilters", [])),
        *(_satisfies(record, item) for item in expression.get("SubExpressions", [])),
    ]
    return (any if expression.get("Operator") == "Or" and verdicts else all)(verdicts)


def _nested(record: Document, nested: Document) -> bool:
    """One element of a list that satisfies every filter; names start with the list's own."""
    name = nested["NestedPropertyName"]
    return any(
        all(
            _holds(_values(element, item["Name"].removeprefix(f"{name}.")) if isinstance(element, dict) else [], item)
            for item in nested["Filters"]
        )
        for element in _values(record, name, flat=False)
    )


def _values(record: Document, name: str, *, flat: bool = True) -> list[Any]:
    """What a record has at a dotted name; through lists, so there may be several."""
    first, _, rest = name.partition(".")
    if first == "Metrics":
        return [item["Value"] for item in record.get("FinalMetricDataList", []) if item["MetricName"] == rest]
    if first == "Tags" and rest:
        return [item["Value"] for item in record.get("Tags", []) if item["Key"] == rest]
    if first in ("HyperParameters", "Environment") and rest:
        found = record.get(first, {})
        return [found[rest]] if rest in found else []
    return list(_walk(record, name.split("."), flat))


def _walk(value: Any, path: list[str], flat: bool) -> Iterator[Any]:
    if isinstance(value, list):
        if not path and not flat:
            yield from value
            return
        for item in value:
            yield from _walk(item, path, flat)
    elif not path:
        yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from _walk(value[path[0]], path[1:], flat)


def _holds(values: list[Any], item: Document) -> bool:
    operator = item.get("Operator", "Equals")
    if operator == "Exists":
        return bool(values)
    if operator in ("NotExists", "NotEquals"):
        wanted = item.get("Value", "")
        return not values if operator == "NotExists" else not any(_equal(value, wanted) for value in values)
    return any(_OPERATORS[operator](value, item["Value"]) for value in values)


def _equal(value: Any, wanted: str) -> bool:
    if isinstance(value, bool):
        return str(value).lower() == wanted.lower()
    if isinstance(value, int | float):
        return value == _number(wanted)
    return bool(value == wanted)


def _compared(holds: Callable[[float, float], bool]) -> Callable[[Any, str], bool]:
    def compare(value: Any, wanted: str) -> bool:
        right, left = _number(wanted), _number(str(value))
        if right is None or left is None or isinstance(value, bool):
            return False
        # A hyperparameter is text: against a whole number its decimals do not count.
        whole = isinstance(value, str) and wanted.lstrip("+-").isdigit()
        return holds(float(math.trunc(left)) if whole else left, right)

    return compare


def _number(text: str) -> float | None:
    """A number, or the epoch seconds of an ISO 8601 moment; None for other texts."""
    try:
        found = float(text)
        return found if math.isfinite(found) else None
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


_OPERATORS: dict[str, Callable[[Any, str], bool]] = {
    "Equals": _equal,
    "GreaterThan": _compared(lambda left, right: left > right),
    "GreaterThanOrEqualTo": _compared(lambda left, right: left >= right),
    "LessThan": _compared(lambda left, right: left < right),
    "LessThanOrEqualTo": _compared(lambda left, right: left <= right),
    "Contains": lambda value, wanted: isinstance(value, str) and wanted in value,
    "In": lambda value, wanted: str(value) in [part.strip() for part in wanted.split(",")],
}


def _order(record: Document, by: str) -> list[Any]:
    """A key that sorts numbers before texts and what has no such property first."""
    values = _values(record, by) or (_values(record, "CreationTime") if by == "LastModifiedTime" else [])
    value = values[0] if values else None
    if isinstance(value, int | float):
        return [1, float(value), ""]
    return [0, 0.0, ""] if value is None else [2, 0.0, str(value)]
