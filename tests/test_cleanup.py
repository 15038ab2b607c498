"""What is said to be deleted is deleted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmtuner_kit import cleanup
from llmtuner_kit.errors import AccessError
from llmtuner_kit.workspace import Workspace


def test_an_object_that_s3_keeps_is_named_although_the_request_succeeded() -> None:
    """DeleteObjects answers 200 and lists what it could not delete."""
    kept = {"Key": "users/ada/uploads/x/b.csv", "Code": "AccessDenied", "Message": "Access Denied"}

    class S3:
        def get_paginator(self, _: str) -> Any:
            page = {"Contents": [{"Key": f"users/ada/uploads/x/{name}.csv", "Size": 1} for name in "ab"]}
            return SimpleNamespace(paginate=lambda **_: [page])

        def delete_objects(self, **_: object) -> dict[str, Any]:
            return {"Errors": [kept]}

    workspace = cast(Workspace, SimpleNamespace(bucket="b", aws=SimpleNamespace(client=lambda _: S3())))
    assert cleanup._delete_prefix(workspace, "users/ada/uploads/x/", really=False) == (2, 2)
    with pytest.raises(AccessError, match=r"1 of 2 objects below users/ada/uploads/x/ .*b\.csv: Access Denied"):
        cleanup._delete_prefix(workspace, "users/ada/uploads/x/", really=True)


@pytest.mark.parametrize(
    ("size", "region", "told"),
    [
        (10_500_000_000, "us-east-1", ", $0.24 a month in S3"),
        (200_000_000, "us-east-1", ""),
        (10_500_000_000, "eu-south-2", ", which S3 bills by the month"),
    ],
)
def test_what_is_kept_is_told_with_what_it_costs_a_month(size: int, region: str, told: str) -> None:
    assert cleanup._storage(size, region) == told
