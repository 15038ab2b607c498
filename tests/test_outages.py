"""Watching what runs on AWS outlives an outage, and says what goes on when it has to give up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmtuner_kit import outages
from llmtuner_kit.aws import ClientError
from llmtuner_kit.errors import AccessError, KitError, NotFoundError, NotReadyError
from llmtuner_kit.workspace import Workspace


def translated(kind: type[KitError], text: str) -> KitError:
    """As `aws_errors.translate` makes them: with AWS's own error behind."""
    error = kind(text, fix="do something")
    error.__cause__ = OSError(text)
    return error


class Watched:
    """Something that is looked at: raises these, one a look, and then is seen."""

    def __init__(self, *errors: KitError, charged: bool = True) -> None:
        self.errors, self.waited = list(errors), 0.0
        self.workspace = cast(Workspace, SimpleNamespace(aws=SimpleNamespace(charged=charged)))

    def look(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "seen"

    def wait_out(self) -> Any:
        return outages.wait_out(self.look, self.workspace, "training job lamp", sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.waited += seconds


def test_an_outage_of_minutes_ends_no_watching_and_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    watched = Watched(*[translated(NotReadyError, "DescribeTrainingJob: nothing answers")] * 8)
    assert watched.wait_out() == "seen"
    assert watched.waited > 180
    told = capsys.readouterr().err
    assert told.count("nothing answers") == told.count("training job lamp runs on") == 1


def test_an_outage_without_end_is_an_error_that_says_what_runs_on() -> None:
    watched = Watched(*[translated(NotReadyError, "nothing answers")] * 100)
    with pytest.raises(NotReadyError, match="nothing answers") as caught:
        watched.wait_out()
    assert watched.waited < 900
    assert caught.value.fix.startswith("do something; training job lamp runs on and costs money")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_sign_in_that_ends_while_watching_is_said_at_once_with_what_runs_on() -> None:
    watched = Watched(translated(AccessError, "AWS does not accept the credentials (ExpiredTokenException)"))
    with pytest.raises(AccessError, match="ExpiredToken") as caught:
        watched.wait_out()
    assert watched.waited == 0
    assert "training job lamp runs on" in caught.value.fix


def test_a_local_cloud_that_is_told_to_throttle_is_waited_for_as_aws_is() -> None:
    error = NotReadyError("AWS asks to slow down")
    error.__cause__ = ClientError({"Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}, "Describe")
    watched = Watched(*[error] * 3, charged=False)
    assert watched.wait_out() == "seen"
    assert watched.waited == 35.0


def test_what_is_not_there_does_not_run_on() -> None:
    with pytest.raises(NotFoundError) as caught:
        Watched(NotFoundError("There is no training job 'lamp'.")).wait_out()
    assert "runs on" not in caught.value.text()


def test_a_local_cloud_that_was_stopped_is_not_waited_for() -> None:
    watched = Watched(translated(NotReadyError, "nothing answers"), charged=False)
    with pytest.raises(NotReadyError) as caught:
        watched.wait_out()
    assert watched.waited == 0
    assert caught.value.fix == "do something"
