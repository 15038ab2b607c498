"""The OpenAI-compatible door: bearer tokens, the container's own /v1/chat/completions, OpenAI's error envelope."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

PREFIX = "sagemaker-api-key-"
LONGEST_SECONDS = 12 * 3600


def token_problem(authorization: str, now: datetime | None = None) -> str:
    """What is wrong with an Authorization header; empty when it is good.

    The token is a presigned CallWithBearerToken URL; its signature is not checked here, its time is.
    """
    if not authorization.startswith("Bearer " + PREFIX):
        return "a bearer token made by generate_token is needed; request signatures are not taken here"
    try:
        text = base64.b64decode(authorization.removeprefix("Bearer " + PREFIX), validate=False).decode()
        fields = {
            name: values[0]
            for name, values in parse_qs(urlsplit("https://" + text.removeprefix("https://")).query).items()
        }
        issued = datetime.strptime(fields["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        seconds = int(fields["X-Amz-Expires"])
    except (KeyError, ValueError, binascii.Error, UnicodeDecodeError):
        return "the bearer token cannot be read"
    if fields.get("Action") != "CallWithBearerToken":
        return "the bearer token is for another action"
    if seconds > LONGEST_SECONDS:
        return "the bearer token lives longer than 12 hours"
    if (now or datetime.now(UTC)) > issued + timedelta(seconds=seconds):
        return "the bearer token has expired"
    return ""


def envelope(message: str, kind: str, code: str) -> bytes:
    """An error as OpenAI's clients read it."""
    return json.dumps({"error": {"message": message, "type": kind, "code": code}}).encode()
