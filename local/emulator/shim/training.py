"""Supervises one training job: stage the input, run the containers, ship logs and metrics, upload, record the end.

`shim/job.py` says how the folder is used.
"""

from __future__ import annotations

import time
from pathlib import Path, PurePosixPath

from llmtuner_local.emulator.faults import CAPACITY_MESSAGE
from llmtuner_local.emulator.shim import hosts, outputs, staging
from llmtuner_local.emulator.shim.cluster import Ending
from llmtuner_local.emulator.shim.job import (
    REASON_CHARACTERS,
    SYNC_SECONDS,
    HaltError,
    InternalError,
    JobError,
    JobSupervisor,
)
from llmtuner_local.emulator.shim.logs import LogShipper
from llmtuner_local.emulator.shim.metrics import AlgorithmMetrics
from llmtuner_local.emulator.shim.mirror import Keeper, Mirror
from llmtuner_local.emulator.shim.pipes import Pipe
from llmtuner_local.emulator.shim.trees import LinkError

CHECKPOINTS = "/opt/ml/checkpoints"
_ENDS = {
    "stop": ("Stopped", "Training job stopped"),
    "time": ("MaxRuntimeExceeded", "Training job runtime exceeded MaxRuntimeInSeconds provided"),
    "wait": ("MaxWaitTimeExceeded", "Training job exceeded MaxWaitTimeInSeconds provided"),
}


