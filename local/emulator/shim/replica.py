"""Supervises one replica (instance) of an endpoint: fetch the model, run the server, watch its health, ship its logs.

    python -m llmtuner_local.emulator.shim.replica FOLDER

`replica.json` in the folder says what to run. The journal tells the port when the replica is healthy, and the
reason when it will never be. A container that dies while serving is started again.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.containers import process as containers
from llmtuner_local.emulator.shim import cloud
from llmtuner_local.emulator.shim.journal import Journal

STOP_GRACE_SECONDS = 30
PING_SECONDS = 2.0


class ReplicaSupervisor:
    """One replica from Creating until SIGTERM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec: dict[str, Any] = json.loads((folder / "replica.json").read_text())
        self.base = folder / "opt-ml"
        self.journal = Journal(folder / "journal.jsonl")
        self.stopping = threading.Event()
        self.container: containers.Container | None = None
        self.port = 0

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())
        shipper = cloud.LogShipper(self.spec["localstack_url"], self.spec["log_group"], self.spec["log_stream"])
        try:
            self._fetch_model()
            # A container that was healthy once is started again whenever it ends; one that never was is given up.
            while not self.stopping.is_set() and self._serve(shipper) and not self.stopping.is_set():
                self.journal.write(state="Restarting")
        except Exception as error:
            # The last line of defence of a process nobody watches: the reason must reach DescribeEndpoint.
            self.journal.write(state="Failed", reason=f"{type(error).__name__}: {error}")
            raise
        finally:
            shipper.close()
            shutil.rmtree(self.base, ignore_errors=True)
            self.journal.write(state="Stopped")

    def _fetch_model(self) -> None:
        target = self.base / "model"
        target.mkdir(parents=True, exist_ok=True)
        s3 = cloud.client("s3", self.spec["localstack_url"])
        uri = self.spec.get("model_data_url")
        if uri:
            archive = self.folder / "model.tar.gz"
            s3.download_file(*cloud.split_uri(uri), str(archive))
            cloud.unpack(archive, target)
            archive.unlink()
        prefix = self.spec.get("model_prefix")
        if prefix:
            cloud.download_prefix(s3, prefix, target)

    def _serve(self, shipper: cloud.LogShipper) -> bool:
        """Run the container once; returns whether it had become healthy when it ended."""
        self.port = cloud.free_port()
        environment = cloud.base_environment() | self.spec["environment"]
        # A container may listen everywhere; a process must not.
        environment |= {"SAGEMAKER_BIND_TO_PORT": str(self.port), "LLMTUNER_HOST": "127.0.0.1", "HOME": "/opt/ml/home"}
        (self.base / "home").mkdir(exist_ok=True)
        self.container = containers.start(
            self.spec["command"], self.base, environment, mode=self.spec["mode"], hide=Path(self.spec["hide"])
        )
        self.journal.write(state="Starting", container=self.container.process.pid)
        reader = threading.Thread(target=self._read, args=(self.container, shipper), daemon=True)
        reader.start()
        healthy = self._await_healthy()
        if healthy:
            self.journal.write(state="InService", port=self.port)
            while self.container.process.poll() is None and not self.stopping.wait(0.1):
                continue
        self._stop_container()
        reader.join(timeout=5)
        if not healthy and not self.stopping.is_set():
            self.journal.write(state="Failed", reason=self._why_unhealthy())
        return healthy

    @staticmethod
    def _read(container: containers.Container, shipper: cloud.LogShipper) -> None:
        for raw in container.output:
            shipper.line(raw.decode("utf-8", "replace").rstrip("\r\n"))

    def _await_healthy(self) -> bool:
        assert self.container is not None
        deadline = time.monotonic() + self.spec["startup_seconds"]
        while time.monotonic() < deadline and self.container.process.poll() is None:
            if ping(self.port):
                return True
            if self.stopping.wait(0.1):
                return False
        return False

    def _why_unhealthy(self) -> str:
        return (
            f"The primary container for production variant {self.spec['variant']} did not pass the ping health check. "
            "Please check CloudWatch logs for this endpoint."
        )

    def _stop_container(self) -> None:
        assert self.container is not None
        if self.container.process.poll() is None:
            self.container.terminate()
            deadline = time.monotonic() + STOP_GRACE_SECONDS
            while self.container.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)  # Popen.wait(timeout) polls with growing pauses; a quick stop is worth a short one
        self.container.kill()
        self.container.process.wait()


def ping(port: int) -> bool:
    """One health check: GET /ping answered with 200 within two seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PING_SECONDS)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> None:
    """Run the supervisor of the folder named on the command line."""
    os.umask(0o077)
    ReplicaSupervisor(Path(sys.argv[1])).run()


if __name__ == "__main__":
    main()
