"""IAM's SimulatePrincipalPolicy with AWS's matching: wildcards, NotAction and NotResource, a deny wins.

LocalStack compares actions and resources letter by letter and needs ResourceArns, so that SageMaker's SDK, which asks
before each job whether the role may do its work, would refuse every role. Statements with a Condition are left out:
a simulation without context values cannot meet them.
"""

from __future__ import annotations

import fnmatch
import json
from typing import Any


def install() -> None:
    """Replace LocalStack's answer to SimulatePrincipalPolicy."""
    from localstack.services.iam import provider

    def simulate_principal_policy(
        _self: Any,
        context: Any,
        policy_source_arn: str,
        action_names: list[str],
        policy_input_list: list[str] | None = None,
        resource_arns: list[str] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        policies = provider.get_policies_from_principal(provider.get_iam_backend(context), policy_source_arn)
        found = statements([*policies, *(policy_input_list or [])])
        results = [
            {"EvalActionName": action, "EvalResourceName": resource, "EvalDecision": decision(found, action, resource)}
            for action in action_names
            for resource in resource_arns or ["*"]
        ]
        return {"IsTruncated": False, "EvaluationResults": results}

    provider.IamProvider.simulate_principal_policy = simulate_principal_policy


def statements(policies: list[str]) -> list[dict[str, Any]]:
    """The statements without condition of policy documents."""
    found = []
    for text in policies:
        content = json.loads(text)["Statement"]
        found += content if isinstance(content, list) else [content]
    return [item for item in found if not item.get("Condition")]


def decision(found: list[dict[str, Any]], action: str, resource: str) -> str:
    """`allowed`, `explicitDeny` or `implicitDeny`, as IAM evaluates statements of identity policies."""
    effects = {item["Effect"] for item in found if _concerns(item, action, resource)}
    if "Deny" in effects:
        return "explicitDeny"
    return "allowed" if "Allow" in effects else "implicitDeny"


def _concerns(statement: dict[str, Any], action: str, resource: str) -> bool:
    # Actions are compared without case, resources with it.
    return _element(statement, "Action", action.lower(), lower=True) and _element(statement, "Resource", resource)


def _element(statement: dict[str, Any], name: str, value: str, *, lower: bool = False) -> bool:
    negated = f"Not{name}" in statement
    listed = statement.get(f"Not{name}" if negated else name, [])
    patterns = [listed] if isinstance(listed, str) else listed
    hit = any(_like(item.lower() if lower else item, value) for item in patterns)
    return hit != negated


def _like(pattern: str, value: str) -> bool:
    return fnmatch.fnmatchcase(value, pattern.replace("[", "[[]"))  # IAM knows * and ? only
