"""Known failures get their cause, unknown ones no guess."""

from __future__ import annotations

import pytest

from llmtuner_kit import troubles


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out-of-memory"),
        ("AlgorithmError: , exit code: 137", "out-of-memory"),
        ("the loss is nan after 12 steps", "not-a-number"),
        ("OSError: You are trying to access a gated repo.", "gated-model"),
        ("huggingface_hub.errors.GatedRepoError: 401 Client Error", "gated-model"),
        ("CapacityError: Unable to provision requested ML compute capacity", "capacity"),
        ("The account-level service limit 'ml.g5.xlarge for endpoint usage' is 0 Instances", "quota"),
        ("The primary container for production variant AllTraffic did not pass the ping health check.", "ping"),
        ("wrong hyperparameters: epochs is 'many', it must be a number", "hyperparameter"),
        ("OSError: [Errno 28] No space left on device", "disk"),
        ("InternalServerError: The disk of /home/me/.llmtuner/jobs/a on this machine is full.", "disk-here"),
        ("ClientError: AccessDenied when calling PutObject", "access"),
        ("InternalServerError: We encountered an internal error. Please try again.", "platform"),
    ],
)
def test_known_failures_are_recognised_with_a_next_step(text: str, kind: str) -> None:
    found = troubles.recognise(text)
    assert found is not None
    assert found.kind == kind
    assert found.fix


@pytest.mark.parametrize(
    "text",
    ["", "metric step=3 train_loss=2.5", "ValueError: something new", "checkpoint step-00000091 saved", "loss 2.1"],
)
def test_what_is_not_known_gets_no_confident_answer(text: str) -> None:
    assert troubles.recognise(text) is None


def test_log_is_looked_at_when_the_reason_says_nothing() -> None:
    found = troubles.recognise("AlgorithmError: , exit code: 1", ["fine", "CUDA out of memory", "at line 3"])
    assert found is not None
    assert found.evidence == "CUDA out of memory"


def test_the_last_known_failure_of_a_log_is_the_one() -> None:
    found = troubles.recognise(
        "AlgorithmError: , exit code: 1", ["CUDA out of memory", "trying again", "No space left on device"]
    )
    assert found is not None
    assert found.kind == "disk"
