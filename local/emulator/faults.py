"""Faults on command, for tests and lessons: what SageMaker's bad days look like to its clients.

`llmtuner local fault set KIND ...` writes `faults.json` in the home folder, so a fault acts in every process (emulator,
supervisors, LocalStack) and survives restarts. Each is visible to clients as on AWS:

| kind              | what clients see                                                                                     |
|-------------------|------------------------------------------------------------------------------------------------------|
| capacity          | a job or endpoint ends Failed: `CapacityError: Unable to provision requested ML compute capacity...` |
| quota             | Create... answers ResourceLimitExceeded with AWS's sentence on the account-level service limit       |
| slow-start        | a job stays in Starting, an endpoint in Creating, `seconds` longer                                   |
| spot-interruption | a spot job goes to Interrupted after `seconds` of training, then starts again                        |
| internal-error    | a job meets InternalServerError after `seconds` of training; RetryStrategy starts it again           |
| failed-ping       | GET /ping of an endpoint counts as failed                                                            |
| throttling        | ThrottlingException 400 "Rate exceeded" beyond `rate` requests a second                              |
| s3-outage         | S3 answers 503 SlowDown                                                                              |
| split-stream      | response streams are cut every `bytes` bytes, whatever they hold                                     |

The seam. Looking costs one `open` of a file that is not there; nothing else happens without faults.

    context.faults.check_quota("training job usage", "ml.g5.xlarge", 1, job_name)   # raises ResourceLimitExceeded
    spec |= context.faults.for_job(job_name, spot=True)         # into job.json
    spec |= context.faults.for_replica(endpoint_name)           # into replica.json
    Faults(home).find("failed-ping", endpoint_name)             # anywhere, any time; None when there is none

`for_job` and `for_replica` give the supervisors (no key when there is no fault):
- `start_delay_seconds`: wait so long in Starting before anything else;
- `capacity_reason`: never start; end Failed with this FailureReason (`CAPACITY_MESSAGE` is the transition's text);
- `interrupt_after_seconds`: (jobs) reclaim the spot instance after so long in Training, as the file `interrupt` does;
- `internal_error_after_seconds`: (jobs) fail as the service, likewise, as the file `internal-error` does.
"""

from __future__ import annotations

import fnmatch
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.errors import ServiceError
from llmtuner_local.home import LocalError, locked, write_atomic

