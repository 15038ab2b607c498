"""An account without a service behind it: clients that answer as they are told to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from llmtuner_kit import access, endpoints
from llmtuner_kit.aws import Aws, ClientError
from llmtuner_kit.workspace import Workspace

Answers = dict[str, Any]


def refused(code: str, message: str = "why") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "Operation")


class Clients:
    """Every client of a workspace: answers by operation, as given, or with an empty answer; remembers what was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, list[tuple[str, Answers]]()

    def __getattr__(self, operation: str) -> Any:
        def call(**request: Any) -> Any:
            self.asked.append((operation, request))
            found = self.answers.get(operation, {})
            if callable(found):
                found = found(**request)
            if isinstance(found, Exception):
                raise found
            return found

        return call

    def get_paginator(self, operation: str) -> Any:
        return SimpleNamespace(paginate=lambda **request: (ask(**request) for ask in [getattr(self, operation)]))

    @property
    def workspace(self) -> Workspace:
        aws = SimpleNamespace(client=lambda _: self, region="us-east-1", charged=True)
        return Workspace(cast(Aws, aws), "bucket", "ada")

    def operations(self) -> list[str]:
        return [name for name, _ in self.asked]


def endpoint(name: str, status: str = "InService", *, instances: int = 1) -> Answers:
    variant = {"VariantName": "AllTraffic", "CurrentInstanceCount": instances, "DesiredInstanceCount": instances}
    return {
        "EndpointName": name, "EndpointArn": f"arn:{name}", "EndpointStatus": status, "EndpointConfigName": "config",
        "CreationTime": datetime.now(UTC), "ProductionVariants": [variant],
    }  # fmt: skip


def account(*found: Answers, over: bool = True, **answers: Any) -> Clients:
    """An account with these endpoints, all of user ada."""
    expires = datetime.now(UTC) + timedelta(hours=-1 if over else 1)
    tags = {access.OWNER_TAG: "ada", endpoints.EXPIRES_TAG: expires.isoformat()}
    named = {item["EndpointName"]: item for item in found}
    known = {
        "list_endpoints": {"Endpoints": list(found)},
        "list_tags": {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]},
        "describe_endpoint": lambda EndpointName: named.get(EndpointName, refused("ValidationException")),  # noqa: N803
        "describe_endpoint_config": {"ProductionVariants": [{"InstanceType": "ml.g5.xlarge"}]},
    }
    return Clients(**known | answers)
