"""A folder of a job kept the same as a prefix of S3: checkpoints, and outputs that are uploaded continuously."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.shim import channels, cloud, trees

log = logging.getLogger(__name__)
_WORKERS = 8


class Mirror:
    """New and changed files go up; with `deletes`, what the job removed goes away in S3 too."""

    def __init__(self, s3: Any, base: Path, name: str, uri: str, extra: dict[str, str], *, deletes: bool) -> None:
        self._s3, self._base, self._name, self._extra, self._deletes = s3, base, name, extra, deletes
        self._bucket, prefix = cloud.split_uri(uri)
        self._prefix = cloud.as_folder(prefix)
        self._known: dict[str, trees.Entry] = {}
        self._one = threading.Lock()

    def pull(self) -> None:
        """Bring down what S3 has; that much is known and will not be sent again."""
        uri = f"s3://{self._bucket}/{self._prefix}"
        channels.download(self._s3, channels.objects(self._s3, uri), self._base / self._name)
        self._known = self._marks()

    def push(self) -> int:
        """Send what changed since the last time; the number of files. A file that changes meanwhile goes again next time."""
        with self._one:
            marks = self._marks()
            changed = [name for name, mark in marks.items() if self._known.get(name) != mark]
            with ThreadPoolExecutor(_WORKERS) as pool:
                sent = list(pool.map(self._send, changed, [marks[name] for name in changed]))
            self._known |= {name: marks[name] for name, done in zip(changed, sent, strict=True) if done}
            gone = [name for name in self._known if name not in marks]
            for name in gone:
                del self._known[name]
                if self._deletes:
                    self._s3.delete_object(Bucket=self._bucket, Key=self._prefix + name)
            return sum(sent)

    def _send(self, name: str, entry: trees.Entry) -> bool:
        try:
            cloud.upload(self._s3, entry, self._bucket, self._prefix + name, self._extra)
        except OSError:
            return False  # the job has removed, renamed or replaced it; the next round sees what is there then
        return True

    def _marks(self) -> dict[str, trees.Entry]:
        return {name: entry for name, entry in trees.entries(self._base, self._name).items() if entry.is_file}


class Keeper:
    """Pushes mirrors every few seconds in a thread of its own, so that a long upload holds nothing else up."""

    def __init__(self, mirrors: list[Mirror], seconds: float) -> None:
        self._mirrors, self._seconds = mirrors, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirrors", daemon=True)
        if mirrors:
            self._thread.start()

    def close(self) -> None:
        """Wait for the round that runs, then push once more: nothing that was saved is lost."""
        self._ended.set()
        if self._mirrors:
            self._thread.join()
        for mirror in self._mirrors:
            mirror.push()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            for mirror in self._mirrors:
                try:
                    mirror.push()
                except Exception:
                    log.exception("an upload failed; it is tried again in %s s", self._seconds)  # the last push tells
