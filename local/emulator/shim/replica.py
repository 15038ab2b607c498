"""Supervises one replica of an endpoint (an instance, or a copy of an inference component): fetch the models, run the
servers, ship their logs.

`replica.json` in the folder says what to run: one container, or several that work together. The journal tells the
ports when all are healthy, and the reason when they never will be. SIGTERM stops the replica.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from llmtuner_local.emulator.shim import channels, cloud, trees
from llmtuner_local.emulator.shim.journal import Journal, reason_of
from llmtuner_local.emulator.shim.logs import LogShipper
from llmtuner_local.emulator.shim.server import Server

NAMESPACE = "/aws/sagemaker/Endpoints"


class ReplicaSupervisor:
    """One replica from Creating until SIGTERM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec: dict[str, Any] = json.loads((folder / "replica.json").read_text())
        self.journal = Journal(folder / "journal.jsonl")
        self.stopping = threading.Event()
        self.servers = [Server(self.spec, item, folder, self._changed) for item in self.spec["containers"]]
        self._shippers: list[LogShipper] = []
        self._changing = threading.Lock()
        self._state = "Starting"

    def run(self) -> None:
        """The whole story; whatever happens, the journal gets an end."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        try:
            if self.stopping.wait(self.spec.get("start_delay_seconds", 0)):
                return
            if reason := self.spec.get("capacity_reason"):
                self.journal.write(state="Failed", reason=reason)
                return
            self._fetch_models()
            for server in self.servers:
                stream = server.spec["log_stream"]
                shipper = LogShipper(self.spec["localstack_url"], self.spec["log_group"], stream)
                self._shippers.append(shipper)
                server.ship_to(shipper)
            threads = [threading.Thread(target=server.run, name=server.name) for server in self.servers]
            threading.Thread(target=self._measure, name="measure", daemon=True).start()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except Exception as error:
            # The last line of defence of a process nobody watches: the reason must reach DescribeEndpoint.
            self.journal.write(state="Failed", reason=reason_of(error, self.folder))
            raise
        finally:
            for shipper in self._shippers:
                shipper.close()
            for server in self.servers:
                server.close()
            self.journal.write(state="Stopped")

    def stop(self) -> None:
        self.stopping.set()
        for server in self.servers:
            server.stop()

    def _fetch_models(self) -> None:
        s3 = cloud.client("s3", self.spec["localstack_url"])
        for server in self.servers:
            for source in server.spec["sources"]:
                _fetch(s3, source, server.base / source["folder"], self.folder)

    def _changed(self) -> None:
        """Called by a server whose health has changed: a replica is as healthy as its worst container."""
        with self._changing:
            failures = [server.failure for server in self.servers if server.failure]
            if failures and self._state != "Failed":
                self._state = "Failed"
                self.journal.write(state="Failed", reason=failures[0])
                self.stop()
            elif failures or self.stopping.is_set():
                return
            elif all(server.healthy for server in self.servers):
                self._state = "InService"
                ports = {server.name: server.port for server in self.servers}
                self.journal.write(state="InService", port=self.servers[0].port, ports=ports)
            elif self._state == "InService":
                self._state = "Restarting"
                self.journal.write(state="Restarting")

    def _measure(self) -> None:
        """CPU, memory and disk of the replica, as CloudWatch shows them for an instance."""
        (last, _), before = self._usage(), time.monotonic()
        while not self.stopping.wait(self.spec["metrics_seconds"]):
            (used, memory), now = self._usage(), time.monotonic()
            values = {
                "CPUUtilization": max(0.0, used - last) / (now - before) * 100,
                "MemoryUtilization": memory * 100,
                "DiskUtilization": psutil.disk_usage(str(self.folder)).percent,
            }
            last, before = used, now
            data = [
                {"MetricName": name, "Value": value, "Unit": "Percent", "Dimensions": self.spec["dimensions"]}
                for name, value in values.items()
            ]
            self._shippers[0].points(NAMESPACE, data)

    def _usage(self) -> tuple[float, float]:
        """(CPU seconds used so far, share of the machine's memory) of all containers."""
        found = [server.container.usage() for server in self.servers if server.container is not None]
        return sum(item[0] for item in found), sum(item[1] for item in found)


def _fetch(s3: Any, source: dict[str, str], target: Path, scratch: Path) -> None:
    """Bring one model source to its place: an archive is unpacked, an object keeps its name, a prefix its keys."""
    target.mkdir(parents=True, exist_ok=True)
    uri = source["uri"]
    if source["kind"] == "prefix":
        channels.download(s3, channels.objects(s3, uri), target)
        return
    bucket, key = cloud.split_uri(uri)
    if source["kind"] == "object":
        s3.download_file(bucket, key, str(target / key.rpartition("/")[2]))
        return
    archive = scratch / "model.tar.gz"
    s3.download_file(bucket, key, str(archive))
    trees.unpack(archive, target)
    archive.unlink()


def supervise(folder: Path) -> None:
    """Run the replica of a folder to its end."""
    ReplicaSupervisor(folder).run()
