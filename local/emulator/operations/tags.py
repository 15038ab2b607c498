"""Tags, kept beside the resources by ARN."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import validation
from llmtuner_local.emulator.operations import listing

KIND = "tags"
LIMIT = 50


def check(tags: list[dict[str, str]]) -> None:
    """Refuse tags that only AWS may set; asked of every request that brings tags, before anything is made."""
    if any(item["Key"].lower().startswith("aws:") for item in tags):
        raise validation("aws: prefixed tag key names are not allowed for external use.")


def put(context: Context, arn: str, tags: list[dict[str, str]]) -> list[dict[str, str]]:
    """Add tags to what an ARN has; returns all of them."""
    known = dict((context.store.get(KIND, arn) or {}).get("tags", {}))
    known |= {item["Key"]: item["Value"] for item in tags}
    if len(known) > LIMIT:
        raise validation(f"The number of tags for {arn} would be {len(known)}; the limit is {LIMIT}.")
    if known:
        context.store.put(KIND, arn, {"tags": known})
    return _pairs(known)


def of(context: Context, arn: str) -> list[dict[str, str]]:
    """The tags of an ARN."""
    return _pairs((context.store.get(KIND, arn) or {}).get("tags", {}))


def drop(context: Context, arn: str) -> None:
    """Forget the tags of a deleted resource."""
    context.store.delete(KIND, arn)


def _pairs(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def add(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    _require(context, params["ResourceArn"])
    return {"Tags": put(context, params["ResourceArn"], params["Tags"])}


def list_tags(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    _require(context, params["ResourceArn"])
    found = of(context, params["ResourceArn"])
    shown, token = listing.cut(found, params, itemgetter("Key"), itemgetter("Key"), descending=False, size=LIMIT)
    return {"Tags": shown, **({"NextToken": token} if token else {})}


def delete(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    arn = params["ResourceArn"]
    _require(context, arn)
    known = dict((context.store.get(KIND, arn) or {}).get("tags", {}))
    for key in params["TagKeys"]:
        known.pop(key, None)
    context.store.put(KIND, arn, {"tags": known})
    return {}


def _require(context: Context, arn: str) -> None:
    """The resource of an ARN must exist; its name is lower-cased there, so it is looked up by the ARN."""
    kind = arn.partition(":sagemaker:")[2].split(":")[-1].partition("/")[0]
    member = "".join(word.capitalize() for word in kind.split("-")) + "Arn"  # endpoint-config: EndpointConfigArn
    if not any(item.get(member) == arn for item in context.store.all(kind)):
        raise validation(f"Could not find resource {arn}.")
