"""The supervisors' side of S3, CloudWatch Logs and CloudWatch on the local cloud."""

from __future__ import annotations

import os
from typing import Any

from llmtuner_local.emulator.shim import trees
from llmtuner_local.home import ACCESS_KEY, REGION, SECRET_KEY

_RETRY_SECONDS = 1.0


def client(service: str, url: str, *, attempts: int | None = None) -> Any:
    """A boto3 client of the local cloud.

    Args:
        attempts: how often a call is tried. None: LocalStack is waited for, however long it is away (it may have been
            killed, and will be started again), and errors that pass are tried five times.
    """
    import boto3
    from botocore.config import Config

    made = boto3.client(
        service,
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(
            s3={"addressing_style": "path"},
            retries={"mode": "standard", "total_max_attempts": attempts or 5},
            max_pool_connections=16,
        ),
    )
    if attempts is None:
        made.meta.events.register_first("needs-retry", _wait_for_localstack)
    return made


def _wait_for_localstack(attempts: int, caught_exception: Exception | None, **_: Any) -> float | None:
    """Seconds until the next attempt when nothing answered; None leaves the decision to botocore."""
    return min(0.05 * 2 ** min(attempts, 9), _RETRY_SECONDS) if is_unreachable(caught_exception) else None


def is_unreachable(error: Exception | None) -> bool:
    """Whether an error says that nobody answered, or not to the end."""
    from botocore.exceptions import ConnectionError as NoConnectionError
    from botocore.exceptions import HTTPClientError

    return isinstance(error, HTTPClientError | NoConnectionError)


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` -> (bucket, key)."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def as_folder(prefix: str) -> str:
    """A prefix that cuts no name: with a slash at its end, unless it is the whole bucket."""
    return prefix if prefix.endswith("/") or not prefix else prefix + "/"


def upload(s3: Any, entry: trees.Entry, bucket: str, key: str, extra: dict[str, str]) -> None:
    """Upload one file that a container left, whatever LocalStack goes through meanwhile.

    Args:
        extra: boto3's ExtraArgs.
    """
    for last in (False, False, True):
        try:
            with trees.open_file(entry.base, entry.path) as file:
                s3.upload_fileobj(file, bucket, key, ExtraArgs=extra)
            return
        except s3.exceptions.ClientError as error:
            # It was completed, but LocalStack was killed before it could say so, and asking again fails.
            if last or error.response["Error"]["Code"] != "NoSuchUpload":
                raise


def base_environment() -> dict[str, str]:
    """The part of this process's environment a container may see: no AWS settings, no kit settings, no home."""
    hidden = ("AWS_", "LLMTUNER_", "SAGEMAKER_", "SM_", "HOME", "PYTHONPATH", "JPY_", "XDG_")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
