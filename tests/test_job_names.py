"""The same inputs have the same name until their job has failed; every name ends with its user's mark."""

from __future__ import annotations

import pytest

from llmtuner_kit import access, job_names, paths
from llmtuner_kit.errors import ConflictError


def named(base: str = "demo-tiny-llama", **statuses: str) -> str:
    return job_names.of_inputs(base, "1234abcd", "ada", lambda name: statuses.get(name.replace("-", "_"), ""))


def test_a_job_that_failed_makes_room_and_one_that_runs_or_has_ended_well_does_not() -> None:
    first = named()
    second = named(**{first.replace("-", "_"): "Failed"})
    assert second != first
    for status in ("InProgress", "Stopping", "Completed"):
        assert named(**{first.replace("-", "_"): status}) == first
    both = {first.replace("-", "_"): "Failed", second.replace("-", "_"): "Stopped"}
    assert named(**both) not in (first, second)


@pytest.mark.parametrize("base", ["a", "demo", "A run / of 2026", "x" * 200])
def test_every_name_is_one_that_sagemaker_takes_and_ends_with_the_mark(base: str) -> None:
    name = named(base)
    assert paths.check_name(name, "job_name") == name
    assert name.endswith(f"1234abcd-{access.user_mark('ada')}")


def test_jobs_that_fail_without_end_are_not_tried_without_end() -> None:
    with pytest.raises(ConflictError, match="99 jobs of the same inputs"):
        job_names.of_inputs("demo", "1234abcd", "ada", lambda _: "Failed")
