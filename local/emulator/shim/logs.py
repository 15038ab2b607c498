"""A container's output on its way to CloudWatch Logs, and its metrics to CloudWatch."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from llmtuner_local.emulator.shim import cloud

log = logging.getLogger(__name__)


class LogShipper:
    """Lines of a container to one CloudWatch Logs stream, in batches, by a thread of its own.

    Lines wait while LocalStack is away. `close` returns when everything is stored: the status of a job turns
    terminal only after that.
    """

    def __init__(self, url: str, group: str, stream: str) -> None:
        self._logs = cloud.client("logs", url)
        # Asks once: sending lines again is not harmless, so `_put` looks first whether they arrived.
        self._once = cloud.client("logs", url, attempts=1)
        self._cloudwatch: Any = None
        self._last = 0
        self._url, self._group, self._stream = url, group, stream
        self._lines: list[dict[str, Any]] = []
        self._points: list[tuple[str, list[dict[str, Any]]]] = []
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="log-shipper", daemon=True)
        self._thread.start()

    def line(self, text: str) -> None:
        """Queue one line; empty ones are kept as a space, as CloudWatch takes no empty message."""
        with self._wake:
            self._last = max(self._last, int(time.time() * 1000))  # CloudWatch refuses a batch that goes back in time
            self._lines.append({"timestamp": self._last, "message": text[:250_000] or " "})
            self._wake.notify()

    def points(self, namespace: str, data: list[dict[str, Any]]) -> None:
        """Queue metric data."""
        with self._wake:
            self._points.append((namespace, data))
            self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        self._create()
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._lines or self._points or self._closing)
                lines, self._lines = self._lines, []
                points, self._points = self._points, []
                closing = self._closing
            self._send(lines)
            for namespace, data in points:
                self._measure(namespace, data)
            if closing and not self._lines and not self._points:
                return
            if not closing:
                with self._wake:  # gather for a moment: one call for many lines
                    self._wake.wait_for(lambda: self._closing, timeout=0.25)

    def _measure(self, namespace: str, data: list[dict[str, Any]]) -> None:
        self._cloudwatch = self._cloudwatch or cloud.client("cloudwatch", self._url)
        try:
            self._cloudwatch.put_metric_data(Namespace=namespace, MetricData=data)
        except ClientError:
            log.exception("CloudWatch refused a metric, which is left out")

    def _create(self) -> None:
        for call, name in ((self._logs.create_log_group, None), (self._logs.create_log_stream, self._stream)):
            try:
                call(logGroupName=self._group, **({"logStreamName": name} if name else {}))
            except self._logs.exceptions.ResourceAlreadyExistsException:
                continue

    def _send(self, lines: list[dict[str, Any]]) -> None:
        batch: list[dict[str, Any]] = []
        size = 0
        for line in lines:
            weight = len(line["message"].encode()) + 26
            if batch and (size + weight > 1_000_000 or len(batch) >= 5_000):
                self._put(batch)
                batch, size = [], 0
            batch.append(line)
            size += weight
        if batch:
            self._put(batch)

    def _put(self, batch: list[dict[str, Any]]) -> None:
        """Store a batch once, also when LocalStack goes away before it can say that it has it."""
        while True:
            try:
                self._once.put_log_events(logGroupName=self._group, logStreamName=self._stream, logEvents=batch)
                return
            except self._once.exceptions.ResourceNotFoundException:
                self._create()  # somebody deleted the group while the container runs
            except ClientError:
                log.exception("CloudWatch Logs refused %s lines, which are left out", len(batch))
                return
            except BotoCoreError as error:
                if not cloud.is_unreachable(error):
                    raise
                if self._arrived(batch):
                    return

    def _arrived(self, batch: list[dict[str, Any]]) -> bool:
        """Wait for LocalStack, and look whether the end of the stream is this batch."""
        try:
            found = self._logs.get_log_events(
                logGroupName=self._group, logStreamName=self._stream, limit=len(batch), startFromHead=False
            )["events"]
        except self._logs.exceptions.ResourceNotFoundException:
            return False
        return [(item["timestamp"], item["message"]) for item in found] == [
            (item["timestamp"], item["message"]) for item in batch
        ]
