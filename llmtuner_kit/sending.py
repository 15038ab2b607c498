"""Files to S3, many requests at a time: what is there is not sent, an interrupted file goes on at its first missing part.

    with Sender(client, bucket) as sender:
        sent = sender.send([("users/ada/uploads/x/rows.jsonl", Path("rows.jsonl"))])

Every request carries the SHA-256 of its bytes, which S3 checks on arrival and keeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from llmtuner_kit import checksums
from llmtuner_kit.aws import object_head, object_sizes
from llmtuner_kit.errors import IntegrityError

THREADS = 8
_FILES_AHEAD = 4 * THREADS
Moved = Callable[[int], None]
"""Called with bytes that are now in S3, in the caller's thread (a notebook's output belongs to the cell's own)."""
_State = tuple[int, int]
"""Size and time of change of a file: bytes of two states of it make a file that never was."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done and the bytes there are; from one thread at a time."""


@dataclass(frozen=True)
class Sent:
    """One file in S3. `bytes_sent` counts what went over the wire: 0 when the same bytes were there already."""

    key: str
    bytes: int
    sha256: str
    bytes_sent: int


@dataclass
class _Large:
    """A file on its way in parts."""

    key: str
    path: Path
    state: _State
    upload_id: str
    parts: list[Future[tuple[dict[str, Any], int]]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.state[0]


class Sender:
    """Sends files with THREADS requests at a time."""

    def __init__(self, client: Any, bucket: str, moved: Moved | None = None) -> None:
        self._client, self._bucket = client, bucket
        self._moved = moved or (lambda _: None)
        self._pool = ThreadPoolExecutor(THREADS, "send")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # After an error what has not begun is not begun; what has arrived is found by the next run.
        self._pool.shutdown(cancel_futures=True)

    def send(self, files: Iterable[tuple[str, Path]], prefix: str = "") -> list[Sent]:
        """Bring files (key, path) into the bucket; `prefix` is what all keys begin with. In the given order.

        Raises IntegrityError for a file that changes on the way; what S3 refuses is raised as it comes.
        """
        there = object_sizes(self._client, self._bucket, prefix)
        unfinished = self._unfinished(prefix)
        waiting: deque[_Large | Future[Sent]] = deque()
        done: list[Sent] = []
        for key, path in files:
            while len(waiting) >= _FILES_AHEAD:
                done.append(self._finish(waiting.popleft()))
            waiting.append(self._begin(key, path, there.get(key), unfinished.get(key, "")))
        return done + [self._finish(item) for item in waiting]

    def _begin(self, key: str, path: Path, size_there: int | None, upload_id: str) -> _Large | Future[Sent]:
        state = _state(path)
        size = state[0]
        if size <= checksums.part_size(size):
            return self._pool.submit(self._send_small, key, path, state, size_there)
        if size_there == size and (checksum := _summed(path)) == self._checksum_there(key):
            same: Future[Sent] = Future()
            same.set_result(Sent(key, size, checksum, 0))
            return same
        known = self._parts(key, upload_id) if upload_id else {}
        large = _Large(key, path, state, upload_id or self._create(key))
        for number in range(1, -(-size // checksums.part_size(size)) + 1):
            large.parts.append(self._pool.submit(self._send_part, large, number, known.get(number)))
        return large

    def _finish(self, item: _Large | Future[Sent]) -> Sent:
        if isinstance(item, Future):
            sent = item.result()
            self._moved(sent.bytes)
            return sent
        parts, bytes_sent = [], 0
        part_size = checksums.part_size(item.size)
        for number, future in enumerate(item.parts):
            part, count = future.result()
            parts.append(part)
            bytes_sent += count
            self._moved(min(part_size, item.size - number * part_size))
        _require_unchanged(item.path, item.state)
        self._client.complete_multipart_upload(
            Bucket=self._bucket, Key=item.key, UploadId=item.upload_id, MultipartUpload={"Parts": parts}
        )
        checksum = checksums.composite([part["ChecksumSHA256"] for part in parts])
        return Sent(item.key, item.size, checksum, bytes_sent)

    def _send_small(self, key: str, path: Path, state: _State, size_there: int | None) -> Sent:
        data = _read(path)
        checksum = checksums.sha256(data)
        is_there = size_there == len(data) and self._checksum_there(key) == checksum
        if not is_there:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ChecksumSHA256=checksum)
        _require_unchanged(path, state)
        return Sent(key, len(data), checksum, 0 if is_there else len(data))

    def _send_part(self, large: _Large, number: int, known: dict[str, Any] | None) -> tuple[dict[str, Any], int]:
        """One part: (what completing the upload needs to know of it, bytes sent)."""
        part = checksums.part_size(large.size)
        data = _read(large.path, (number - 1) * part, part)
        checksum = checksums.sha256(data)
        if known and known["ChecksumSHA256"] == checksum:
            return known, 0
        answer = self._client.upload_part(
            Bucket=self._bucket,
            Key=large.key,
            UploadId=large.upload_id,
            PartNumber=number,
            Body=data,
            ChecksumSHA256=checksum,
        )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}, len(data)

    def _create(self, key: str) -> str:
        made = self._client.create_multipart_upload(
            Bucket=self._bucket, Key=key, ChecksumAlgorithm="SHA256", ChecksumType="COMPOSITE"
        )
        return str(made["UploadId"])

    def _unfinished(self, prefix: str) -> dict[str, str]:
        """Key -> its newest interrupted upload; of ours only, for to others no part with a SHA-256 can be added."""
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=prefix)
        found = [
            item for page in pages for item in page.get("Uploads", []) if item.get("ChecksumAlgorithm") == "SHA256"
        ]
        return {item["Key"]: item["UploadId"] for item in sorted(found, key=lambda item: item["Initiated"])}

    def _parts(self, key: str, upload_id: str) -> dict[int, dict[str, Any]]:
        """Number -> what completing the upload needs to know of each part of an interrupted upload that arrived."""
        pages = self._client.get_paginator("list_parts").paginate(Bucket=self._bucket, Key=key, UploadId=upload_id)
        return {
            item["PartNumber"]: {name: item[name] for name in ("PartNumber", "ETag", "ChecksumSHA256")}
            for page in pages
            for item in page.get("Parts", [])
            if "ChecksumSHA256" in item
        }

    def _checksum_there(self, key: str) -> str:
        head = object_head(self._client, self._bucket, key, ChecksumMode="ENABLED")
        return str((head or {}).get("ChecksumSHA256", ""))


def _state(path: Path) -> _State:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _require_unchanged(path: Path, state: _State) -> None:
    if _state(path) != state:
        raise IntegrityError(f"{path} changed while it was being uploaded.", fix="run the cell again")


def _read(path: Path, start: int = 0, count: int = -1) -> bytes:
    with _named(path), path.open("rb") as file:
        file.seek(start)
        return file.read(count)


def _summed(path: Path) -> str:
    with _named(path):
        return checksums.checksum_of(path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Inside, errors say which file they are about: those of reading, as of a failing disk, do not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
