"""What is said to be deleted is deleted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from packed import tar

from llmtuner_kit import cleanup, runs, uploads
from llmtuner_kit.errors import AccessError
from llmtuner_kit.faces import standing
from llmtuner_kit.faces.parts import Table
from llmtuner_kit.settings import CleanupSettings, UploadSettings
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


def test_an_endpoint_that_is_to_stay_is_named_with_its_price(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.open_run(workspace, "demo", create=True)
    run.note("endpoints", "first", {"endpoint_name": "ep", "quote": {"usd_per_hour": 1.41}})
    monkeypatch.setattr(cleanup.endpoints, "described", lambda *_: {"EndpointStatus": "InService"})
    monkeypatch.setattr(cleanup.endpoints, "delete", lambda *_, **__: pytest.fail("deleted"))
    asked = CleanupSettings(run_name="demo", user_id=workspace.user_id, delete_endpoint=False)
    assert cleanup.clean_up(workspace, asked).kept == ("endpoint ep, which costs $1.41 an hour",)


def test_checkpoints_stay_until_the_job_has_written_its_model_or_that_is_deleted_too(workspace: Workspace) -> None:
    """A stopped job of a large model may leave nothing else of what was paid for."""
    run = runs.open_run(workspace, "demo", create=True)
    facts = {"kind": "training", "instance_type": "ml.g5.xlarge", "quote": {"usd": [0, 1]}}
    client, names = workspace.aws.client("s3"), ("written", "broken")
    for name in names:
        run.note("jobs", name, facts)
        client.put_object(Bucket=workspace.bucket, Key=workspace.paths.checkpoints(name) + "step-1/a", Body=b"x")
        output = tar({"manifest.json": b"{}"} if name == "written" else {}, "w:gz")
        client.put_object(Bucket=workspace.bucket, Key=workspace.paths.output_archive(name), Body=output)

    def left() -> list[str]:
        pages = [client.list_objects_v2(Bucket=workspace.bucket, Prefix=workspace.paths.checkpoints(n)) for n in names]
        return [name for name, page in zip(names, pages, strict=True) if page["KeyCount"]]

    asked = CleanupSettings(run_name="demo", user_id=workspace.user_id)
    done = cleanup.clean_up(workspace, asked)
    assert left() == ["broken"]
    assert [line for line in done.kept if line.startswith("checkpoints")] == [
        "checkpoints of broken: 1 object, under 0.1 MB"
    ]
    run.note(
        "jobs", "broken-2", facts | {"first_try": "broken"}
    )  # the next try, which goes on from there and ends well
    client.put_object(
        Bucket=workspace.bucket,
        Key=workspace.paths.output_archive("broken-2"),
        Body=tar({"manifest.json": b"{}"}, "w:gz"),
    )
    cleanup.clean_up(workspace, asked)
    assert left() == []
    client.put_object(Bucket=workspace.bucket, Key=workspace.paths.checkpoints("written") + "step-2/a", Body=b"x")
    cleanup.clean_up(workspace, asked.model_copy(update={"delete_model": True}))
    assert left() == []


def test_all_uploads_of_the_run_are_deleted_and_named_first_and_only_they(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def send(run_name: str, dataset: str, *names: str) -> None:
        folder = tmp_path / run_name / dataset
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).write_text('{"prompt": "x", "completion": "y"}\n')
        asked = UploadSettings(run_name=run_name, user_id=workspace.user_id, source=str(folder), dataset=dataset)
        uploads.upload(workspace, asked)

    def left() -> list[str]:
        pages = workspace.aws.client("s3").list_objects_v2(Bucket=workspace.bucket, Prefix=start)
        return [item["Key"].removeprefix(start) for item in pages.get("Contents", [])]

    start = workspace.paths.root + "uploads/"
    for run_name in ("demo", "other"):
        runs.open_run(workspace, run_name, create=True)
    send("demo", "tickets", "a.jsonl")
    send("demo", "tickets", "b.jsonl")
    send("demo", "manuals", "c.jsonl")
    send("other", "tickets", "b.jsonl", "d.jsonl")
    asked = CleanupSettings(run_name="demo", user_id=workspace.user_id)
    assert [line.partition(",")[0] for line in cleanup.clean_up(workspace, asked).kept] == [
        "uploads of tickets: 2 objects", "uploads of manuals: 1 object",
    ]  # fmt: skip
    assert len(left()) == 4
    asked = asked.model_copy(update={"delete_uploads": True})
    (table,) = standing.run()(asked).parts
    assert isinstance(table, Table)
    assert list(table.rows) == [("tickets", "a.jsonl"), ("tickets", "b.jsonl"), ("manuals", "c.jsonl")]
    done = cleanup.clean_up(workspace, asked)
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "Deleting the uploads of tickets: a.jsonl, b.jsonl.", "Deleting the uploads of manuals: c.jsonl.",
    ]  # fmt: skip
    assert [line.partition(",")[0] for line in done.removed] == [
        "uploads of tickets: 1 object", "uploads of manuals: 1 object",
    ]  # fmt: skip
    assert done.kept == ("uploads of tickets that other runs have made too: 1 object, under 0.1 MB",)
    assert left() == ["tickets/b.jsonl", "tickets/d.jsonl"]
    again = cleanup.clean_up(workspace, asked)
    assert (again.removed, again.kept, standing.run()(asked).parts) == ((), (), [])
    assert "tickets" not in capsys.readouterr().err
    cleanup.clean_up(workspace, asked.model_copy(update={"run_name": "other"}))
    assert left() == []


def test_the_upload_of_a_record_that_names_the_last_one_only_is_the_run_s_too(workspace: Workspace) -> None:
    run = runs.open_run(workspace, "demo", create=True)
    run.save("upload", result={"dataset": "tickets", "files": [{"name": "a.csv"}]})
    assert uploads.uploaded(run) == {"tickets": ["a.csv"]}
