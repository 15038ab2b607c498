"""The workspace: which cloud, which bucket, whose prefix.

workspace = open_workspace(settings)
workspace.paths.uploads("tickets")      # users/me/uploads/tickets/
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from functools import cached_property

from llmtuner_kit import aws as aws_module
from llmtuner_kit import buckets, paths
from llmtuner_kit.aws import Aws
from llmtuner_kit.errors import AccessError
from llmtuner_kit.run_settings import RunSettings


@dataclass(frozen=True)
class Workspace:
    """Where everything of one user happens."""

    aws: Aws
    bucket: str
    user_id: str

    @cached_property
    def paths(self) -> paths.UserPaths:
        return paths.UserPaths(self.bucket, self.user_id)

    def require_own(self, uri: str) -> str:
        """Return the URI when it lies in this user's prefix, else raise AccessError."""
        if not self.paths.owns(uri):
            raise AccessError(
                f"{uri} is not in the prefix of user {self.user_id!r}.",
                valid=f"s3://{self.bucket}/{self.paths.root}...",
                fix="upload the data with 01_upload, or ask its owner for a copy",
            )
        return uri


def default_bucket(account_id: str, region: str) -> str:
    """The kit's own bucket of an account and region."""
    return f"llmtuner-{account_id}-{region}"


def _login_name() -> str:
    """Empty where nobody has one: a container may run as a number that no file knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def open_workspace(settings: RunSettings) -> Workspace:
    """Connect to the target and make sure that the bucket is there and closed to everybody else.

    A missing bucket of the kit's own name is created; a bucket named in the settings must exist, belong to
    this account and be reachable.
    """
    connection = aws_module.connect(settings.target, settings.region)
    bucket = settings.bucket or default_bucket(connection.account_id, connection.region)
    user_id = settings.user_id or paths.slug(_login_name()) or "me"
    own = paths.UserPaths(bucket, user_id).root
    buckets.ensure_bucket(connection, bucket, may_create=not settings.bucket, prefix=own)
    return Workspace(connection, bucket, user_id)
