"""Training jobs through boto3: they really run, and DescribeTrainingJob tells what SageMaker would."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from botocore.exceptions import ClientError
from emulator.conftest import BUCKET, ROLE, Cloud, channel, members
from ways import need_namespaces

from llmtuner_kit import aws as aws_module

FAST = "print('hello')"
WAITS = """
import signal, sys, time
def leave(*_):
    open("/opt/ml/model/saved.txt", "w").write("saved")
    print("asked to stop", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("waiting", flush=True)
while True:
    time.sleep(0.1)  # not for long: Python 3.14 begins it even when a signal came during print
"""


def test_job_runs_and_passes_through_sagemakers_states(emulator: Cloud) -> None:
    name = emulator.train(FAST)
    first = emulator.describe(name)
    assert first["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://{BUCKET}/out/{name}/output/model.tar.gz"
    job = emulator.ended(name)
    assert job["TrainingJobStatus"] == job["SecondaryStatus"] == "Completed"
    transitions = job["SecondaryStatusTransitions"]
    assert [item["Status"] for item in transitions] == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert [item["StatusMessage"] for item in transitions] == [
        "Preparing the instances for training",
        "Downloading input data",
        "Training image download completed. Training in progress.",
        "Uploading generated training model",
        "Training job completed",
    ]
    for before, after in pairwise(transitions):
        assert before["EndTime"] == after["StartTime"]
    assert transitions[-1]["EndTime"] == transitions[-1]["StartTime"] == job["TrainingEndTime"]
    assert job["BillableTimeInSeconds"] == job["TrainingTimeInSeconds"] >= 1
    assert job["TrainingJobArn"] == f"arn:aws:sagemaker:us-east-1:000000000000:training-job/{name}"


def test_container_finds_its_files_as_on_sagemaker(emulator: Cloud) -> None:
    source = """
import json, os, pathlib
config = pathlib.Path("/opt/ml/input/config")
seen = {item.name: json.loads(item.read_text()) for item in config.iterdir()}
seen["files"] = sorted(str(p.relative_to("/opt/ml/input/data")) for p in pathlib.Path("/opt/ml/input/data").rglob("*") if p.is_file())
seen["environment"] = {k: os.environ.get(k) for k in ("TRAINING_JOB_NAME", "TRAINING_JOB_ARN", "AWS_REGION", "MINE")}
pathlib.Path("/opt/ml/model/seen.json").write_text(json.dumps(seen))
"""
    emulator.put("data/a/train.jsonl", "{}")
    emulator.put("data/a/deep/er.txt", "x")
    name = emulator.train(
        source,
        channels=[channel("train", f"s3://{BUCKET}/data/a/")],
        HyperParameters={"epochs": "3", "quoted": '"text"'},
        Environment={"MINE": "yes"},
    )
    job = emulator.ended(name)
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    seen = json.loads(members(emulator, job["ModelArtifacts"]["S3ModelArtifacts"])["seen.json"])
    assert seen["hyperparameters.json"] == {"epochs": "3", "quoted": '"text"'}
    assert seen["inputdataconfig.json"]["train"] == {
        "TrainingInputMode": "File",
        "S3DistributionType": "FullyReplicated",
        "RecordWrapperType": "None",
    }
    resources = seen["resourceconfig.json"]
    assert resources["current_host"] == "algo-1"
    assert resources["hosts"] == ["algo-1"]
    assert resources["current_instance_type"] == "ml.g5.xlarge"
    assert resources["instance_groups"][0]["instance_group_name"] == "homogeneousCluster"
    assert seen["files"] == ["code/main.py", "train/deep/er.txt", "train/train.jsonl"]
    assert seen["environment"] == {
        "TRAINING_JOB_NAME": name,
        "TRAINING_JOB_ARN": job["TrainingJobArn"],
        "AWS_REGION": "us-east-1",
        "MINE": "yes",
    }


def test_log_is_complete_when_the_status_is_terminal(emulator: Cloud) -> None:
    name = emulator.train("import sys\nfor n in range(3000): print('line', n)\nprint('last', file=sys.stderr)")
    emulator.ended(name)
    lines = emulator.log(name)
    assert lines[0] == "line 0"
    assert lines[-1] == "last"
    streams = emulator.logs.describe_log_streams(
        logGroupName="/aws/sagemaker/TrainingJobs", logStreamNamePrefix=f"{name}/"
    )["logStreams"]
    assert [item["logStreamName"].startswith(f"{name}/algo-1-") for item in streams] == [True]


def test_failure_file_becomes_the_reason_and_output_is_kept(emulator: Cloud) -> None:
    source = """
import sys
open("/opt/ml/output/failure", "w").write("row 7 is not JSON " + "x" * 2000)
open("/opt/ml/output/data/report.txt", "w").write("evidence")
sys.exit(3)
"""
    job = emulator.ended(emulator.train(source))
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"].startswith("AlgorithmError: row 7 is not JSON")
    assert len(job["FailureReason"]) <= 1024
    assert job["SecondaryStatusTransitions"][-1]["StatusMessage"] == "Training job failed"
    uri = f"s3://{BUCKET}/out/{job['TrainingJobName']}/output/output.tar.gz"
    assert members(emulator, uri) == {"report.txt": b"evidence"}


def test_exit_code_without_failure_file_is_told(emulator: Cloud) -> None:
    job = emulator.ended(emulator.train("import os; os._exit(9)"))
    assert job["FailureReason"] == "AlgorithmError: , exit code: 9"


def test_metric_definitions_give_final_values_and_a_series(emulator: Cloud) -> None:
    source = "for n in (1, 2, 3): print(f'metric step={n} train_loss={3.5 - n}')\nprint('train_loss=nan')"
    definitions = [{"Name": "train_loss", "Regex": "train_loss=([-+0-9.eE]+|nan)"}]
    name = emulator.train(source, AlgorithmSpecification={"MetricDefinitions": definitions})
    job = emulator.ended(name)
    assert [(item["MetricName"], item["Value"]) for item in job["FinalMetricDataList"]] == [("train_loss", 0.5)]
    now = datetime.now(UTC)
    found = emulator.cloudwatch.get_metric_statistics(
        Namespace="/aws/sagemaker/TrainingJobs",
        MetricName="train_loss",
        Dimensions=[{"Name": "TrainingJobName", "Value": name}],
        StartTime=now - timedelta(hours=1),
        EndTime=now + timedelta(hours=1),
        Period=86400,
        Statistics=["SampleCount", "Minimum", "Maximum"],
    )["Datapoints"]
    assert sum(item["SampleCount"] for item in found) == 3
    assert min(item["Minimum"] for item in found) == 0.5


def test_stop_lets_the_job_save_and_keeps_what_it_saved(emulator: Cloud) -> None:
    name = emulator.train(WAITS)
    emulator.await_line(name, "waiting")
    assert emulator.sagemaker.stop_training_job(TrainingJobName=name)["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert emulator.describe(name)["TrainingJobStatus"] in ("Stopping", "Stopped")
    job = emulator.ended(name)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "Stopped")
    order = [item["Status"] for item in job["SecondaryStatusTransitions"]]
    assert order == ["Starting", "Downloading", "Training", "Stopping", "Uploading", "Stopped"]
    assert members(emulator, job["ModelArtifacts"]["S3ModelArtifacts"]) == {"saved.txt": b"saved"}
    assert "asked to stop" in emulator.log(name)


def test_stopping_an_ended_job_is_refused_in_awss_words(emulator: Cloud) -> None:
    name = emulator.train(FAST)
    emulator.ended(name)
    with pytest.raises(ClientError, match="rejected because the training job is in status Completed") as caught:
        emulator.sagemaker.stop_training_job(TrainingJobName=name)
    assert caught.value.response["Error"]["Code"] == "ValidationException"


def test_time_limit_stops_the_job_and_keeps_its_work(emulator: Cloud) -> None:
    job = emulator.ended(emulator.train(WAITS, StoppingCondition={"MaxRuntimeInSeconds": 1}))
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert "saved.txt" in members(emulator, job["ModelArtifacts"]["S3ModelArtifacts"])


def test_checkpoints_travel_both_ways(emulator: Cloud) -> None:
    emulator.put("checkpoints/x/step-1/weights", "old")
    source = """
import pathlib
folder = pathlib.Path("/opt/ml/checkpoints")
assert (folder / "step-1" / "weights").read_text() == "old"
(folder / "step-2").mkdir()
(folder / "step-2" / "weights").write_text("new")
"""
    job = emulator.ended(emulator.train(source, CheckpointConfig={"S3Uri": f"s3://{BUCKET}/checkpoints/x"}))
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    body = emulator.s3.get_object(Bucket=BUCKET, Key="checkpoints/x/step-2/weights")["Body"].read()
    assert body == b"new"


def test_uncompressed_output_is_a_prefix(emulator: Cloud) -> None:
    output = {"S3OutputPath": f"s3://{BUCKET}/out", "CompressionType": "NONE"}
    job = emulator.ended(emulator.train("open('/opt/ml/model/w.bin','w').write('1')", OutputDataConfig=output))
    uri = f"s3://{BUCKET}/out/{job['TrainingJobName']}/output/model/"
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == uri
    key = uri.removeprefix(f"s3://{BUCKET}/") + "w.bin"
    assert emulator.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"1"


def test_manifest_file_names_the_objects_of_a_channel(emulator: Cloud) -> None:
    for name in "abc":
        emulator.put(f"manifest/{name}.txt", name)
    uri = emulator.put("manifests/m.json", json.dumps([{"prefix": f"s3://{BUCKET}/manifest/"}, "a.txt", "c.txt"]))
    source = "import os; open('/opt/ml/model/n','w').write(','.join(sorted(os.listdir('/opt/ml/input/data/train'))))"
    job = emulator.ended(emulator.train(source, channels=[channel("train", uri, S3DataType="ManifestFile")]))
    assert members(emulator, job["ModelArtifacts"]["S3ModelArtifacts"])["n"] == b"a.txt,c.txt"


def test_job_cannot_see_the_state_of_the_cloud_nor_other_jobs(emulator: Cloud) -> None:
    need_namespaces()
    source = f"import os; print('seen', os.listdir({str(emulator.home)!r}))"
    name = emulator.train(source)
    emulator.ended(name)
    assert "seen []" in emulator.log(name)


def test_nothing_of_a_job_stays_running_or_on_disk(emulator: Cloud) -> None:
    source = "import subprocess; subprocess.Popen(['sleep', '3217']); print('left one behind')"
    name = emulator.train(source)
    emulator.ended(name)
    import psutil

    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "3217"]]
    assert not (emulator.home / "jobs" / name / "opt-ml").exists()


def test_names_are_unique_until_deleted(emulator: Cloud) -> None:
    name = emulator.train(FAST)
    with pytest.raises(ClientError, match="must be unique within an AWS account and region") as caught:
        emulator.train(FAST, TrainingJobName=name)
    assert caught.value.response["Error"]["Code"] == "ResourceInUse"
    emulator.ended(name)
    emulator.sagemaker.delete_training_job(TrainingJobName=name)
    with pytest.raises(ClientError, match="Requested resource not found") as caught:
        emulator.describe(name)
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    emulator.train(FAST, TrainingJobName=name)
    emulator.ended(name)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"TrainingJobName": "a_b"}, "at 'trainingJobName' failed to satisfy constraint: Member must satisfy regular"),
        (
            {"ResourceConfig": {"InstanceType": "local", "InstanceCount": 1, "VolumeSizeInGB": 1}},
            "Value 'local' at 'resourceConfig.instanceType' failed to satisfy constraint: Member must satisfy enum",
        ),
        (
            {
                "ResourceConfig": {
                    "InstanceType": "ml.g5.xlarge",
                    "InstanceCount": 1,
                    "VolumeSizeInGB": 1,
                    "VolumeKmsKeyId": "alias/mine",
                }
            },
            "KMS key is not supported for NVMe instance storage",
        ),
        (
            {"HyperParameters": {"k": "v" * 2501}},
            "at 'hyperParameters' failed to satisfy constraint: Map value must satisfy constraint: \\[Member must have length",
        ),
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60}},
            "only when EnableManagedSpotTraining",
        ),
        (
            {"AlgorithmSpecification": {"MetricDefinitions": [{"Name": "x", "Regex": "("}]}},
            "Invalid regular expression",
        ),
    ],
)
def test_what_aws_refuses_is_refused_in_its_words(emulator: Cloud, change: dict[str, object], text: str) -> None:
    with pytest.raises(ClientError, match=text) as caught:
        emulator.train(FAST, **change)
    assert caught.value.response["Error"]["Code"] == "ValidationException"


def test_channel_without_objects_is_refused_before_anything_runs(emulator: Cloud) -> None:
    with pytest.raises(ClientError, match='No S3 objects found under S3 URL "s3://emulator-tests/nothing/"'):
        emulator.train(FAST, channels=[channel("train", f"s3://{BUCKET}/nothing/")])


def test_role_must_exist_and_trust_sagemaker(emulator: Cloud) -> None:
    missing = "arn:aws:iam::000000000000:role/nobody-has-this"
    name = emulator.name("role")
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    iam = aws_module.connect("local").client("iam")
    other = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]
    for role in (missing, other, ROLE.replace("000000000000", "111111111111")):
        with pytest.raises(ClientError) as caught:
            emulator.train(FAST, RoleArn=role)
        assert caught.value.response["Error"]["Message"] == (
            f"Could not assume role {role}. Please ensure that the role exists and allows principal "
            "'sagemaker.amazonaws.com' to assume the role."
        )


def test_list_filters_sorts_and_pages(emulator: Cloud) -> None:
    mark = emulator.name("list")
    names = [f"{mark}-{n}" for n in range(5)]
    for name in names:
        emulator.train(FAST, TrainingJobName=name)
    for name in names:
        emulator.ended(name)
    found: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = emulator.sagemaker.list_training_jobs(
            NameContains=mark, MaxResults=2, SortBy="Name", SortOrder="Ascending", **token
        )
        assert len(page["TrainingJobSummaries"]) <= 2
        found += [item["TrainingJobName"] for item in page["TrainingJobSummaries"]]
        if "NextToken" not in page:
            break
        token = {"NextToken": page["NextToken"]}
    assert found == names
    newest = emulator.sagemaker.list_training_jobs(NameContains=mark, SortOrder="Descending", MaxResults=1)
    assert newest["TrainingJobSummaries"][0]["TrainingJobName"] == names[-1]
    assert not emulator.sagemaker.list_training_jobs(NameContains=mark, StatusEquals="Failed")["TrainingJobSummaries"]
    with pytest.raises(ClientError, match="NextToken"):
        emulator.sagemaker.list_training_jobs(NextToken="rubbish")


def test_tags_come_and_go(emulator: Cloud) -> None:
    name = emulator.train(FAST, Tags=[{"Key": "owner", "Value": "me"}])
    arn = emulator.ended(name)["TrainingJobArn"]
    emulator.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "a", "Value": "1"}, {"Key": "owner", "Value": "you"}])
    tags = emulator.sagemaker.list_tags(ResourceArn=arn)["Tags"]
    assert tags == [{"Key": "a", "Value": "1"}, {"Key": "owner", "Value": "you"}]
    emulator.sagemaker.delete_tags(ResourceArn=arn, TagKeys=["a"])
    assert emulator.sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "owner", "Value": "you"}]


def test_boto3s_waiter_is_content(emulator: Cloud) -> None:
    name = emulator.train(FAST)
    waiter = emulator.sagemaker.get_waiter("training_job_completed_or_stopped")
    waiter.wait(TrainingJobName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})


def test_operations_that_are_absent_are_named_and_never_retried(emulator: Cloud) -> None:
    with pytest.raises(ClientError, match="The requested operation is not supported in the called region") as caught:
        emulator.sagemaker.list_hyper_parameter_tuning_jobs()
    assert caught.value.response["Error"]["Code"] == "UnknownOperationException"
    assert caught.value.response["ResponseMetadata"]["RetryAttempts"] == 0
