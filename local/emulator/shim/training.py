"""Supervises one training job: stage the input, run the container, ship logs and metrics, upload, record the end.

    python -m llmtuner_local.emulator.shim.training FOLDER

The folder holds `job.json` (what to run); the supervisor appends to `journal.jsonl` there. A file `stop` beside
it, or SIGTERM to the supervisor, means StopTrainingJob.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.containers import process as containers
from llmtuner_local.emulator.shim import cloud, staging
from llmtuner_local.emulator.shim.journal import Journal

STOP_GRACE_SECONDS = 120
CHECKPOINT_SECONDS = 3.0
NAMESPACE = "/aws/sagemaker/TrainingJobs"
_FAILURE_CHARACTERS = 1024


class TrainingSupervisor:
    """One job from Starting to its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job: dict[str, Any] = json.loads((folder / "job.json").read_text())
        self.request: dict[str, Any] = self.job["request"]
        self.name: str = self.request["TrainingJobName"]
        self.base = folder / "opt-ml"
        self.journal = Journal(folder / "journal.jsonl")
        self.s3 = cloud.client("s3", self.job["localstack_url"])
        self.stopping = threading.Event()
        self.ended = threading.Event()
        self.over_time = False
        self.container: containers.Container | None = None
        self.metrics: dict[str, dict[str, Any]] = {}
        self.checkpoints_seen: dict[str, tuple[int, int]] = {}

    def run(self) -> None:
        """The whole story; whatever happens, the journal gets an end."""
        signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())
        self.say("Starting", "Preparing the instances for training")
        try:
            self.say("Downloading", "Downloading input data")
            staging.stage(self.s3, self.request, self.base)
            self._load_checkpoints()
            if self._stop_asked():
                self._end("Stopped", "Stopped", "Training job stopped")
                return
            code = self._train()
            self._finish(code)
        except Exception as error:
            # The last line of defence of a process nobody watches: the reason must reach DescribeTrainingJob.
            self._end(
                "Failed", "Failed", "Training job failed", f"InternalServerError: {type(error).__name__}: {error}"
            )
            raise

    def say(self, secondary: str, message: str) -> None:
        self.journal.write(secondary=secondary, message=message)

    def _train(self) -> int:
        self.say("Training", "Training image download completed. Training in progress.")
        shipper = cloud.LogShipper(self.job["localstack_url"], NAMESPACE, f"{self.name}/algo-1-{int(time.time())}")
        self.container = containers.start(
            self.job["command"],
            self.base,
            cloud.base_environment() | self.job["environment"] | {"HOME": str(self._private_home())},
            mode=self.job["mode"],
            hide=Path(self.job["hide"]),
            hosts=self._hosts(),
        )
        self.journal.write(container=self.container.process.pid)
        watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        watcher.start()
        try:
            for raw in self.container.output:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                shipper.line(line)
                self._match(line, shipper)
            code = self.container.process.wait()
        finally:
            self.ended.set()
            self.container.kill()  # what the main process left running must not outlive the job
            watcher.join()
            shipper.close()
        return code

    def _watch(self) -> None:
        """Stop, time limit and checkpoints, while the container runs."""
        assert self.container is not None
        limit = self.request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 86400)
        deadline = time.monotonic() + limit
        kill_at = math.inf
        next_sync = time.monotonic() + CHECKPOINT_SECONDS
        while not self.ended.wait(0.1):
            now = time.monotonic()
            if math.isinf(kill_at) and (self._stop_asked() or now >= deadline):
                self.over_time = not self._stop_asked()
                self.say("Stopping", "Stopping the training job")
                self.container.terminate()
                kill_at = now + STOP_GRACE_SECONDS
            if now >= kill_at:
                self.container.kill()
                kill_at = now + 5
            if now >= next_sync:
                self._save_checkpoints()
                next_sync = time.monotonic() + CHECKPOINT_SECONDS

    def _stop_asked(self) -> bool:
        return self.stopping.is_set() or (self.folder / "stop").exists()

    def _finish(self, code: int) -> None:
        self._save_checkpoints()
        stopped = self._stop_asked() or self.over_time
        failure = self._failure_text()
        if code != 0 and not stopped:
            self._upload_output()
            reason = f"AlgorithmError: {failure}, exit code: {code if code > 0 else 128 - code}"
            self._end("Failed", "Failed", "Training job failed", reason[:_FAILURE_CHARACTERS])
            return
        self.say("Uploading", "Uploading generated training model")
        self._upload_output()
        self._upload_model()
        if self.over_time:
            text = "Training job runtime exceeded MaxRuntimeInSeconds provided"
            self._end("Stopped", "MaxRuntimeExceeded", text)
        elif stopped:
            self._end("Stopped", "Stopped", "Training job stopped")
        else:
            self._end("Completed", "Completed", "Training job completed")

    def _end(self, status: str, secondary: str, message: str, reason: str = "") -> None:
        shutil.rmtree(self.base, ignore_errors=True)  # before the end is told: who sees it finds nothing left
        self.journal.write(
            secondary=secondary,
            message=message,
            status=status,
            reason=reason,
            metrics=list(self.metrics.values()),
        )

    def _failure_text(self) -> str:
        try:
            return (self.base / "output" / "failure").read_text(errors="replace")[:_FAILURE_CHARACTERS].strip()
        except FileNotFoundError:
            return ""

    def _upload_model(self) -> None:
        bucket, key = cloud.split_uri(self.job["model_uri"])
        if self.request["OutputDataConfig"].get("CompressionType") == "NONE":
            cloud.upload_tree(self.s3, self.base / "model", self.job["model_uri"])
            return
        archive = self.folder / "model.tar.gz"
        cloud.pack(self.base / "model", archive)
        self.s3.upload_file(str(archive), bucket, key, ExtraArgs=self._encryption())
        archive.unlink()

    def _upload_output(self) -> None:
        data = self.base / "output" / "data"
        if not any(data.iterdir()):
            return
        bucket, key = cloud.split_uri(self.job["output_uri"])
        archive = self.folder / "output.tar.gz"
        cloud.pack(data, archive)
        self.s3.upload_file(str(archive), bucket, key, ExtraArgs=self._encryption())
        archive.unlink()

    def _encryption(self) -> dict[str, str]:
        key = self.request["OutputDataConfig"].get("KmsKeyId")
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}

    def _checkpoint_folder(self) -> Path:
        local = self.request["CheckpointConfig"].get("LocalPath", "/opt/ml/checkpoints")
        return self.base / Path(local).relative_to("/opt/ml")

    def _load_checkpoints(self) -> None:
        if "CheckpointConfig" in self.request:
            folder = self._checkpoint_folder()
            uri = self.request["CheckpointConfig"]["S3Uri"]
            cloud.download_prefix(self.s3, uri if uri.endswith("/") else uri + "/", folder)

    def _save_checkpoints(self) -> None:
        if "CheckpointConfig" in self.request and self._checkpoint_folder().is_dir():
            uri = self.request["CheckpointConfig"]["S3Uri"]
            try:
                cloud.upload_tree(self.s3, self._checkpoint_folder(), uri, self.checkpoints_seen)
            except FileNotFoundError:
                return  # the job removed an old checkpoint while it was being sent; the next round sends what is there

    def _match(self, line: str, shipper: cloud.LogShipper) -> None:
        points = []
        now = time.time()
        for definition in self.request["AlgorithmSpecification"].get("MetricDefinitions", []):
            found = re.search(definition["Regex"], line)
            if not found:
                continue
            try:
                value = float(found.group(1))
            except (IndexError, ValueError):
                continue
            if not math.isfinite(value):
                continue
            name = definition["Name"]
            self.metrics[name] = {"MetricName": name, "Value": value, "Timestamp": round(now, 3)}
            dimensions = [{"Name": "TrainingJobName", "Value": self.name}]
            points.append({"MetricName": name, "Dimensions": dimensions, "Timestamp": now, "Value": value})
        if points:
            shipper.points(NAMESPACE, points)

    def _private_home(self) -> Path:
        # The job's own, and outside of what is hidden from it: below /opt/ml.
        home = self.base / "home"
        home.mkdir(exist_ok=True)
        return Path("/opt/ml/home")

    def _hosts(self) -> Path:
        path = self.folder / "hosts"
        path.write_text(Path("/etc/hosts").read_text() + "\n127.0.0.1 algo-1\n")
        return path


def main() -> None:
    """Run the supervisor of the folder named on the command line."""
    TrainingSupervisor(Path(sys.argv[1])).run()


if __name__ == "__main__":
    main()
