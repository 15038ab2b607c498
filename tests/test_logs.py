"""Log lines are read to the end of every stream, page by page."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmtuner_kit import logs
from llmtuner_kit.aws import ClientError
from llmtuner_kit.workspace import Workspace


class Service:
    """CloudWatch Logs with pages as AWS may cut them: an empty one is not the end, a token that stays the same is."""

    def __init__(self, streams: dict[str, list[list[str]]]) -> None:
        self.streams, self.calls = streams, 0

    def get_paginator(self, operation: str) -> Any:
        assert operation == "describe_log_streams"
        return SimpleNamespace(paginate=self._pages)

    def _pages(self, **request: str) -> list[dict[str, Any]]:
        if not self.streams:
            raise ClientError({"Error": {"Code": "ResourceNotFoundException"}}, "DescribeLogStreams")
        return [
            {"logStreams": [{"logStreamName": name}]}
            for name in self.streams
            if name.startswith(request.get("logStreamNamePrefix", ""))
        ]

    def get_log_events(self, **request: Any) -> dict[str, Any]:
        self.calls += 1
        pages = self.streams[request["logStreamName"]]
        if not request["startFromHead"]:
            whole = [text for page in pages for text in page]
            return {
                "events": [{"message": text, "timestamp": int(text.split()[-1])} for text in whole[-request["limit"] :]]
            }
        at = int(request.get("nextToken", "0"))
        events = [{"message": text} for page in pages[at : at + 1] for text in page]
        return {"events": events, "nextForwardToken": str(min(at + 1, len(pages)))}


def workspace(service: Service) -> Workspace:
    return cast(Workspace, SimpleNamespace(aws=SimpleNamespace(client=lambda _: service)))


def test_an_empty_page_is_not_the_end_of_a_stream() -> None:
    service = Service({"job/algo-1-1": [["one"], [], ["two"], []]})
    tokens: dict[str, str] = {}
    assert logs.new_lines(workspace(service), "group", "job/", tokens) == [
        ("job/algo-1-1", "one"),
        ("job/algo-1-1", "two"),
    ]
    service.streams["job/algo-1-1"].append(["three"])
    before = service.calls
    assert logs.new_lines(workspace(service), "group", "job/", tokens) == [("job/algo-1-1", "three")]
    assert service.calls == before + 2
    assert logs.new_lines(workspace(service), "group", "job/", tokens) == []
    assert service.calls == before + 3, "nothing new costs one request"


def test_only_streams_of_the_job_are_read_and_all_pages_of_their_names() -> None:
    service = Service({"job/algo-1-1": [["a"]], "job/algo-2-1": [["b"]], "job-2/algo-1-1": [["other"]]})
    assert [line for _, line in logs.new_lines(workspace(service), "group", "job/", {})] == ["a", "b"]


def test_the_last_lines_of_all_instances_are_in_the_order_of_time() -> None:
    service = Service({"AllTraffic/i-1": [["at 1", "at 4"]], "AllTraffic/i-2": [["at 2", "at 3"]]})
    assert logs.last_lines(workspace(service), "group", 3) == ["at 2", "at 3", "at 4"]


@pytest.mark.parametrize("prefix", ["job/", ""])
def test_before_the_first_line_there_is_no_group(prefix: str) -> None:
    assert logs.new_lines(workspace(Service({})), "group", prefix, {}) == []
    assert logs.last_lines(workspace(Service({})), "group", 5) == []
