"""Targets, sessions and clients: the only importer of boto3, and with aws_errors.py of botocore.

    aws = connect("local")
    aws.client("sagemaker").list_training_jobs()

A target is resolved here, once, to a boto3 session. `local` and `local-docker` are profiles that the local
cloud writes: standard AWS configuration with endpoint URLs in it. Nothing above this module knows which it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import BotoCoreError, ClientError, ConfigParseError, ProfileNotFound

from llmtuner_kit.aws_errors import BROKEN_BODY, THROTTLED, error_code, error_message, is_error, translate
from llmtuner_kit.errors import LocalCloudError, SettingsError

__all__ = [
    "BROKEN_BODY", "THROTTLED", "Aws", "ClientError", "connect", "described", "error_code", "error_message", "is_error",
    "object_head", "object_sizes",
]  # fmt: skip

# The local cloud's profiles by target; it writes them, this is the shared vocabulary.
_LOCAL_PROFILES = {"local": "llmtuner-local", "local-docker": "llmtuner-local-docker"}
_CONFIG = Config(
    retries={"mode": "standard", "max_attempts": 6},
    connect_timeout=10,
    # A real-time endpoint may take 60 s; with a shorter read timeout a slow answer would be asked for twice.
    read_timeout=70,
    max_pool_connections=32,
)
# Left to itself botocore signs links to objects the old way, which S3 refuses for objects under a KMS key.
_S3_CONFIG = _CONFIG.merge(Config(signature_version="s3v4"))
# Who am I, the first thing that is asked of a target: where nothing answers, that is known after seconds, not minutes.
_FIRST_CONTACT = Config(retries={"mode": "standard", "max_attempts": 2}, connect_timeout=5, read_timeout=20)
_CONFIGS = {"s3": _S3_CONFIG, "sts": _FIRST_CONTACT}


@dataclass(frozen=True)
class Aws:
    """One connection: a session on a target."""

    target: str
    region: str
    session: boto3.Session = field(repr=False)
    _clients: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _making: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def charged(self) -> bool:
        """Whether what runs here appears on a bill."""
        return self.target == "aws"

    @cached_property
    def account_id(self) -> str:
        return str(self.client("sts").get_caller_identity()["Account"])

    @cached_property
    def caller_arn(self) -> str:
        return str(self.client("sts").get_caller_identity()["Arn"])

    @property
    def partition(self) -> str:
        """What ARNs of the region begin with: aws, aws-cn or aws-us-gov."""
        return str(self.session.get_partition_for_region(self.region))

    def client(self, service: str) -> Any:
        """A boto3 client whose everyday failures (denied, quota, credentials, unreachable) are KitErrors."""
        with self._making:  # clients may be shared between threads, but not be made by two at once
            if service not in self._clients:
                with _plainly():  # a profile may be half written
                    self._clients[service] = self.session.client(service, config=_CONFIGS.get(service, _CONFIG))
            return self._clients[service]

    def credentials_last(self, minutes: int) -> int | None:
        """How many of these minutes the credentials in use will last; None: they are temporary, and their end is unknown."""
        credentials = self.session.get_credentials()
        if isinstance(credentials, RefreshableCredentials):
            return next((item for item in range(minutes, 0, -1) if not credentials.refresh_needed(item * 60)), 0)
        return None if credentials and credentials.token else minutes

    def endpoint_url(self, service: str) -> str:
        """The address a service answers at."""
        return str(self.client(service).meta.endpoint_url)


def connect(target: str = "local", region: str = "") -> Aws:
    """Resolve a target; starts the local cloud when it is needed and not running."""
    if target in _LOCAL_PROFILES:
        return _connect_local(target, region, os.environ.get("LLMTUNER_HOME", ""))
    if target != "aws":
        raise SettingsError(f"{target!r} is not a target.", valid="local, local-docker, aws")
    session = botocore.session.Session()
    here = _set_up_for_the_local_cloud(session)
    if here:
        raise SettingsError(
            f"target is 'aws', but {here} is set: what runs here talks to the local cloud.",
            fix='start it from a shell in which `eval "$(llmtuner local env)"` was not run, or use target local',
        )
    try:
        chosen = region or session.get_config_variable("region")
    except (ProfileNotFound, ConfigParseError) as error:
        raise _misconfigured(error) from None
    if not chosen:
        raise SettingsError(
            "No AWS region is set.",
            fix="set region, or AWS_DEFAULT_REGION, or run `aws configure`; target local needs none of them",
        )
    return _open("aws", session, chosen)


def _set_up_for_the_local_cloud(session: botocore.session.Session) -> str:
    """The variable that leads all of boto3 to the local cloud, as `llmtuner local env` sets them; empty: none does."""
    if session.profile in _LOCAL_PROFILES.values():
        return f"AWS_PROFILE={session.profile}"
    url = os.environ.get("AWS_ENDPOINT_URL_SAGEMAKER", "")
    return f"AWS_ENDPOINT_URL_SAGEMAKER={url}" if urlsplit(url).hostname in ("127.0.0.1", "localhost") else ""


@lru_cache(maxsize=8)
def _connect_local(target: str, region: str, _home: str) -> Aws:
    # The home is part of the cache key only: each LLMTUNER_HOME is a cloud of its own.
    cloud = start_local_cloud(containers=target == "local-docker")
    session = botocore.session.Session(profile=_LOCAL_PROFILES[target])
    session.set_config_variable("config_file", cloud["config_file"])
    session.set_config_variable("credentials_file", cloud["credentials_file"])
    return _open(target, session, region or cloud["region"])


def start_local_cloud(*, containers: bool = False) -> Mapping[str, Any]:
    """Make sure that the local cloud runs; returns its addresses. A process of its own, never an import.

    Args:
        containers: also check the Docker engine and build the image of target local-docker, once for minutes.
    """
    command = [sys.executable, "-m", "llmtuner_local", "up", "--json", *(["--docker"] if containers else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        assert up.stdout
        assert up.stderr
        said = []
        for line in up.stderr:
            said.append(line.strip())
            if not any(item.startswith("llmtuner local:") for item in said):  # an error is shown once, as an error
                sys.stderr.write(line)
        answer = up.stdout.read()
    if up.returncode:
        lines = [line.removeprefix("llmtuner local: ") for line in said if line]
        raise LocalCloudError(
            "\n".join(lines[-6:]) or f"`llmtuner local up` ended with exit code {up.returncode}.",
            fix="run `llmtuner local status`, put right what it names, then run this again",
        )
    found: Mapping[str, Any] = json.loads(answer.strip().splitlines()[-1])
    return found


def forget_connections() -> None:
    """Look for the local cloud anew at the next `connect` (it was stopped or moved)."""
    _connect_local.cache_clear()


def _open(target: str, session: botocore.session.Session, region: str) -> Aws:
    session.register("creating-client-class", _speak_plainly)
    try:
        # Links name the bucket's own region: at the host of all regions a new bucket is unknown for hours.
        s3 = {"addressing_style": "virtual", **(session.get_config_variable("s3") or {})}
        session.set_default_client_config(Config(s3=s3))
        return Aws(target, region, boto3.Session(botocore_session=session, region_name=region))
    except ProfileNotFound as error:
        raise _misconfigured(error) from None


def _speak_plainly(base_classes: list[type], **_: object) -> None:
    base_classes.insert(0, _PlainErrors)


class _PlainErrors:
    """Mixed into every client: what the user can put right becomes a KitError, everything else passes."""

    def _make_api_call(self, operation_name: str, api_params: Mapping[str, Any]) -> Any:
        with _plainly(operation_name):
            return super()._make_api_call(operation_name, api_params)  # type: ignore[misc]


@contextmanager
def _plainly(operation: str = "") -> Iterator[None]:
    """Inside, failures that every user can meet are KitErrors."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        plain = translate(error, operation)
        if plain is None:
            raise
        raise plain from error


def _misconfigured(error: Exception) -> SettingsError:
    return SettingsError(
        f"AWS configuration: {error}",
        fix="repair the file it names, or set AWS_PROFILE to a profile of `aws configure list-profiles`",
    )


def described(describe: Callable[..., dict[str, Any]], **names: str) -> dict[str, Any] | None:
    """What a Describe of SageMaker answers, or None where there is nothing of the name."""
    try:
        return describe(**names)
    except ClientError as error:
        if is_error(error, "ValidationException", "ResourceNotFound"):
            return None
        raise


def object_head(s3: Any, bucket: str, key: str, **asked: str) -> dict[str, Any] | None:
    """HeadObject of S3, or None where there is no object of the key."""
    try:
        found: dict[str, Any] = s3.head_object(Bucket=bucket, Key=key, **asked)
    except ClientError as error:
        if is_error(error, "404", "NoSuchKey"):
            return None
        raise
    return found


def object_sizes(s3: Any, bucket: str, prefix: str) -> dict[str, int]:
    """Key -> bytes of every object whose key begins with the prefix."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {item["Key"]: int(item["Size"]) for page in pages for item in page.get("Contents", [])}
