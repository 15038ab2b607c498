"""The preparation as a processing job: the request is what SageMaker takes, and the bytes are those made here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from iam import as_user
from tiny_encodings import encoding_of

from dataset.conftest import as_bytes, distinct
from llmtuner_kit import access, runs, uploads
from llmtuner_kit.dataset import Prepared, prepare, processing
from llmtuner_kit.dataset.sources import Listing, Stored
from llmtuner_kit.errors import JobFailedError
from llmtuner_kit.settings import PrepareSettings, StartSettings, UploadSettings
from llmtuner_kit.workspace import Workspace, open_workspace

PLAN = processing.Plan(
    job_name="prepare-lamps-1",
    role_arn="arn:aws:iam::000000000000:role/llmtuner-execution",
    image="763104351884.dkr.ecr.us-east-1.amazonaws.com/x:1",
    instance_type="ml.m5.2xlarge",
    volume_gb=30,
    max_runtime_seconds=7200,
    code_uri="s3://bucket/users/me/code/abc/",
    manifest_uri="s3://bucket/users/me/code/abc/manifest.json",
    output_uri="s3://bucket/users/me/datasets/lamps/job-abc",
    user_id="me",
    run_name="demo",
)

VPC = {"subnets": "subnet-0a1b2c3d", "security_groups": "sg-0123456789abcdef0"}


def test_the_request_is_one_that_sagemaker_takes() -> None:
    shape = (
        botocore.session.get_session().get_service_model("sagemaker").operation_model("CreateProcessingJob").input_shape
    )
    inside = dataclasses.replace(PLAN, vpc_config=PrepareSettings(**VPC).vpc_config)
    for plan in (PLAN, inside):
        report = ParamValidator().validate(processing.processing_job_request(plan), shape)
        assert not report.has_errors(), report.generate_report()
    assert "NetworkConfig" not in processing.processing_job_request(PLAN)
    network = processing.processing_job_request(inside)["NetworkConfig"]
    assert network["VpcConfig"] == {"SecurityGroupIds": ["sg-0123456789abcdef0"], "Subnets": ["subnet-0a1b2c3d"]}


def listing(*files: tuple[str, int]) -> Listing:
    stored = tuple(Stored(name, f"in/{name}", size, "e") for name, size in files)
    return Listing("lamps", "bucket", "in/", stored, ())


def test_the_manifest_names_the_files_and_no_others() -> None:
    one = Listing("lamps", "bucket", "in/a.jsonl", (Stored("a.jsonl", "in/a.jsonl", 5, "e"),), ())
    assert one.folder == "in/"
    assert listing(("a/b.jsonl", 5)).folder == "in/"


def test_what_the_job_installs_is_what_the_preparation_imports() -> None:
    found = {line.split(">")[0] for line in processing.requirements()}
    assert {"boto3", "pydantic", "pyarrow", "tokenizers", "pdfplumber"} <= found
    assert not {"torch", "papermill", "pytest"} & found


def objects(workspace: Workspace, prefix: str) -> dict[str, bytes]:
    client = workspace.aws.client("s3")
    listed = client.list_objects_v2(Bucket=workspace.bucket, Prefix=prefix).get("Contents", [])
    return {
        item["Key"].removeprefix(prefix): client.get_object(Bucket=workspace.bucket, Key=item["Key"])["Body"].read()
        for item in listed
    }


def prepared(workspace: Workspace, folder: Path, watch: processing.Watch | None = None, **settings: Any) -> Prepared:
    shared = {"run_name": "demo", "user_id": workspace.user_id}
    runs.open_run(workspace, "demo", create=True).save("start", settings={"model_id": "tiny-llama"})
    uploads.upload(workspace, UploadSettings(**shared, source=str(folder)))
    return prepare(workspace, PrepareSettings(**shared, **settings), watch)


@pytest.mark.slow
def test_a_processing_job_makes_the_bytes_that_are_made_here(cloud: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lamps"
    (folder / "deep").mkdir(parents=True)
    (folder / "rows.jsonl").write_bytes(as_bytes([*distinct(30), *distinct(4), {"instruction": "x", "output": ""}]))
    (folder / "deep" / "t.csv").write_text("ticket,reply\nIt blinks again and again,Please press the button for long\n")
    (folder / "README.md").write_text("What this folder is.\n")
    broken = b"no spreadsheet" * 100_000
    (folder / "book.xlsx").write_bytes(broken)
    one, two = (open_workspace(StartSettings(user_id=f"user-{uuid.uuid4().hex[:8]}")) for _ in range(2))
    here = prepared(one, folder)
    there = prepared(two, folder, compute="processing-job")
    assert here.version == there.version
    found = objects(one, one.paths.dataset("lamps", here.version))
    assert found == objects(two, two.paths.dataset("lamps", there.version))
    sha = hashlib.sha256(broken).hexdigest()
    original = f"rejected/{sha}"
    assert found[original] == broken
    assert there.card["files"][original] == sha
    assert there.report.originals == {original: len(broken)}
    assert [name for name, _ in there.report.left_out] == ["README.md"]
    assert not there.reused
    again = prepared(two, folder, compute="processing-job")
    assert again.reused
    assert again.report == there.report
    job = processing.described(two, _job_names(two)[0])
    assert job is not None
    assert job["ProcessingJobStatus"] == "Completed"
    noted = runs.open_run(two, "demo").noted("jobs")
    assert list(noted) == [job["ProcessingJobName"]]
    assert noted[job["ProcessingJobName"]]["quote"]["usd"][0] > 0


def test_a_job_belongs_to_the_run_that_started_it(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "lamps"
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(as_bytes(distinct(20)))
    seen: list[str] = []

    def stopped(what: str, done: int, total: int, note: str = "") -> None:
        seen.append(note)
        if note:  # the job has begun
            raise KeyboardInterrupt

    shared = {"user_id": workspace.user_id, "compute": "processing-job", "dataset": "lamps"}
    with as_user(workspace) as asked, pytest.raises(KeyboardInterrupt):
        prepared(workspace, folder, compute="processing-job", watch=stopped)
    assert "sagemaker:CreateProcessingJob" in asked
    assert "cost so far $0" in seen[-1]
    assert "here it costs nothing" in seen[-1]
    started = list(runs.open_run(workspace, "demo").noted("jobs"))
    assert started == _job_names(workspace)
    runs.open_run(workspace, "other", create=True).save("start", settings={"model_id": "tiny-llama"})
    source = workspace.paths.uri(workspace.paths.uploads("lamps"))
    with as_user(workspace):
        prepare(workspace, PrepareSettings(run_name="demo", **shared))
    assert list(runs.open_run(workspace, "demo").noted("jobs")) == started
    prepare(workspace, PrepareSettings(run_name="other", **shared, source=source))
    assert "other" not in str(runs.open_run(workspace, "other").noted("jobs"))


def _job_names(workspace: Workspace) -> list[str]:
    found = workspace.aws.client("sagemaker").list_processing_jobs()["ProcessingJobSummaries"]
    mark = access.user_mark(workspace.user_id)
    return [item["ProcessingJobName"] for item in found if item["ProcessingJobName"].endswith(mark)]


def test_what_the_user_can_put_right_comes_back_in_the_jobs_own_words(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "lamps"
    folder.mkdir()
    (folder / "t.csv").write_text("alpha,beta\nsome words here,other words there\n")
    with pytest.raises(JobFailedError, match="columns do not say"):
        prepared(workspace, folder, compute="processing-job")


def test_the_jobs_files_follow_from_content_alone(workspace: Workspace) -> None:
    encoding = encoding_of("tiny-llama")
    one = processing.job_files(PrepareSettings(run_name="a"), listing(("a.jsonl", 5)), encoding)
    two = processing.job_files(PrepareSettings(run_name="b", budget_usd=3), listing(("a.jsonl", 5)), encoding)
    assert one == two
    assert json.loads(one["manifest.json"]) == [{"prefix": "s3://bucket/in/"}, "a.jsonl"]
    assert processing.job_files(PrepareSettings(test_share=0.2), listing(("a.jsonl", 5)), encoding) != one
