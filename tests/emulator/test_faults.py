"""Faults on command: set, listed, counted, cleared; and what clients see of each."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from llmtuner_local.__main__ import main
from llmtuner_local.emulator.errors import ServiceError
from llmtuner_local.emulator.faults import CAPACITY_REASON, FILE, KINDS, Fault, Faults, make
from llmtuner_local.home import LocalError


def test_without_faults_nothing_is_found_and_no_file_is_there(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    assert all(faults.find(kind, "any") is None for kind in KINDS)
    assert faults.for_job("any", spot=True) == faults.for_replica("any") == {}
    assert list(tmp_path.iterdir()) == []


def test_fault_set_by_one_process_acts_in_another_until_it_is_cleared(tmp_path: Path) -> None:
    watching = Faults(tmp_path)
    assert watching.find("failed-ping", "ep") is None
    Faults(tmp_path).set(Fault("failed-ping"))
    assert watching.find("failed-ping", "ep") is not None
    assert Faults(tmp_path).clear("failed-ping") == 1
    assert watching.find("failed-ping", "ep") is None
    assert not (tmp_path / FILE).exists()


def test_fault_hits_only_names_that_match(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.set(Fault("capacity", match="night-*"))
    assert faults.for_job("night-1") == {"capacity_reason": CAPACITY_REASON}
    assert faults.for_job("day-1") == {}


def test_fault_for_n_times_is_gone_after_the_nth(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.set(Fault("slow-start", number=3, times=2))
    seen = [faults.for_replica("ep").get("start_delay_seconds") for _ in range(3)]
    assert seen == [3, 3, None]
    assert not (tmp_path / FILE).exists()


def test_fault_for_a_time_ends_by_itself(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.set(Fault("capacity", until=time.time() - 1))
    assert faults.for_job("any") == {}


def test_setting_the_same_fault_again_replaces_it(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.set(Fault("slow-start", number=3))
    faults.set(Fault("slow-start", number=9))
    assert [item.number for item in faults.all()] == [9]


def test_spot_interruption_is_only_for_spot_jobs(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.set(Fault("spot-interruption", number=2, times=1))
    assert faults.for_job("on-demand") == {}
    assert faults.for_job("spot", spot=True) == {"interrupt_after_seconds": 2}


def test_quota_says_what_aws_says(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.set(Fault("quota", number=1))
    faults.check_quota("training job usage", "ml.g5.xlarge", 1, "job")
    with pytest.raises(ServiceError) as caught:
        faults.check_quota("training job usage", "ml.g5.xlarge", 2, "job")
    assert caught.value.code == "ResourceLimitExceeded"
    assert caught.value.message.startswith(
        "The account-level service limit 'ml.g5.xlarge for training job usage' is 1 Instances, with current utilization "
        "of 0 Instances and a request delta of 2 Instances."
    )


def test_rate_lets_through_what_it_allows(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.set(Fault("throttling", match="List*", number=2))
    faults.check_rate("DescribeTrainingJob")
    faults.check_rate("ListTrainingJobs")
    faults.check_rate("ListTrainingJobs")
    with pytest.raises(ServiceError, match="Rate exceeded"):
        faults.check_rate("ListTrainingJobs")


@pytest.mark.parametrize(
    ("kind", "number", "times", "seconds", "words"),
    [
        ("flood", None, None, None, "Valid: capacity, quota"),
        ("split-stream", 0, None, None, "--bytes of split-stream is 0; valid: 1 and more"),
        ("capacity", None, 0, None, "--times is 0"),
        ("capacity", None, None, -1, "--for is -1"),
    ],
)
def test_bad_fault_is_refused_with_what_is_valid(
    kind: str, number: float | None, times: int | None, seconds: float | None, words: str
) -> None:
    with pytest.raises(LocalError, match=words):
        make(kind, number=number, times=times, seconds=seconds)


def test_command_sets_lists_and_clears(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        assert main(["fault", *arguments]) == 0
        return capsys.readouterr().out

    run("set", "slow-start", "--seconds", "4", "--match", "a*")
    listed = json.loads(run("list", "--json"))
    assert [(item["kind"], item["match"], item["number"]) for item in listed] == [("slow-start", "a*", 4)]
    assert run("list") == "slow-start          on a*  seconds=4  always\n"
    assert run("clear") == "Faults removed: 1.\n"
    assert run("list").startswith("No fault is set.")
