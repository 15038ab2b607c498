"""Supervises one processing job: fetch its inputs, run the containers, send its outputs, record the end.

`shim/job.py` says how the folder is used.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from llmtuner_local.emulator.shim import channels, outputs
from llmtuner_local.emulator.shim.cluster import Ending
from llmtuner_local.emulator.shim.hosts import HOMOGENEOUS, Host
from llmtuner_local.emulator.shim.job import REASON_CHARACTERS, SYNC_SECONDS, InternalError, JobError, JobSupervisor
from llmtuner_local.emulator.shim.mirror import Keeper, Mirror
from llmtuner_local.emulator.shim.staging import write_json


class ProcessingSupervisor(JobSupervisor):
    """One processing job."""

    namespace = "/aws/sagemaker/ProcessingJobs"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.limit = float(self.request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 86400))

    def groups(self) -> list[tuple[str, str, int]]:
        resources = self.request["ProcessingResources"]["ClusterConfig"]
        return [(HOMOGENEOUS, resources.get("InstanceType", ""), resources.get("InstanceCount", 1))]

    def live(self) -> None:
        self.pause(self.job.get("start_delay_seconds", 0.0))
        if reason := self.job.get("capacity_reason"):
            raise JobError(reason)
        self.journal.write(started=True)
        with self.transfer("Data download"):
            self._stage()
        self.check()
        keeper = Keeper(
            [mirror for output in self._outputs("Continuous") for mirror in self._mirrors(output)], SYNC_SECONDS
        )
        try:
            ending = self.run_containers(on_line=lambda *_: None, read_only=lambda _: [], stopping=self._stopping_now)
        finally:
            with self.transfer("Output upload"):
                keeper.close()
        if ending.reason == "error":
            raise InternalError
        self._finish(ending)

    def halt(self) -> str:
        if self.stop_asked():
            return "stop"
        if self.running_since is None:
            return ""
        if self.seconds() >= self.limit:
            return "time"
        return "error" if self.fault("internal-error", "internal_error_after_seconds") else ""

    def _stopping_now(self, reason: str) -> float:
        if reason == "error":
            return 0.0
        self.journal.write(stopping=True)
        return self.grace

    def _stage(self) -> None:
        found = [(entry["S3Input"], self._objects(entry["S3Input"])) for entry in self._inputs()]
        for number, host in enumerate(self.hosts):
            config = host.base / "config"
            write_json(config / "processingjobconfig.json", self.job["config"])
            write_json(
                config / "resourceconfig.json",
                {"current_host": host.alias, "hosts": [item.alias for item in self.hosts]},
            )
            (host.base / "output").mkdir(parents=True, exist_ok=True)
            for output in self._outputs():
                _below(host, output["LocalPath"]).mkdir(parents=True, exist_ok=True)
            for source, items in found:
                distribution = source.get("S3DataDistributionType", "FullyReplicated")
                share = channels.share(items, distribution, number, len(self.hosts))
                channels.download(self.s3, share, _below(host, source["LocalPath"]), self.check)

    def _objects(self, source: dict[str, Any]) -> list[channels.Item]:
        return channels.objects(self.s3, source["S3Uri"], source["S3DataType"])

    def _inputs(self) -> list[dict[str, Any]]:
        return [entry for entry in self.request.get("ProcessingInputs", []) if not entry.get("AppManaged")]

    def _outputs(self, mode: str = "") -> list[dict[str, Any]]:
        entries = self.request.get("ProcessingOutputConfig", {}).get("Outputs", [])
        found = [entry["S3Output"] for entry in entries if not entry.get("AppManaged")]
        return [item for item in found if not mode or item["S3UploadMode"] == mode]

    def _mirrors(self, output: dict[str, Any]) -> list[Mirror]:
        return [
            Mirror(self.s3, host.base, _inside(output["LocalPath"]), output["S3Uri"], self._encryption(), deletes=False)
            for host in self.hosts
        ]

    def _encryption(self) -> dict[str, str]:
        return outputs.encryption(self.request.get("ProcessingOutputConfig", {}).get("KmsKeyId"))

    def _finish(self, ending: Ending) -> None:
        message = next((text for host in self.hosts if (text := self.text(host, "output/message"))), "")
        if ending.code and not ending.reason:
            told = self.text(ending.host, "output/message")
            reason = f"AlgorithmError: {told}, exit code: {ending.code}"
            self.end(status="Failed", reason=reason[:REASON_CHARACTERS], exit_message=message)
            return
        with self.transfer("Output upload"):
            for output in self._outputs("EndOfJob"):
                files = outputs.merged([host.base for host in self.hosts], _inside(output["LocalPath"]))
                outputs.upload_files(self.s3, files, output["S3Uri"], self._encryption())
        stopped = ending.reason or self.stop_asked()
        self.end(status="Stopped" if stopped else "Completed", exit_message=message)

    def halted(self, _reason: str) -> None:
        self.end(status="Stopped")

    def fail(self, reason: str) -> None:
        self.end(status="Failed", reason=reason[:REASON_CHARACTERS])


def _below(host: Host, path: str) -> Path:
    """A path of the container on this machine."""
    return host.base / _inside(path)


def _inside(path: str) -> str:
    return PurePosixPath(path).relative_to("/opt/ml").as_posix()


def supervise(folder: Path) -> None:
    """Run the job of a folder to its end."""
    ProcessingSupervisor(folder).run()
