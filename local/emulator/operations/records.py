"""What models and endpoint configurations share: documents under a name, made, looked at, listed and deleted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import not_found, validation
from llmtuner_local.emulator.operations import listing, tags


@dataclass(frozen=True)
class RecordKind:
    """What tells one kind from the other; its operations are the same for both."""

    kind: str  # in ARNs and in the store
    words: str  # in messages
    member: str  # how the members of its documents begin: Model in ModelName
    output: str  # the member of the List operation's answer

    def must_not_exist(self, context: Context, name: str) -> None:
        """A name may be used once."""
        if context.store.get(self.kind, name):
            raise validation(f'Cannot create already existing {self.words} "{context.arn(self.kind, name)}".')

    def put(self, context: Context, params: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
        """Keep a new document with the request's tags; the answer to its creation."""
        name = params[f"{self.member}Name"]
        arn = context.arn(self.kind, name)
        known = {f"{self.member}Name": name, f"{self.member}Arn": arn, "CreationTime": context.now()}
        context.store.put(self.kind, name, known | document)
        tags.put(context, arn, params.get("Tags", []))
        return {f"{self.member}Arn": arn}

    def require(self, context: Context, name: str) -> dict[str, Any]:
        """A document by name; AWS names it by its ARN when it is missing."""
        document = context.store.get(self.kind, name)
        if document is None:
            raise not_found(f'Could not find {self.words} "{context.arn(self.kind, name)}".')
        return document

    def describe(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        return self.require(context, params[f"{self.member}Name"])

    def list(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        name = f"{self.member}Name"
        summary = listing.pick(name, f"{self.member}Arn", "CreationTime")
        return listing.page(context.store.all(self.kind), params, name=name, output=self.output, summary=summary)

    def delete(self, context: Context, params: dict[str, Any]) -> dict[str, Any] | None:
        document = self.describe(context, params)
        context.store.delete(self.kind, document[f"{self.member}Name"])
        tags.drop(context, document[f"{self.member}Arn"])
        return None
