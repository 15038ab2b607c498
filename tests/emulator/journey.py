"""A user's work in the local cloud, step by step, and the ledger of what was acknowledged: for tests that kill."""

from __future__ import annotations

import io
import random
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from emulator.conftest import BUCKET, ROLE, Cloud
from emulator.hosting import SERVER, archive

GROUP, STREAM = "/journey", "lines"
LINES = 40
PART = 5_242_880
QUICK = f"""
import os, pathlib, time
for n in range({LINES}): print("line", n, flush=True); time.sleep(0.01)
pathlib.Path("/opt/ml/model/made").write_text(os.environ["TRAINING_JOB_NAME"])
"""
LONG = """
import pathlib, signal, sys, time
def leave(*_): pathlib.Path("/opt/ml/model/made").write_text("stopped"); sys.exit(0)
signal.signal(signal.SIGTERM, leave)
n = 0
while not pathlib.Path("/opt/ml/checkpoints/end").exists():
    n += 1
    pathlib.Path("/opt/ml/checkpoints/step").write_text(str(n))
    print("step", n, flush=True)
    time.sleep(0.3)
"""


@dataclass
class Job:
    """A job that was asked for."""

    lines: int | None  # how many lines it prints, when that is known
    acknowledged: bool = False
    hit: bool = False  # something of it was killed, which SageMaker reports as a failure
    stopped: bool = False
    ended: str = ""


@dataclass
class Ledger:
    """What the cloud has said yes to; what a kill cut off in the middle may be there or not."""

    objects: dict[str, bytes | None] = field(default_factory=dict)
    parts: dict[str, tuple[str, list[str]]] = field(default_factory=dict)  # key -> upload, ETags
    lines: list[str] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)
    configs: set[str] = field(default_factory=set)
    endpoints: dict[str, str] = field(default_factory=dict)  # name -> configuration, "" once deleted
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    unsure: set[tuple[str, str]] = field(default_factory=set)


class CutOffError(Exception):
    """A step got no answer: something was killed under it."""


