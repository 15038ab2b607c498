"""Targets resolve to sessions."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from botocore.credentials import Credentials, RefreshableCredentials

from llmtuner_kit import aws
from llmtuner_kit.errors import AccessError, LocalCloudError, NotReadyError, SettingsError
from llmtuner_kit.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable

    import boto3


@pytest.fixture
def unused_port() -> int:
    """A port of this machine at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ending_in(minutes: int) -> RefreshableCredentials:
    """Credentials of a role, which end half a minute after these."""
    end = datetime.now(UTC) + timedelta(minutes=minutes, seconds=30)
    return RefreshableCredentials("key", "secret", "token", end, dict, "assume-role")


def test_a_target_that_does_not_answer_is_known_after_seconds(
    monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused_port}")
    began = time.monotonic()
    with pytest.raises(NotReadyError, match="nothing answers"):
        _ = aws.connect("aws", "us-east-1").account_id
    assert time.monotonic() - began < 4  # one repetition, at most a second later


@pytest.mark.parametrize(
    "written",
    [
        "[default\n",
        "[default]\nregion = us east\n",
        "[default]\nregion = us-east-1\nsso_start_url = https://x.awsapps.com/start\n",
    ],
    ids=["no INI file", "no region", "half of an SSO profile"],
)
def test_an_aws_configuration_that_is_half_written_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: str
) -> None:
    file = tmp_path / "config"
    file.write_text(written)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    with pytest.raises((SettingsError, AccessError)):
        _ = aws.connect("aws", "").account_id


def test_unknown_target_lists_the_targets() -> None:
    with pytest.raises(SettingsError, match="local, local-docker, aws"):
        aws.connect("azure")


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_PROFILE", "llmtuner-local"), ("AWS_ENDPOINT_URL_SAGEMAKER", "http://127.0.0.1:4580")],
)
def test_a_shell_set_up_for_the_local_cloud_is_not_taken_for_aws(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`eval "$(llmtuner local env)"` leads all of boto3 there: nothing would run on AWS, and be called charged."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="talks to the local cloud") as caught:
        aws.connect("aws", "us-east-1")
    assert "llmtuner local env" in caught.value.fix


def test_aws_without_a_region_asks_for_one() -> None:
    with pytest.raises(SettingsError, match="region"):
        aws.connect("aws")


def test_aws_target_is_plain_boto3_and_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    connection = aws.connect("aws")
    assert connection.region == "eu-west-1"
    assert connection.charged
    assert connection.endpoint_url("sagemaker") == "https://api.sagemaker.eu-west-1.amazonaws.com"
    assert connection.client("s3").meta.region_name == "eu-west-1"


@pytest.mark.parametrize(
    ("region", "host", "partition"),
    [
        ("eu-west-1", "kept.s3.eu-west-1.amazonaws.com", "aws"),
        ("cn-north-1", "kept.s3.cn-north-1.amazonaws.com.cn", "aws-cn"),
        ("us-gov-west-1", "kept.s3.us-gov-west-1.amazonaws.com", "aws-us-gov"),
    ],
)
def test_links_are_signed_for_the_buckets_own_region_in_the_way_kms_asks_for(
    region: str, host: str, partition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    connection = aws.connect("aws", region)
    link = connection.client("s3").generate_presigned_url("get_object", Params={"Bucket": "kept", "Key": "model"})
    assert link.startswith(f"https://{host}/model?X-Amz-Algorithm=AWS4-HMAC-SHA256&")
    assert connection.partition == partition


def test_unknown_profile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(SettingsError, match="nobody"):
        aws.connect("aws", "us-east-1")


def test_local_target_differs_by_endpoint_urls_only(workspace: Workspace) -> None:
    connection = workspace.aws
    assert not connection.charged
    assert connection.account_id == "000000000000"
    for service in ("s3", "sts", "logs", "sagemaker", "sagemaker-runtime"):
        assert "127.0.0.1" in connection.endpoint_url(service) or "localhost" in connection.endpoint_url(service)


def test_local_cloud_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LLMTUNER_HOME", str(tmp_path / "file"))
    with pytest.raises(LocalCloudError, match="llmtuner local status") as caught:
        aws.connect("local")
    assert "Traceback" not in caught.value.problem
    assert str(tmp_path / "file") in caught.value.problem


def test_threads_that_ask_at_once_share_one_client_made_once() -> None:
    together = threading.Barrier(4)
    making: list[str] = []

    class Session:
        def client(self, service: str, **_: object) -> object:
            making.append(service)
            time.sleep(0.05)  # long enough for the others to ask meanwhile
            assert making == [service]
            return object()

    connection = aws.Aws("local", "us-east-1", cast("boto3.Session", Session()))

    def ask(_: int) -> object:
        together.wait()
        return connection.client("s3")

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1


@pytest.mark.parametrize(
    ("made", "lasting"),
    [
        (lambda: Credentials("key", "secret"), 60),
        (lambda: Credentials("key", "secret", "token"), None),
        (lambda: ending_in(minutes=12), 12),
        (lambda: ending_in(minutes=90), 60),
        (lambda: ending_in(minutes=-1), 0),
    ],
    ids=["keys of a user", "a token of unknown end", "a role's, nearly over", "a role's", "over"],
)
def test_a_link_cannot_outlive_the_credentials_that_sign_it(
    made: Callable[[], Credentials], lasting: int | None
) -> None:
    session = cast("boto3.Session", SimpleNamespace(get_credentials=made))
    assert aws.Aws("aws", "us-east-1", session).credentials_last(60) == lasting