class TrainingSupervisor(JobSupervisor):
    """One training job; after a spot interruption or a failure of the service it starts again."""

    namespace = "/aws/sagemaker/TrainingJobs"
    default_arguments = ("train",)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        stopping = self.request.get("StoppingCondition", {})
        self.limit = float(stopping.get("MaxRuntimeInSeconds", 86400))
        self.spot = bool(self.request.get("EnableManagedSpotTraining"))
        self.wait_until = time.monotonic() + float(stopping.get("MaxWaitTimeInSeconds", "inf"))
        self.attempts_left = self.request.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0)
        definitions = self.request["AlgorithmSpecification"].get("MetricDefinitions", [])
        self.metrics = AlgorithmMetrics(self.name, definitions)
        self.pipes: list[Pipe] = []

    def groups(self) -> list[tuple[str, str, int]]:
        return hosts.of_training(self.request)

    def say(self, secondary: str, message: str) -> None:
        """Go over to a secondary status."""
        self.journal.write(secondary=secondary, message=message)

    def live(self) -> None:
        self._get_machines()
        while True:
            try:
                ending = self._attempt()
                if ending.reason == "error":
                    raise InternalError
            except (HaltError, JobError, LinkError):
                raise
            except Exception:
                if not self.attempts_left:
                    raise
                self.attempts_left -= 1
                self.say("Restarting", "Restarting the training job after an internal error")
            else:
                if ending.reason != "interrupt":
                    self._finish(ending)
                    return
                self.say("Interrupted", "Spot capacity was reclaimed; the training job waits for new instances")
            self.clear()
            self.say("Starting", "Preparing the instances for training")
            self.pause(self.job.get("restart_seconds", 1.0))

    def _get_machines(self) -> None:
        if reason := self.job.get("capacity_reason"):
            self.say("Starting", CAPACITY_MESSAGE)
            self.pause(self.job.get("start_delay_seconds", 0.0))
            raise JobError(reason)
        if delay := self.job.get("start_delay_seconds"):
            self.say("Starting", "Launching requested ML instances")
            self.pause(delay)
        self.say("Starting", "Preparing the instances for training")

    def _attempt(self) -> Ending:
        """Downloading and Training, once."""
        self.check()
        self.say("Downloading", "Downloading input data")
        try:
            mirrors = self._checkpoints()
            with self.transfer("Data download"):
                self.pipes = staging.stage(self.s3, self.request, self.hosts, self.check)
                for mirror in mirrors:
                    mirror.pull()
            self.check()
            self.say("Training", "Training image download completed. Training in progress.")
            keeper = Keeper(mirrors, SYNC_SECONDS)
            try:
                ending = self.run_containers(
                    on_line=self._match,
                    read_only=lambda host: staging.read_only(self.request, host),
                    stopping=self._stopping_now,
                )
            finally:
                with self.transfer("Checkpoint upload"):
                    keeper.close()
            if error := self._broken_stream():
                with self.transfer("Data download"):
                    raise error
            return ending
        finally:
            for pipe in self.pipes:
                pipe.close()
            self.pipes = []

    def _broken_stream(self) -> Exception | None:
        """What broke a Pipe channel: to the job it looks like a short one, or one that never comes."""
        return next((pipe.error for pipe in self.pipes if pipe.error), None)

    def halt(self) -> str:
        if self.stop_asked():
            return "stop"
        if self.spot and time.monotonic() >= self.wait_until:
            return "wait"
        if self.running_since is None:
            return ""
        if self.seconds() >= self.limit:
            return "time"
        if self._broken_stream():
            return "data"
        if self.fault("internal-error", "internal_error_after_seconds"):
            return "error"
        if self.spot and self.fault("interrupt", "interrupt_after_seconds"):
            return "interrupt"
        return ""

    def _stopping_now(self, reason: str) -> float:
        if reason in ("error", "data"):
            return 0.0
        if reason in _ENDS:
            self.say("Stopping", "Stopping the training job")
        return self.grace

    def _match(self, line: str, shipper: LogShipper) -> None:
        if points := self.metrics.points(line):
            shipper.points(self.namespace, points)

    def _checkpoints(self) -> list[Mirror]:
        config = self.request.get("CheckpointConfig")
        if config is None:
            return []
        local = PurePosixPath(config.get("LocalPath", CHECKPOINTS)).relative_to("/opt/ml").as_posix()
        return [Mirror(self.s3, host.base, local, config["S3Uri"], {}, deletes=True) for host in self.hosts]

    def _finish(self, ending: Ending) -> None:
        if ending.code and not ending.reason:
            self._upload_output()
            failure = self.text(ending.host, "output/failure")
            self.fail(f"AlgorithmError: {failure}, exit code: {ending.code}"[:REASON_CHARACTERS])
            return
        self.say("Uploading", "Uploading generated training model")
        self._upload_output()
        self._upload_model()
        reason = ending.reason or ("stop" if self.stop_asked() else "")
        if reason:
            self.halted(reason)
        else:
            self._end("Completed", "Completed", "Training job completed")

    def halted(self, reason: str) -> None:
        secondary, message = _ENDS[reason]
        self._end("Stopped", secondary, message)

    def fail(self, reason: str) -> None:
        self._end("Failed", "Failed", "Training job failed", reason)

    def _end(self, status: str, secondary: str, message: str, reason: str = "") -> None:
        metrics = self.metrics.final()
        self.end(secondary=secondary, message=message, status=status, reason=reason, metrics=metrics)

    def _upload_model(self) -> None:
        self._upload("model", self.job["model_uri"])

    def _upload_output(self) -> None:
        self._upload("output/data", self.job["output_uri"], only_if_any=True)

    def _upload(self, name: str, uri: str, *, only_if_any: bool = False) -> None:
        files = outputs.merged([host.base for host in self.hosts], name)
        if only_if_any and not files:
            return
        extra = outputs.encryption(self.request["OutputDataConfig"].get("KmsKeyId"))
        with self.transfer("Artifact upload"):
            if uri.endswith("/"):
                outputs.upload_files(self.s3, files, uri, extra)
            else:
                outputs.upload_archive(self.s3, files, self.folder / uri.rpartition("/")[2], uri, extra)


def supervise(folder: Path) -> None:
    """Run the job of a folder to its end."""
    TrainingSupervisor(folder).run()
