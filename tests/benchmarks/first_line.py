"""From asking for a training job to the first line of the user's code: processes, containers, and SageMaker local mode.

    .venv/bin/python tests/benchmarks/first_line.py [REPEATS]

The same one-line program each time. Needs a Docker engine. `local mode` is the SDK's own ModelTrainer in a fresh
process, which blocks, has no job API and leaves its results on disk; with and without the time to import the SDK.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from llmtuner_kit import aws

BUCKET = "first-line"
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-training:2.5.1"
SOURCE = "import time\nprint(f'first line at {time.time():.3f}', flush=True)\n"
LOCAL_MODE = """
import json, sys, time
started = time.time()
from sagemaker.train.configs import Compute, SourceCode
from sagemaker.train.model_trainer import Mode, ModelTrainer
imported = time.time()
trainer = ModelTrainer(
    training_mode=Mode.LOCAL_CONTAINER, training_image=sys.argv[1], local_container_root=sys.argv[3],
    source_code=SourceCode(source_dir=sys.argv[2], entry_script="main.py"),
    compute=Compute(instance_type="local_cpu", instance_count=1),
)
trainer.train(wait=True)
print(json.dumps({"started": started, "imported": imported}))
"""


def moment(text: str) -> float:
    return float(text.partition("first line at ")[2].split()[0])


def through_the_job_api(target: str) -> float:
    connection = aws.connect(target)
    sagemaker, logs = connection.client("sagemaker"), connection.client("logs")
    name = f"first-{uuid.uuid4().hex[:8]}"
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/code/", "S3DataDistributionType": "FullyReplicated"}
    request = {
        "TrainingJobName": name,
        "RoleArn": "arn:aws:iam::000000000000:role/llmtuner-execution",
        "AlgorithmSpecification": {
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/main.py"],
        },
        "InputDataConfig": [{"ChannelName": "code", "DataSource": {"S3DataSource": source}}],
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    }
    began = time.time()
    sagemaker.create_training_job(**request)
    sagemaker.get_waiter("training_job_completed_or_stopped").wait(
        TrainingJobName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 300}
    )
    group = "/aws/sagemaker/TrainingJobs"
    stream = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{name}/")["logStreams"][0]
    events = logs.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True)
    return moment("\n".join(item["message"] for item in events["events"])) - began


def through_local_mode(image: str) -> tuple[float, float]:
    """(seconds with the import of the SDK, without)."""
    with tempfile.TemporaryDirectory() as folder:
        code, root = Path(folder) / "code", Path(folder) / "root"
        for item in (code, root):
            item.mkdir()
        (code / "main.py").write_text(SOURCE)
        command = [sys.executable, "-c", LOCAL_MODE, image, str(code), str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
        subprocess.run(["docker", "rm", "--force", "root-algo-1-1", "root_algo-1_1"], capture_output=True, check=False)
        subprocess.run(["docker", "network", "rm", "sagemaker-local"], capture_output=True, check=False)
        first, times = moment(done.stdout), json.loads(done.stdout.strip().splitlines()[-1])
        return first - times["started"], first - times["imported"]


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"LLMTUNER_HOME": home, "LLMTUNER_LOCALSTACK_PORT": "0", "LLMTUNER_SAGEMAKER_PORT": "0"}
        local = [sys.executable, "-m", "llmtuner_local"]
        image = subprocess.run([*local, "docker-image"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        try:
            s3 = aws.connect("local").client("s3")
            s3.create_bucket(Bucket=BUCKET)
            s3.put_object(Bucket=BUCKET, Key="code/main.py", Body=SOURCE)
            found: dict[str, list[float]] = {}
            for _ in range(repeats):  # in turns, so that other load on the machine meets all of them
                found.setdefault("target local (processes)", []).append(through_the_job_api("local"))
                found.setdefault("target local-docker (containers)", []).append(through_the_job_api("local-docker"))
                whole, rest = through_local_mode(image)
                found.setdefault("SageMaker local mode, with its import", []).append(whole)
                found.setdefault("SageMaker local mode, import not counted", []).append(rest)
        finally:
            subprocess.run([*local, "down"], check=True, stdout=subprocess.DEVNULL)
    print(f"{'to the first line of user code':42}  median s  of {repeats}")
    for name, seconds in found.items():
        print(f"{name:42}  {statistics.median(seconds):8.2f}  {min(seconds):.2f} to {max(seconds):.2f}")


if __name__ == "__main__":
    main()
