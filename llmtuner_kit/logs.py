"""Log lines of jobs and endpoints, from CloudWatch Logs."""

from __future__ import annotations

from typing import Any

from llmtuner_kit.aws import ClientError, is_error
from llmtuner_kit.workspace import Workspace


def new_lines(workspace: Workspace, group: str, prefix: str, tokens: dict[str, str]) -> list[tuple[str, str]]:
    """(stream, line) of every stream whose name begins so, since the tokens by stream, which are brought forward."""
    client = workspace.aws.client("logs")
    found = []
    for stream in _streams(client, logGroupName=group, logStreamNamePrefix=prefix):
        while True:
            since = {"nextToken": tokens[stream]} if stream in tokens else {}
            answer = client.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True, **since)
            found += [(stream, item["message"]) for item in answer["events"]]
            # A page may be empty and more come after it: the end is where the token stays the same.
            ended = answer["nextForwardToken"] == tokens.get(stream)
            tokens[stream] = answer["nextForwardToken"]
            if ended:
                break
    return found


def last_lines(workspace: Workspace, group: str, limit: int) -> list[str]:
    """The last lines of all streams of a group, oldest first."""
    client = workspace.aws.client("logs")
    events: list[dict[str, Any]] = []
    for stream in _streams(client, logGroupName=group):
        answer = client.get_log_events(logGroupName=group, logStreamName=stream, limit=limit, startFromHead=False)
        events += answer["events"]
    return [item["message"] for item in sorted(events, key=lambda item: item["timestamp"])][-limit:]


def _streams(client: Any, **which: str) -> list[str]:
    """Names of the streams; none where there is no such group yet."""
    try:
        pages = client.get_paginator("describe_log_streams").paginate(**which)
        return sorted(item["logStreamName"] for page in pages for item in page["logStreams"])
    except ClientError as error:
        if is_error(error, "ResourceNotFoundException"):
            return []
        raise
