"""The state of CloudWatch alarms that deployments and scaling policies depend on, kept fresh beside the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

_FORGET_SECONDS = 60.0


class Alarms:
    """Alarms by name, as CloudWatch last told them; `look` is the only part that waits for CloudWatch."""

    def __init__(self, client: Callable[[], Any]) -> None:
        self._client = client
        self._wanted: dict[str, float] = {}
        self._alarms: dict[str, dict[str, Any]] = {}
        self._follow_actions = False

    def watch(self, names: Iterable[str]) -> None:
        """Keep an eye on alarms; those nobody asks for any longer are forgotten after a minute."""
        self._wanted |= dict.fromkeys(names, time.monotonic())

    def firing(self, names: Iterable[str]) -> list[str]:
        """Those of the alarms that are in state ALARM."""
        listed = list(names)
        self.watch(listed)
        return [name for name in listed if self._alarms.get(name, {}).get("StateValue") == "ALARM"]

    def with_action(self, arn: str) -> list[dict[str, Any]]:
        """Every alarm in state ALARM that names this ARN as an alarm action."""
        self._follow_actions = True
        return [
            item
            for item in self._alarms.values()
            if item["StateValue"] == "ALARM"
            and item.get("ActionsEnabled", True)
            and arn in item.get("AlarmActions", [])
        ]

    @property
    def needed(self) -> bool:
        """Whether somebody depends on an alarm now."""
        horizon = time.monotonic() - _FORGET_SECONDS
        self._wanted = {name: moment for name, moment in self._wanted.items() if moment > horizon}
        return bool(self._wanted) or self._follow_actions

    def look(self) -> None:
        """Ask CloudWatch. Blocks: call it in a thread."""
        names = [] if self._follow_actions else sorted(self._wanted)
        self._follow_actions = False
        asked = [{"AlarmNames": names[start : start + 100]} for start in range(0, len(names), 100)] or [{}]
        pages = [page for item in asked for page in self._client().get_paginator("describe_alarms").paginate(**item)]
        self._alarms = {item["AlarmName"]: item for page in pages for item in page.get("MetricAlarms", [])}