FILE = "faults.json"
CAPACITY_MESSAGE = "Insufficient capacity error from EC2 while launching instances, retrying!"
CAPACITY_REASON = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
)


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what it does, and its one number (name, default, lowest value)."""

    help: str
    number: str = ""
    default: float = 0
    lowest: float = 0


KINDS = {
    "capacity": Kind("jobs and endpoints get no instances and fail with CapacityError"),
    "quota": Kind("the account may use LIMIT instances: Create... answers ResourceLimitExceeded", "limit", 0),
    "slow-start": Kind("instances need SECONDS longer to start", "seconds", 10),
    "spot-interruption": Kind("spot jobs lose their instance after SECONDS of training", "seconds", 5),
    "internal-error": Kind("jobs meet an error of the service after SECONDS of training", "seconds", 0),
    "failed-ping": Kind("endpoints do not pass the ping health check"),
    "throttling": Kind("only RATE requests a second are answered", "rate", 0),
    "s3-outage": Kind("S3 answers 503 SlowDown"),
    "split-stream": Kind("response streams are cut every BYTES bytes", "bytes", 7, 1),
}


@dataclass(frozen=True)
class Fault:
    """One fault that is set. `match` is a glob on the name of the job, endpoint, operation (throttling) or bucket."""

    kind: str
    match: str = "*"
    number: float = 0
    times: int | None = None  # how often it still acts; None: always
    until: float | None = None  # epoch seconds

    def hits(self, kind: str, name: str) -> bool:
        alive = self.until is None or time.time() < self.until
        return self.kind == kind and alive and fnmatch.fnmatchcase(name, self.match)


@dataclass
class Faults:
    """The faults of one home folder. Its file is read at every look: no mark of a file (time, inode) is sure to change."""

    home: Path
    _passed: dict[str, list[float]] = field(default_factory=dict)

    def all(self) -> list[Fault]:
        """Every fault that is set, oldest first."""
        return _read(self.home)

    def find(self, kind: str, name: str = "") -> Fault | None:
        """The fault of a kind that hits a name, without using it up."""
        return next((item for item in self.all() if item.hits(kind, name)), None)

    def take(self, kind: str, name: str = "") -> Fault | None:
        """The same, counted: a fault that was set for n times is gone after the n-th."""
        if self.find(kind, name) is None:
            return None
        with _change(self.home) as faults:
            found = next((item for item in faults if item.hits(kind, name)), None)
            if found is not None and found.times is not None:
                place = faults.index(found)
                left = found.times - 1
                faults[place : place + 1] = [replace(found, times=left)] if left > 0 else []
        return found

    def set(self, fault: Fault) -> None:
        """Add a fault; one of the same kind and match is replaced."""
        with _change(self.home) as faults:
            faults[:] = [item for item in faults if (item.kind, item.match) != (fault.kind, fault.match)]
            faults.append(fault)

    def clear(self, kind: str = "") -> int:
        """Remove the faults of a kind, or all; returns how many there were."""
        with _change(self.home) as faults:
            kept = [item for item in faults if kind and item.kind != kind]
            gone = len(faults) - len(kept)
            faults[:] = kept
        return gone

    def check_quota(self, usage: str, instance_type: str, count: int, name: str) -> None:
        """Refuse what is above the quota that a fault sets; `usage` as in "training job usage", "endpoint usage"."""
        fault = self.find("quota", name)
        if fault is None or count <= fault.number:
            return
        self.take("quota", name)
        raise ServiceError(
            "ResourceLimitExceeded",
            f"The account-level service limit '{instance_type} for {usage}' is {fault.number:g} Instances, with current "
            f"utilization of 0 Instances and a request delta of {count} Instances. Please use AWS Service Quotas to "
            "request an increase for this quota. If AWS Service Quotas is not available, contact AWS support to request "
            "an increase for this quota.",
        )

    def check_rate(self, operation: str) -> None:
        """Refuse a request beyond the rate that a fault allows, over the last second."""
        fault = self.find("throttling", operation)
        if fault is None:
            return
        now = time.monotonic()
        passed = [moment for moment in self._passed.get(fault.match, []) if moment > now - 1]
        if len(passed) < fault.number:
            self._passed[fault.match] = [*passed, now]
            return
        self._passed[fault.match] = passed
        self.take("throttling", operation)
        raise ServiceError("ThrottlingException", "Rate exceeded")

    def for_job(self, name: str, *, spot: bool = False) -> dict[str, Any]:
        """What a job's supervisor must do besides; empty without faults."""
        found = self._for_start(name)
        if spot and (fault := self.take("spot-interruption", name)):
            found["interrupt_after_seconds"] = fault.number
        if fault := self.take("internal-error", name):
            found["internal_error_after_seconds"] = fault.number
        return found

    def for_replica(self, endpoint: str) -> dict[str, Any]:
        """What a replica's supervisor must do besides; empty without faults."""
        return self._for_start(endpoint)

    def _for_start(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if fault := self.take("slow-start", name):
            found["start_delay_seconds"] = fault.number
        if self.take("capacity", name):
            found["capacity_reason"] = CAPACITY_REASON
        return found


def make(kind: str, *, match: str = "*", number: float | None, times: int | None, seconds: float | None) -> Fault:
    """A checked fault; raises LocalError with what is valid."""
    if kind not in KINDS:
        raise LocalError(f"There is no fault {kind!r}. Valid: {', '.join(KINDS)}.")
    known = KINDS[kind]
    value = known.default if number is None else number
    if value < known.lowest:
        raise LocalError(f"--{known.number} of {kind} is {value:g}; valid: {known.lowest:g} and more.")
    if times is not None and times < 1:
        raise LocalError(f"--times is {times}; valid: 1 and more.")
    if seconds is not None and seconds <= 0:
        raise LocalError(f"--for is {seconds:g}; valid: a number of seconds above 0.")
    return Fault(kind, match, value, times, None if seconds is None else time.time() + seconds)


def _read(home: Path) -> list[Fault]:
    try:
        found = json.loads((home / FILE).read_text())
    except FileNotFoundError:
        return []
    return [Fault(**item) for item in found]


@contextmanager
def _change(home: Path) -> Iterator[list[Fault]]:
    """The list of faults, to be changed in place; one process at a time. The last one gone takes the file with it."""
    with locked(home / ".faults.lock"):
        before = _read(home)
        faults = [item for item in before if item.until is None or time.time() < item.until]
        yield faults
        if faults:
            write_atomic(home / FILE, json.dumps([vars(item) for item in faults], indent=2))
        else:
            (home / FILE).unlink(missing_ok=True)
