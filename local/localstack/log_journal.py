"""CloudWatch Logs that survive kill -9: a request that changes something is journalled before its answer, and replayed
at the next start. Lines of a stream that came in many requests are then written together, so that starts stay short.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from typing import Any

_MOST_ROWS = 50  # of one stream, before they are written together
_TOGETHER = 2_000  # lines in a row then


class LogJournal:
    """The journal in one table of a database."""

    def __init__(self, db: sqlite3.Connection, lock: threading.Lock) -> None:
        self._db, self._lock = db, lock
        db.execute(
            "CREATE TABLE IF NOT EXISTS logs"
            " (number INTEGER PRIMARY KEY, account TEXT, region TEXT, operation TEXT, request TEXT)"
        )

    def append(self, account: str, region: str, operation: str, request: Any) -> None:
        """Durable when this returns."""
        with self._lock:
            self._insert(account, region, operation, request)

    def _insert(self, account: str, region: str, operation: str, request: Any) -> None:
        row = (account, region, operation, json.dumps(request, default=str))
        self._db.execute("INSERT INTO logs (account, region, operation, request) VALUES (?, ?, ?, ?)", row)

    def replay(self) -> None:
        """Apply what is journalled to the log backend again.

        A group or stream is made when lines name it: two clients that create it at once may be journalled late.
        """
        from moto.logs.models import logs_backends

        groups: dict[tuple[str, str, str], list[int]] = {}  # the rows of each
        streams: dict[tuple[str, str, str, str], list[int]] = {}
        gone: list[int] = []
        rows = self._db.execute("SELECT number, account, region, operation, request FROM logs ORDER BY number")
        for number, account, region, operation, text in rows.fetchall():
            backend, request = logs_backends[account][region], json.loads(text)
            group, stream = request.get("logGroupName", ""), request.get("logStreamName", "")
            if not group:
                continue
            groups.setdefault((account, region, group), []).append(number)
            if operation == "DeleteLogGroup":
                backend.groups.pop(group, None)
                gone += groups.pop((account, region, group))
                continue
            if group not in backend.groups:
                backend.create_log_group(group, request.get("tags") or {})
            known = backend.groups[group].streams
            if operation == "DeleteLogStream":
                known.pop(stream, None)
                gone += [number, *streams.pop((account, region, group, stream), [])]
                continue
            if stream and stream not in known:
                backend.create_log_stream(group, stream)
            if operation == "PutLogEvents":
                streams.setdefault((account, region, group, stream), []).append(number)
                # Not the backend's own method, which refuses lines of more than two weeks ago.
                known[stream].put_log_events(request["logEvents"])
            elif operation in ("PutRetentionPolicy", "DeleteRetentionPolicy"):
                backend.groups[group].set_retention_policy(request.get("retentionInDays"))
        self._shorten(gone, {key: found for key, found in streams.items() if len(found) > _MOST_ROWS})

    def _shorten(self, gone: list[int], streams: dict[tuple[str, str, str, str], list[int]]) -> None:
        """Drop rows of what was deleted, and write the lines of long streams together; all of it or nothing."""
        from moto.logs.models import logs_backends

        self._db.execute("BEGIN")
        for (account, region, group, stream), numbers in streams.items():
            found = logs_backends[account][region].groups.get(group)
            kept = found.streams.get(stream) if found else None
            gone = gone + numbers
            lines = [{"timestamp": item.timestamp, "message": item.message} for item in kept.events] if kept else []
            for start in range(0, len(lines), _TOGETHER):
                request = {
                    "logGroupName": group,
                    "logStreamName": stream,
                    "logEvents": lines[start : start + _TOGETHER],
                }
                self._insert(account, region, "PutLogEvents", request)
        self._db.executemany("DELETE FROM logs WHERE number = ?", [(number,) for number in gone])
        self._db.execute("COMMIT")
