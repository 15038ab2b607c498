"""Search over training jobs, endpoints and models: filters, nesting, order, pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from emulator.inside import context as new_context
from emulator.inside import served
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import ServiceError
from llmtuner_local.emulator.operations import tags
from llmtuner_local.emulator.operations.search import search


def _fill(context: Context, count: int = 5) -> None:
    for n in range(count):
        name, arn = f"job-{n}", context.arn("training-job", f"job-{n}")
        uris = [f"s3://b/common/{name}", f"s3://b/{'odd' if n % 2 else 'even'}/x"]
        sources = [{"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}} for uri in uris]
        document = {
            "TrainingJobName": name, "TrainingJobArn": arn, "TrainingJobStatus": "Completed" if n else "Failed",
            "SecondaryStatus": "Completed", "CreationTime": 1000.0 + n, "LastModifiedTime": 2000.0 - n,
            "HyperParameters": {"lr": f"0.{n}", "epochs": f"{n}.7", "name": f"run {n}"},
            "FinalMetricDataList": [{"MetricName": "eval:loss", "Value": n / 2, "Timestamp": 1.0}],
            "InputDataConfig": [{"ChannelName": f"c{i}", "DataSource": source} for i, source in enumerate(sources)],
            "ModelArtifacts": {"S3ModelArtifacts": "s3://b/m"}, "StoppingCondition": {"MaxRuntimeInSeconds": 60},
            "SecondaryStatusTransitions": [], "EnableManagedSpotTraining": n == 3, "BillableTimeInSeconds": 10 * n,
        }  # fmt: skip
        if n != 2:
            document["FailureReason"] = "none"
        context.store.put("training-job", name, document)
        tags.put(context, arn, [{"Key": "team", "Value": "blue" if n < 3 else "red"}])


@pytest.fixture
def context(tmp_path: Path) -> Context:
    made = new_context(tmp_path)
    _fill(made)
    return made


def found(context: Context, *filters: tuple[str, str, str] | tuple[str, str], **more: Any) -> list[str]:
    expression = more.pop("expression", {})
    if filters:
        names = ("Name", "Operator", "Value")
        expression = {"Filters": [dict(zip(names, item, strict=False)) for item in filters]} | expression
    request = {"Resource": "TrainingJob", "SearchExpression": expression, "SortBy": "TrainingJobName"} | more
    request.setdefault("SortOrder", "Ascending")
    return [item["TrainingJob"]["TrainingJobName"].removeprefix("job-") for item in search(context, request)["Results"]]


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        (("TrainingJobName", "Equals", "job-1"), "1"),
        (("TrainingJobName", "NotEquals", "job-1"), "0234"),
        (("TrainingJobName", "Contains", "b-3"), "3"),
        (("TrainingJobName", "In", "job-1, job-4, job-9"), "14"),
        (("TrainingJobStatus", "Equals", "Failed"), "0"),
        (("FailureReason", "Exists"), "0134"),
        (("FailureReason", "NotExists"), "2"),
        (("EnableManagedSpotTraining", "Equals", "true"), "3"),
        (("BillableTimeInSeconds", "GreaterThan", "20"), "34"),
        (("BillableTimeInSeconds", "LessThanOrEqualTo", "20"), "012"),
        (("BillableTimeInSeconds", "Equals", "30.0"), "3"),
        (("CreationTime", "GreaterThanOrEqualTo", "1970-01-01T00:16:43Z"), "34"),
        (("CreationTime", "LessThan", "1001"), "0"),
        (("Metrics.eval:loss", "LessThan", "0.75"), "01"),
        (("Metrics.missing", "LessThan", "0.75"), ""),
        (("HyperParameters.name", "Equals", "run 4"), "4"),
        (("HyperParameters.lr", "LessThan", "0.25"), "012"),
        (("HyperParameters.epochs", "LessThanOrEqualTo", "2"), "012"),  # 2.7 counts as 2 against a whole number
        (("HyperParameters.epochs", "LessThanOrEqualTo", "2.5"), "01"),
        (("Tags.team", "Equals", "red"), "34"),
        (("InputDataConfig.DataSource.S3DataSource.S3Uri", "Contains", "/odd/"), "13"),
        (("StoppingCondition.MaxRuntimeInSeconds", "Equals", "60"), "01234"),
    ],
)  # fmt: skip
def test_filter_finds_what_it_says(context: Context, condition: tuple[str, str, str], names: str) -> None:
    assert "".join(found(context, condition)) == names


def test_filters_join_by_and_unless_or_is_asked(context: Context) -> None:
    two = (("Tags.team", "Equals", "blue"), ("TrainingJobStatus", "Equals", "Completed"))
    assert found(context, *two) == ["1", "2"]
    assert found(context, *two, expression={"Operator": "Or"}) == ["0", "1", "2", "3", "4"]
    parts = [{"Filters": [{"Name": "TrainingJobName", "Value": f"job-{n}"}]} for n in (0, 4)]
    assert found(context, expression={"SubExpressions": parts, "Operator": "Or"}) == ["0", "4"]
    assert found(context, expression={"SubExpressions": parts}) == []


def test_nested_filters_must_hold_for_one_element(context: Context) -> None:
    def nested(channel: str) -> dict[str, Any]:
        filters = [
            {"Name": "InputDataConfig.ChannelName", "Value": channel},
            {"Name": "InputDataConfig.DataSource.S3DataSource.S3Uri", "Operator": "Contains", "Value": "/even/"},
        ]
        return {"NestedFilters": [{"NestedPropertyName": "InputDataConfig", "Filters": filters}]}

    assert found(context, expression=nested("c1")) == ["0", "2", "4"]
    assert found(context, expression=nested("c0")) == []


def test_order_is_newest_change_first_unless_asked_otherwise(context: Context) -> None:
    plain = search(context, {"Resource": "TrainingJob"})
    assert [item["TrainingJob"]["TrainingJobName"][-1] for item in plain["Results"]] == ["0", "1", "2", "3", "4"]
    assert plain["TotalHits"] == {"Value": 5, "Relation": "EqualTo"}
    assert found(context, SortBy="Metrics.eval:loss", SortOrder="Descending") == ["4", "3", "2", "1", "0"]
    assert found(context, SortBy="HyperParameters.name", SortOrder="Ascending") == ["0", "1", "2", "3", "4"]


def test_pages_show_everything_once_also_while_jobs_come_and_go(context: Context) -> None:
    seen, token = [], {}
    request = {"Resource": "TrainingJob", "SortBy": "CreationTime", "SortOrder": "Ascending", "MaxResults": 2}
    while True:
        page = search(context, request | token)
        seen += [item["TrainingJob"]["TrainingJobName"] for item in page["Results"]]
        context.store.delete("training-job", "job-0")
        if "NextToken" not in page:
            break
        token = {"NextToken": page["NextToken"]}
    assert seen == [f"job-{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("filters", "text"),
    [
        ([("TrainingJobName", "Contains", "a"), ("RoleArn", "Contains", "b")], "'CONTAINS' operator usage limit of 1 exceeded."),
        ([("Colour", "Equals", "red")], "Unknown property name: Colour."),
        ([("TrainingJobName", "Equals")], "needs a Value"),
    ],
)  # fmt: skip
def test_bad_search_is_refused(context: Context, filters: list[Any], text: str) -> None:
    with pytest.raises(ServiceError, match=text):
        found(context, *filters)


def test_several_contains_on_tags_are_fine(context: Context) -> None:
    assert found(context, ("Tags.team", "Contains", "e"), ("Tags.team", "Contains", "d")) == ["3", "4"]


def test_search_speaks_with_boto3_and_shows_tags(tmp_path: Path) -> None:
    with served(tmp_path) as (made, client):
        _fill(made, 2)
        answer = client.search(
            Resource="TrainingJob", SearchExpression={"Filters": [{"Name": "Tags.team", "Value": "blue"}]}, MaxResults=1
        )
        job = answer["Results"][0]["TrainingJob"]
        assert job["Tags"] == [{"Key": "team", "Value": "blue"}]
        assert job["HyperParameters"]["name"] == "run 0"
        rest = client.search(Resource="TrainingJob", NextToken=answer["NextToken"])
        assert [item["TrainingJob"]["TrainingJobName"] for item in rest["Results"]] == ["job-1"]
        assert client.search(Resource="ModelPackage")["Results"] == []
