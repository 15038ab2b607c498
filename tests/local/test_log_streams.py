"""FilterLogEvents shows the streams that were asked for."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from llmtuner_kit import aws as aws_module


def test_prefix_chooses_streams(cloud: Path) -> None:
    logs, group = aws_module.connect("local").client("logs"), f"/test/{uuid.uuid4().hex}"
    logs.create_log_group(logGroupName=group)
    for stream in ("job-1/algo-1", "job-1/algo-2", "job-10/algo-1"):
        logs.create_log_stream(logGroupName=group, logStreamName=stream)
        event = {"timestamp": int(time.time() * 1000), "message": stream}
        logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=[event])

    def shown(**more: str) -> set[str]:
        return {item["message"] for item in logs.filter_log_events(logGroupName=group, **more)["events"]}

    assert shown() == {"job-1/algo-1", "job-1/algo-2", "job-10/algo-1"}
    assert shown(logStreamNamePrefix="job-1/") == {"job-1/algo-1", "job-1/algo-2"}
    assert shown(logStreamNamePrefix="job-2/") == set()
