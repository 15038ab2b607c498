"""FilterLogEvents with `logStreamNamePrefix`, which LocalStack takes and ignores: a job would show the lines of others."""

from __future__ import annotations

import json
from typing import Any


def install() -> None:
    """Make the prefix choose streams."""
    from moto.logs.responses import LogsResponse

    plain = LogsResponse.filter_log_events

    def filter_log_events(self: Any) -> str:
        prefix = self._get_param("logStreamNamePrefix")
        group = self.logs_backend.groups.get(self._get_param("logGroupName"))
        if not prefix or group is None:
            return str(plain(self))
        names = [name for name in group.streams if name.startswith(prefix)]
        if not names:
            return json.dumps({"events": [], "searchedLogStreams": []})
        get = self._get_param
        self._get_param = lambda name, default=None: names if name == "logStreamNames" else get(name, default)
        return str(plain(self))

    LogsResponse.filter_log_events = filter_log_events
