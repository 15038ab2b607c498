"""Creating something in SageMaker, whose name carries the hash of what it is made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from llmtuner_kit.aws import ClientError, error_message, is_error
from llmtuner_kit.errors import SettingsError

_KNOWN_AFTER = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before asking again for what was made a moment ago
# What SageMaker says while it, or IAM, has not told everywhere of a configuration, a role or a role's policy.
_NOT_KNOWN_YET = ("Could not find", "Could not assume role", "Could not access model data", "No S3 objects found")


def once(
    create: Callable[..., dict[str, Any]], *, sleep: Callable[[float], None] = time.sleep, **request: Any
) -> dict[str, Any] | None:
    """Create something; None where the name is taken: it was made from the same inputs.

    Reads of SageMaker and IAM are eventually consistent: what was made a moment ago may not be known yet.
    Raises SettingsError in SageMaker's words.
    """
    waits = iter(_KNOWN_AFTER)
    while True:
        try:
            return create(**request)
        except ClientError as error:
            message = error_message(error)
            if is_error(error, "ResourceInUse") or "already existing" in message:
                return None
            seconds = next(waits, None)
            if seconds is None or not message.startswith(_NOT_KNOWN_YET):
                raise SettingsError(f"SageMaker refuses: {message}", fix=_fix(message)) from error
        sleep(seconds)


def _fix(message: str) -> str:
    if "ensure that the role" not in message:
        return "change what it names"
    return (
        "`llmtuner access role --create` brings the role up to date, which AWS knows everywhere after a minute; "
        "then run the cell again"
    )
