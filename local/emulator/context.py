"""What every operation gets: the store, the account, the addresses of the local cloud, the clock."""

from __future__ import annotations

import time
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.alarms import Alarms
from llmtuner_local.emulator.containers import process
from llmtuner_local.emulator.endpoint_metrics import Metrics
from llmtuner_local.emulator.faults import Faults
from llmtuner_local.emulator.followed import Followed
from llmtuner_local.emulator.limits import Limits
from llmtuner_local.emulator.samples import Samples
from llmtuner_local.emulator.store import Store
from llmtuner_local.home import ACCOUNT_ID, REGION

# "docker" while an operation is carried out that came through the profile of target local-docker.
engine: ContextVar[str] = ContextVar("engine", default="")


@dataclass
class Context:
    """One running emulator."""

    home: Path
    store: Store
    localstack_url: str
    account_id: str = ACCOUNT_ID
    region: str = REGION
    in_flight: Counter[str] = field(default_factory=Counter)  # requests under way, by replica

    def now(self) -> float:
        """Epoch seconds with milliseconds, as on the wire."""
        return round(time.time(), 3)

    def arn(self, kind: str, name: str) -> str:
        """AWS lower-cases the name inside SageMaker's ARNs."""
        return f"arn:aws:sagemaker:{self.region}:{self.account_id}:{kind}/{name.lower()}"

    @property
    def mode(self) -> str:
        """How the containers of what is created now run: "docker", or one of the ways to run them as processes."""
        return engine.get() or process.best_mode()

    @cached_property
    def followed(self) -> Followed:
        return Followed()

    @cached_property
    def faults(self) -> Faults:
        return Faults(self.home)

    @cached_property
    def limits(self) -> Limits:
        return Limits.from_environment()

    @cached_property
    def alarms(self) -> Alarms:
        return Alarms(lambda: self.cloudwatch)

    @cached_property
    def samples(self) -> Samples:
        return Samples(lambda: self.cloudwatch)

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics(lambda: self.cloudwatch)

    @cached_property
    def s3(self) -> Any:
        return self._client("s3")

    @cached_property
    def iam(self) -> Any:
        return self._client("iam")

    @cached_property
    def cloudwatch(self) -> Any:
        return self._client("cloudwatch")

    def _client(self, service: str) -> Any:
        from llmtuner_local.emulator.shim.cloud import client

        return client(service, self.localstack_url, attempts=3)  # it must answer, and cannot wait

    def job_folder(self, name: str) -> Path:
        return self.home / "jobs" / name

    def endpoint_folder(self, name: str) -> Path:
        return self.home / "endpoints" / name
