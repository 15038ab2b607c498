"""From asking for a training job to the first line of the user's code: processes, containers, and SageMaker local mode.

Part of emulator.py. The same one-line program each time. SageMaker local mode is the SDK's own ModelTrainer in a fresh
process, which blocks, has no job API and leaves its results on disk; with and without the time to import the SDK.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from emulator_cloud import ROLE, Cloud, client

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


def through_the_job_api(cloud: Cloud, door: str = "") -> float:
    """Seconds by the program's own clock; the door "/docker" is that of target local-docker."""
    sagemaker, logs = client("sagemaker", cloud.sagemaker_url + door), cloud.client("logs")
    name = f"first-{uuid.uuid4().hex[:8]}"
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/code/", "S3DataDistributionType": "FullyReplicated"}
    request = {
        "TrainingJobName": name,
        "RoleArn": ROLE,
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


def upload(cloud: Cloud) -> None:
    """The program, into the running local cloud."""
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key="code/main.py", Body=SOURCE)


def in_processes(cloud: Cloud, repeats: int) -> list[float]:
    """Seconds of each run, sorted."""
    return sorted(through_the_job_api(cloud) for _ in range(repeats))


def in_containers(cloud: Cloud, repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, sorted; both ways in turns, so that other load on the machine meets both."""
    command = [sys.executable, "-m", "llmtuner_local", "docker-image"]
    image = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    ours, whole, rest = [], [], []
    for _ in range(repeats):
        ours.append(through_the_job_api(cloud, "/docker"))
        with_import, without = through_local_mode(image)
        whole.append(with_import)
        rest.append(without)
    return {"local-docker": sorted(ours), "with its import": sorted(whole), "without": sorted(rest)}


def engine_runs() -> bool:
    """Whether Docker can be asked."""
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0