class Journey:
    """Takes one step after the other, drawn by a seeded generator."""

    def __init__(self, cloud: Cloud, draw: random.Random) -> None:
        self.cloud, self.draw, self.ledger = cloud, draw, Ledger()
        self.code = {"quick": "", "long": ""}
        self.steps: list[Callable[[], None]] = [
            *[self.put, self.write_lines] * 4,
            *[self.remove, self.upload_part, self.complete, self.train, self.tag] * 2,
            self.train_long, self.stop, self.serve, self.update, self.unserve,
        ]  # fmt: skip

    def begin(self) -> None:
        """The first things of every user, which the steps build on."""
        self.cloud.s3.create_bucket(Bucket=BUCKET)
        self.code = {"quick": self.cloud.script(QUICK), "long": self.cloud.script(LONG)}
        self.cloud.put("model.tar.gz", archive(SERVER))
        self.cloud.logs.create_log_group(logGroupName=GROUP)
        self.cloud.logs.create_log_stream(logGroupName=GROUP, logStreamName=STREAM)
        self._model("first")
        self._config("first", "first")
        self.serve()
        self.train_long()

    def step(self) -> None:
        """One step; CutOffError when it got no answer."""
        try:
            self.draw.choice(self.steps)()
        except BotoCoreError as error:
            raise CutOffError from error
        except ClientError as error:
            # 5xx: the emulator lives, what it needs does not. Anything else would be an answer nobody expects.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                raise
            raise CutOffError from error

    @contextmanager
    def _asking(self, kind: str, name: str) -> Iterator[None]:
        self.ledger.unsure.add((kind, name))
        yield
        self.ledger.unsure.discard((kind, name))

    def put(self) -> None:
        key, body = f"files/{self.draw.randrange(10)}", self.draw.randbytes(self.draw.choice((0, 100, 200_000)))
        with self._asking("object", key):
            self.cloud.put(key, body)
        self.ledger.objects[key] = body

    def remove(self) -> None:
        key = f"files/{self.draw.randrange(10)}"
        with self._asking("object", key):
            self.cloud.s3.delete_object(Bucket=BUCKET, Key=key)
        self.ledger.objects[key] = None

    def upload_part(self) -> None:
        key = f"parts/{self.draw.randrange(2)}"
        upload, tags = self.ledger.parts.get(key, ("", []))
        if not upload:
            upload = self.cloud.s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
            self.ledger.parts[key] = (upload, [])
        elif len(tags) < 2:
            number = len(tags) + 1
            with self._asking("part", key):
                answer = self.cloud.s3.upload_part(
                    Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=number, Body=bytes([number]) * PART
                )
            tags.append(answer["ETag"])

    def complete(self) -> None:
        for key, (upload, tags) in list(self.ledger.parts.items()):
            if len(tags) == 2:
                listed = [{"PartNumber": n + 1, "ETag": tag} for n, tag in enumerate(tags)]
                del self.ledger.parts[key]
                with self._asking("object", key):
                    self.cloud.s3.complete_multipart_upload(
                        Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload={"Parts": listed}
                    )
                self.ledger.objects[key] = b"\1" * PART + b"\2" * PART

    def write_lines(self) -> None:
        text = f"acknowledged {len(self.ledger.lines)} {self.draw.random()}"
        event = {"timestamp": int(time.time() * 1000), "message": text}
        with self._asking("lines", text):
            self.cloud.logs.put_log_events(logGroupName=GROUP, logStreamName=STREAM, logEvents=[event])
        self.ledger.lines.append(text)

    def train(self) -> None:
        if sum(not job.ended for job in self.ledger.jobs.values()) < 4:
            self._train("quick", Job(LINES))

    def train_long(self) -> None:
        if sum(not job.ended and job.lines is None for job in self.ledger.jobs.values()) < 2:
            self._train("long", Job(None))

    def _train(self, code: str, job: Job) -> None:
        name = f"{code}-{len(self.ledger.jobs)}"
        self.ledger.jobs[name] = job
        request = self.cloud.request("", TrainingJobName=name, Tags=[{"Key": "kind", "Value": code}])
        request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] = self.code[code]
        if code == "long":
            request["CheckpointConfig"] = {"S3Uri": f"s3://{BUCKET}/checkpoints/{name}"}
        self.cloud.sagemaker.create_training_job(**request)
        job.acknowledged = True

    def stop(self) -> None:
        for name, job in self.ledger.jobs.items():
            if (
                job.lines is None
                and job.acknowledged
                and not job.stopped
                and not job.ended
                and self.draw.random() < 0.5
            ):
                job.stopped = True
                try:
                    self.cloud.sagemaker.stop_training_job(TrainingJobName=name)
                except ClientError as error:
                    if "is in status" not in str(error):
                        raise
                return

    def tag(self) -> None:
        arn = f"arn:aws:sagemaker:us-east-1:000000000000:model/{self.draw.choice(sorted(self.ledger.models))}"
        key, value = f"k{self.draw.randrange(5)}", str(self.draw.random())
        with self._asking("tag", f"{arn} {key}"):
            self.cloud.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": key, "Value": value}])
        self.ledger.tags.setdefault(arn, {})[key] = value

    def _model(self, name: str) -> None:
        container = {"Image": "example/vllm:1", "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz"}
        self.cloud.sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
        self.ledger.models.add(name)

    def _config(self, name: str, model: str) -> None:
        variant = {"VariantName": "v", "ModelName": model, "InstanceType": "ml.g5.xlarge", "InitialInstanceCount": 1}
        self.cloud.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        self.ledger.configs.add(name)

    def serve(self) -> None:
        if sum(bool(config) for config in self.ledger.endpoints.values()) < 2:
            name = f"ep-{len(self.ledger.endpoints)}"
            self.ledger.endpoints[name] = ""
            with self._asking("endpoint", name):
                self.cloud.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName="first")
            self.ledger.endpoints[name] = "first"

    def update(self) -> None:
        number = len(self.ledger.configs)
        name = f"c{number}-{self.draw.randrange(10**6)}"
        self._model(name)
        self._config(name, name)
        for endpoint in self._live():
            with self._asking("endpoint", endpoint):
                if self._allowed(self.cloud.sagemaker.update_endpoint, endpoint, EndpointConfigName=name):
                    self.ledger.endpoints[endpoint] = name
            return

    def unserve(self) -> None:
        for endpoint in self._live():
            with self._asking("endpoint", endpoint):
                if self._allowed(self.cloud.sagemaker.delete_endpoint, endpoint):
                    self.ledger.endpoints[endpoint] = ""
            return

    def _live(self) -> list[str]:
        return self.draw.sample(found := [name for name, config in self.ledger.endpoints.items() if config], len(found))

    @staticmethod
    def _allowed(call: Callable[..., Any], endpoint: str, **more: str) -> bool:
        """Whether an endpoint was free for a change: one that is being changed refuses."""
        try:
            call(EndpointName=endpoint, **more)
        except ClientError as error:
            if "in-progress" not in str(error):
                raise
            return False
        return True


def model_of(cloud: Cloud, name: str) -> str:
    """What a finished job has saved."""
    data = cloud.s3.get_object(Bucket=BUCKET, Key=f"out/{name}/output/model.tar.gz")["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        return opened.extractfile("made").read().decode()  # type: ignore[union-attr]
