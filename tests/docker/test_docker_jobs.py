"""Training jobs in containers through boto3: what SageMaker promises a container holds on a real engine."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
from typing import Any

from docker_cloud import docker
from emulator.conftest import BUCKET, channel

from llmtuner_kit import aws as aws_module


def members(engine: Any, uri: str) -> set[str]:
    body = engine.s3.get_object(Bucket=BUCKET, Key=uri.removeprefix(f"s3://{BUCKET}/"))["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        return {item.name for item in archive if item.isfile()}


def test_a_job_has_its_input_reaches_s3_and_leaves_logs_and_artifacts(engine: Any) -> None:
    source = """
import json, os, sys, urllib.request
print("arguments", sys.argv[1:])
print("dollar", os.environ["PRICE"])
print("rate", json.load(open("/opt/ml/input/config/hyperparameters.json"))["rate"])
print("rows", open("/opt/ml/input/data/train/rows.txt").read())
host = json.load(open("/opt/ml/input/config/resourceconfig.json"))
print("interface", host["network_interface_name"] in os.listdir("/sys/class/net"))
url = os.environ["AWS_ENDPOINT_URL_S3"] + "/_localstack/health"
print("s3", urllib.request.urlopen(url).status)
print("to stderr", file=sys.stderr)
open("/opt/ml/model/weights", "w").write("w")
open("/opt/ml/output/data/notes", "w").write("n")
open("/opt/ml/checkpoints/step-1", "w").write("c")
"""
    rows = engine.put("rows-docker/rows.txt", "12 lamps")
    name = engine.train(
        source,
        AlgorithmSpecification={"ContainerArguments": ["--price", "$HOME"]},
        channels=[channel("train", rows.rpartition("/")[0] + "/")],
        HyperParameters={"rate": "0.5"},
        Environment={"PRICE": "5$ and $PATH"},
        CheckpointConfig={"S3Uri": f"s3://{BUCKET}/checkpoints-docker/"},
    )
    job = engine.ended(name)
    assert job["TrainingJobStatus"] == "Completed", job
    told = engine.log(name)
    wanted = (
        "arguments ['--price', '$HOME']",
        "dollar 5$ and $PATH",
        "rate 0.5",
        "rows 12 lamps",
        "interface True",
        "s3 200",
    )
    for line in (*wanted, "to stderr"):
        assert line in told, told
    uri = job["ModelArtifacts"]["S3ModelArtifacts"]
    assert members(engine, uri) == {"weights"}
    assert members(engine, uri.replace("model.tar.gz", "output.tar.gz")) == {"notes"}
    assert engine.s3.get_object(Bucket=BUCKET, Key="checkpoints-docker/step-1")["Body"].read() == b"c"
    assert [item["Status"] for item in job["SecondaryStatusTransitions"]] == [
        "Starting", "Downloading", "Training", "Uploading", "Completed",
    ]  # fmt: skip
    # Another target is another way to run, not another cloud.
    plain = aws_module.connect("local").client("sagemaker")
    assert plain.describe_training_job(TrainingJobName=name)["TrainingJobStatus"] == "Completed"


def test_two_hosts_find_each_other_by_name(engine: Any) -> None:
    source = """
import json, socket, time
host = json.load(open("/opt/ml/input/config/resourceconfig.json"))["current_host"]
if host == "algo-1":
    with socket.create_server(("", 5000)) as server:
        peer, _ = server.accept()
        print("heard", peer.recv(100).decode())
else:
    while True:
        try:
            peer = socket.create_connection(("algo-1", 5000), timeout=5)
            break
        except OSError:
            time.sleep(0.1)
    peer.sendall(b"hello from " + host.encode())
open(f"/opt/ml/model/{host}", "w").write("w")
"""
    resources = {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10}
    name = engine.train(source, ResourceConfig=resources)
    job = engine.ended(name)
    assert job["TrainingJobStatus"] == "Completed", job
    assert "heard hello from algo-2" in engine.log(name)
    assert members(engine, job["ModelArtifacts"]["S3ModelArtifacts"]) == {"algo-1", "algo-2"}


def test_a_stopped_job_may_save_and_what_it_saved_is_kept(engine: Any) -> None:
    source = """
import signal, sys, threading
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())
print("ready")
asked.wait()
open("/opt/ml/model/half", "w").write("w")
print("saved")
"""
    name = engine.train(source)
    engine.await_line(name, "ready")
    engine.sagemaker.stop_training_job(TrainingJobName=name)
    job = engine.ended(name)
    assert job["TrainingJobStatus"] == "Stopped", job
    assert engine.log(name) == ["ready", "saved"]
    assert members(engine, job["ModelArtifacts"]["S3ModelArtifacts"]) == {"half"}


def test_a_failed_job_tells_the_container_s_own_reason(engine: Any) -> None:
    source = "import sys\nopen('/opt/ml/output/failure', 'w').write('no rows')\nprint('last words')\nsys.exit(7)\n"
    name = engine.train(source)
    job = engine.ended(name)
    assert (job["TrainingJobStatus"], job["FailureReason"]) == ("Failed", "AlgorithmError: no rows, exit code: 7")
    assert engine.log(name) == ["last words"]


def test_a_killed_supervisor_leaves_no_container_and_the_job_is_reported_lost(engine: Any) -> None:
    name = engine.train("import time\nprint('running')\ntime.sleep(600)\n")
    engine.await_line(name, "running")
    folder = engine.home / "jobs" / name
    os.kill(json.loads((folder / "supervisor.pid").read_text())["pid"], signal.SIGKILL)
    job = engine.ended(name)
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"].startswith("InternalServerError")
    assert not docker("ps", "--all", "--quiet", "--filter", f"label=llmtuner.folder={folder}")


def test_an_image_that_nobody_has_fails_the_job_with_its_name(engine: Any) -> None:
    name = engine.train("print('never')", AlgorithmSpecification={"TrainingImage": "nobody.invalid/none:1"})
    job = engine.ended(name)
    assert job["TrainingJobStatus"] == "Failed"
    assert "Cannot pull the image nobody.invalid/none:1" in job["FailureReason"]
