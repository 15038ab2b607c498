"""Processing jobs through boto3: inputs in, a program, outputs out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError, WaiterError
from emulator.conftest import BUCKET, ROLE, Cloud

GROUP = "/aws/sagemaker/ProcessingJobs"
ROOT = "/opt/ml/processing"
WAITS = """
import signal, sys, time
def leave(*_):
    open("/opt/ml/processing/out/saved.txt", "w").write("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("waiting", flush=True)
while True:
    time.sleep(0.1)  # not for long: Python 3.14 begins it even when a signal came during print
"""


def request(emulator: Cloud, source: str, **more: Any) -> dict[str, Any]:
    """A CreateProcessingJob request that runs a program."""
    code = entry("code", emulator.script(source) + "main.py", f"{ROOT}/code")
    return {
        "ProcessingJobName": emulator.name("processing"),
        "RoleArn": ROLE,
        "AppSpecification": {
            "ImageUri": "example/processing:1",
            "ContainerEntrypoint": ["python3", f"{ROOT}/code/main.py"],
        },
        "ProcessingInputs": [code, *more.pop("inputs", [])],
        "ProcessingOutputConfig": {"Outputs": more.pop("outputs", [])},
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceType": "ml.m5.large",
                "InstanceCount": more.pop("count", 1),
                "VolumeSizeInGB": 10,
            }
        },
        **more,
    }


def entry(name: str, uri: str, path: str, **more: str) -> dict[str, Any]:
    source = {"S3Uri": uri, "LocalPath": path, "S3DataType": "S3Prefix", "S3InputMode": "File"} | more
    return {"InputName": name, "S3Input": source}


def output(name: str, uri: str, mode: str = "EndOfJob") -> dict[str, Any]:
    return {"OutputName": name, "S3Output": {"S3Uri": uri, "LocalPath": f"{ROOT}/{name}", "S3UploadMode": mode}}


def run(emulator: Cloud, source: str, **more: Any) -> str:
    asked = request(emulator, source, **more)
    emulator.sagemaker.create_processing_job(**asked)
    return str(asked["ProcessingJobName"])


def ended(emulator: Cloud, name: str) -> dict[str, Any]:
    return emulator.until(
        lambda: emulator.sagemaker.describe_processing_job(ProcessingJobName=name),
        lambda job: job["ProcessingJobStatus"] in ("Completed", "Failed", "Stopped"),
    )


def lines(emulator: Cloud, name: str) -> list[str]:
    found = emulator.logs.filter_log_events(logGroupName=GROUP, logStreamNamePrefix=f"{name}/")["events"]
    return [item["message"] for item in found]


def keys(emulator: Cloud, prefix: str) -> dict[str, bytes]:
    found = emulator.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {
        item["Key"].removeprefix(prefix): emulator.s3.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
        for item in found
    }


def test_inputs_reach_the_program_and_outputs_reach_s3(emulator: Cloud) -> None:
    emulator.put("proc/in/a.txt", "a")
    emulator.put("proc/in/deep/b.txt", "b")
    manifest = emulator.put("proc/m.json", json.dumps([{"prefix": f"s3://{BUCKET}/proc/in/"}, "deep/b.txt"]))
    source = """
import json, os, pathlib, sys
root = pathlib.Path("/opt/ml/processing")
names = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
config = {p.name: json.loads(p.read_text()) for p in pathlib.Path("/opt/ml/config").iterdir()}
seen = {"names": names, "config": config, "arguments": sys.argv[1:], "mine": os.environ["MINE"]}
(root / "out/sub").mkdir()
(root / "out/sub/seen.json").write_text(json.dumps(seen))
pathlib.Path("/opt/ml/output/message").write_text("2 files read")
print("done")
"""
    asked = request(
        emulator,
        source,
        inputs=[
            entry("data", f"s3://{BUCKET}/proc/in", f"{ROOT}/data"),
            entry("listed", manifest, f"{ROOT}/listed", S3DataType="ManifestFile"),
        ],
        outputs=[output("out", f"s3://{BUCKET}/proc-out/whole")],
        Environment={"MINE": "yes"},
    )
    asked["AppSpecification"]["ContainerArguments"] = ["--rows", "7"]
    name = asked["ProcessingJobName"]
    arn = emulator.sagemaker.create_processing_job(**asked)["ProcessingJobArn"]
    emulator.sagemaker.get_waiter("processing_job_completed_or_stopped").wait(
        ProcessingJobName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 90}
    )
    job = ended(emulator, name)
    assert job["ProcessingJobStatus"] == "Completed"
    assert job["ExitMessage"] == "2 files read"
    assert job["CreationTime"] <= job["ProcessingStartTime"] <= job["ProcessingEndTime"]
    seen = json.loads(keys(emulator, "proc-out/whole/")["sub/seen.json"])
    assert seen["names"] == ["code/main.py", "data/a.txt", "data/deep/b.txt", "listed/deep/b.txt"]
    assert seen["arguments"] == ["--rows", "7"]
    assert seen["mine"] == "yes"
    assert seen["config"]["resourceconfig.json"] == {"current_host": "algo-1", "hosts": ["algo-1"]}
    told = seen["config"]["processingjobconfig.json"]
    assert (told["ProcessingJobArn"], told["ProcessingInputs"]) == (arn, asked["ProcessingInputs"])
    assert lines(emulator, name) == ["done"]
    assert not (emulator.home / "processing" / name / "opt-ml").exists()


def test_objects_are_shared_out_over_the_hosts(emulator: Cloud) -> None:
    for letter in "abcd":
        emulator.put(f"proc/shards/{letter}", letter)
    source = """
import json, os, pathlib
host = json.loads(open("/opt/ml/config/resourceconfig.json").read())["current_host"]
pathlib.Path("/opt/ml/processing/out", host).write_text(",".join(sorted(os.listdir("/opt/ml/processing/data"))))
"""
    shards = entry("data", f"s3://{BUCKET}/proc/shards/", f"{ROOT}/data", S3DataDistributionType="ShardedByS3Key")
    name = run(
        emulator, source, count=2, inputs=[shards], outputs=[output("out", f"s3://{BUCKET}/proc-out/{'shards'}")]
    )
    assert ended(emulator, name)["ProcessingJobStatus"] == "Completed"
    assert keys(emulator, "proc-out/shards/") == {"algo-1": b"a,c", "algo-2": b"b,d"}


def test_continuous_output_is_there_before_the_end_and_a_stop_keeps_it(emulator: Cloud) -> None:
    source = "open('/opt/ml/processing/live/early.txt', 'w').write('1')\n" + WAITS
    outputs = [
        output("live", f"s3://{BUCKET}/proc-out/live", "Continuous"),
        output("out", f"s3://{BUCKET}/proc-out/late"),
    ]
    name = run(emulator, source, outputs=outputs)
    emulator.until(lambda: keys(emulator, "proc-out/live/"), lambda found: found == {"early.txt": b"1"})
    assert emulator.sagemaker.describe_processing_job(ProcessingJobName=name)["ProcessingJobStatus"] == "InProgress"
    emulator.sagemaker.stop_processing_job(ProcessingJobName=name)
    job = ended(emulator, name)
    assert job["ProcessingJobStatus"] == "Stopped"
    assert keys(emulator, "proc-out/late/") == {"saved.txt": b"saved"}
    with pytest.raises(ClientError, match="rejected because the processing job is in status Stopped"):
        emulator.sagemaker.stop_processing_job(ProcessingJobName=name)


def test_failure_has_the_programs_own_words(emulator: Cloud) -> None:
    source = "open('/opt/ml/output/message', 'w').write('row 3 is empty'); raise SystemExit(4)"
    name = run(emulator, source)
    job = ended(emulator, name)
    assert job["ProcessingJobStatus"] == "Failed"
    assert job["FailureReason"] == "AlgorithmError: row 3 is empty, exit code: 4"
    assert job["ExitMessage"] == "row 3 is empty"
    with pytest.raises(WaiterError):
        emulator.sagemaker.get_waiter("processing_job_completed_or_stopped").wait(ProcessingJobName=name)


def test_time_limit_stops_the_job(emulator: Cloud) -> None:
    name = run(
        emulator,
        WAITS,
        outputs=[output("out", f"s3://{BUCKET}/proc-out/limit")],
        StoppingCondition={"MaxRuntimeInSeconds": 1},
    )
    assert ended(emulator, name)["ProcessingJobStatus"] == "Stopped"
    assert keys(emulator, "proc-out/limit/") == {"saved.txt": b"saved"}


def test_list_tags_and_delete(emulator: Cloud) -> None:
    name = run(emulator, "print('hi')", Tags=[{"Key": "owner", "Value": "me"}])
    job = ended(emulator, name)
    listed = emulator.sagemaker.list_processing_jobs(NameContains=name, StatusEquals="Completed")
    assert [item["ProcessingJobName"] for item in listed["ProcessingJobSummaries"]] == [name]
    tags = emulator.sagemaker.list_tags(ResourceArn=job["ProcessingJobArn"])["Tags"]
    assert tags == [{"Key": "owner", "Value": "me"}]
    emulator.sagemaker.delete_processing_job(ProcessingJobName=name)
    with pytest.raises(ClientError, match="Requested resource not found") as caught:
        emulator.sagemaker.describe_processing_job(ProcessingJobName=name)
    assert caught.value.response["Error"]["Code"] == "ValidationException"


def test_what_cannot_run_is_refused_before_it_starts(emulator: Cloud) -> None:
    def refused(match: str, **changes: Any) -> None:
        asked = request(emulator, "print('never')") | changes
        with pytest.raises(ClientError, match=match):
            emulator.sagemaker.create_processing_job(**asked)

    refused("neither ContainerEntrypoint nor ContainerArguments", AppSpecification={"ImageUri": "example/p:1"})
    refused("must begin with /opt/ml/processing/", ProcessingInputs=[entry("x", f"s3://{BUCKET}/code/", "/etc")])
    nothing = entry("x", f"s3://{BUCKET}/nothing-here/", f"{ROOT}/x")
    refused("No S3 objects found under S3 URL", ProcessingInputs=[nothing])
    refused("Could not assume role", RoleArn="arn:aws:iam::000000000000:role/nobody-has-this")
