"""Objects of S3 -> files: parallel ranges, resumed at the part after a kill, verified by the checksum S3 keeps.

    fetch(client, "bucket", "users/ada/models/job/output/model.tar.gz", Path("model.tar.gz"))

While it comes, a file is `NAME.part` beside a journal `NAME.part.jsonl` of the ranges that are there; it takes its own
name when it is whole and verified. Every request asks for the version that the journal belongs to.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llmtuner_kit import checksums, paths
from llmtuner_kit.aws import BROKEN_BODY, is_error, object_head, object_sizes
from llmtuner_kit.errors import DataError, IntegrityError, NotFoundError
from llmtuner_kit.partial import PartialFile

THREADS = 8
RANGE = 16 << 20
_SMALLEST_RANGE, _LARGEST_RANGE = 4 << 20, 128 << 20
_BLOCK = 1 << 20
_ATTEMPTS = 5
Moved = Callable[[int], None]
"""Called with bytes that are now on disk, in the caller's thread."""


@dataclass(frozen=True)
class Fetched:
    """One file on disk. `verified_by` is the checksum's algorithm, or `size` where S3 keeps none known here."""

    path: Path
    bytes: int
    bytes_received: int
    verified_by: str


@dataclass(frozen=True)
class _Object:
    """One version of an object; `part` is the size of its parts where its checksum or ETag is made of theirs, else 0."""

    bucket: str
    key: str
    etag: str
    size: int
    algorithm: str
    checksum: str
    part: int
    has_md5: bool  # in its ETag

    @property
    def range(self) -> int:
        """Bytes to ask for at once: the object's own parts where that makes sense, for they can be verified singly."""
        return self.part if _SMALLEST_RANGE <= self.part <= _LARGEST_RANGE else RANGE


def fetch(client: Any, bucket: str, key: str, target: Path, moved: Moved | None = None) -> Fetched:
    """Download one object; a file that is there with the same checksum is kept.

    Raises NotFoundError for a missing object, IntegrityError when it is replaced on the way or arrives damaged.
    """
    notify = moved or (lambda _: None)
    source = _look(client, bucket, key)
    if _is_there(source, target):
        notify(source.size)
        return Fetched(target, source.size, 0, source.algorithm or "MD5")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = PartialFile(target, source.etag, source.size, source.range)
    require_room(target, sum(end - start for start, end in partial.missing()))
    received = _receive(client, source, partial, notify)
    if not _is_whole(source, partial):
        partial.drop()
        raise IntegrityError(
            f"{target.name} arrived with another {source.algorithm} than s3://{bucket}/{key} has.",
            fix="run the cell again: it is downloaded anew",
        )
    partial.done()
    return Fetched(target, source.size, received, source.algorithm or "size")


def require_room(target: Path, size: int, otherwise: str = "") -> None:
    """Raises DataError where the disk of a file to be written has less room than these bytes; `otherwise`: a way around."""
    free = shutil.disk_usage(target.parent).free
    if size > free:
        raise DataError(
            f"{target.name} takes {_amount(size)} more; the disk of {target.parent.resolve()} has {_amount(free)}.",
            fix=", or ".join(filter(None, ["make room", "choose a folder on another disk", otherwise])),
        )


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def fetch_folder(client: Any, uri: str, folder: Path, moved: Callable[[int, int], None] | None = None) -> list[Fetched]:
    """Download everything below a prefix, names relative to it; `moved` gets (bytes done, bytes in all).

    Raises NotFoundError when nothing is there, DataError for a key that is no safe file name.
    """
    bucket, prefix = paths.split_uri(uri if uri.endswith("/") else uri + "/")
    try:
        found = object_sizes(client, bucket, prefix)
    except client.exceptions.NoSuchBucket:
        raise NotFoundError(
            f"There is no bucket {bucket!r}.", fix="check the address, the target and the region"
        ) from None
    sizes = {key: size for key, size in found.items() if not key.endswith("/")}
    if not sizes:
        raise NotFoundError(f"There is nothing below {uri}.", fix="check the address with `aws s3 ls`")
    targets = {key: folder / _safe_name(key[len(prefix) :]) for key in sizes}
    total, done = sum(sizes.values()), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if moved:
            moved(done, total)

    # Small files side by side; a large one has all threads to itself.
    fetched = {}
    with ThreadPoolExecutor(THREADS, "fetch") as pool:
        small = {pool.submit(fetch, client, bucket, key, targets[key]): key for key in sizes if sizes[key] <= RANGE}
        try:
            for future in as_completed(small):
                fetched[small[future]] = future.result()
                count(future.result().bytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for key in sizes.keys() - fetched.keys():
        fetched[key] = fetch(client, bucket, key, targets[key], count)
    return [fetched[key] for key in sizes]


def _safe_name(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise DataError(f"The key {name!r} is no file name below a folder.", fix="rename the object")
    return name


def _look(client: Any, bucket: str, key: str) -> _Object:
    head = object_head(client, bucket, key, ChecksumMode="ENABLED")
    if head is None:
        raise NotFoundError(f"There is no object s3://{bucket}/{key}.", fix="check the address")
    algorithm, checksum = checksums.of_object(head)
    part = 0
    if "-" in (checksum or head["ETag"]):
        first = client.head_object(Bucket=bucket, Key=key, PartNumber=1, IfMatch=head["ETag"])
        part = int(first["ContentLength"])
    # Under a KMS key an ETag is no sum of the bytes.
    has_md5 = head.get("ServerSideEncryption", "AES256") == "AES256"
    return _Object(bucket, key, head["ETag"], int(head["ContentLength"]), algorithm, checksum, part, has_md5)


def _is_there(source: _Object, target: Path) -> bool:
    """Whether the file has the same bytes. What other writers have put into S3 may have no checksum known here."""
    if not target.is_file() or target.stat().st_size != source.size:
        return False
    if not source.checksum:
        return source.has_md5 and checksums.has_etag(target, source.etag.strip('"'), source.part)
    return checksums.matches(target, source.algorithm, source.checksum, source.part)


def _is_whole(source: _Object, partial: PartialFile) -> bool:
    """Whether what arrived is what S3 has, as far as S3 keeps a checksum known here."""
    if not source.checksum:
        return True
    if source.part == source.range:
        return checksums.composite(partial.checksums(), source.algorithm) == source.checksum
    return checksums.matches(partial.path, source.algorithm, source.checksum, source.part)


def _receive(client: Any, source: _Object, partial: PartialFile, moved: Moved) -> int:
    """Fill in the ranges that are missing; returns the bytes that came."""
    missing = partial.missing()
    received = 0
    moved(source.size - sum(end - start for start, end in missing))
    with partial, ThreadPoolExecutor(THREADS, "fetch") as pool:
        waiting = [pool.submit(_receive_range, client, source, partial, start, end) for start, end in missing]
        try:
            for future in as_completed(waiting):
                received += future.result()
                moved(future.result())
        except BaseException as error:
            pool.shutdown(cancel_futures=True)
            if is_error(error, "PreconditionFailed", "412"):
                partial.drop()
                raise IntegrityError(
                    f"s3://{source.bucket}/{source.key} was replaced while it was being downloaded.",
                    fix="run the cell again",
                ) from None
            raise
    return received


def _receive_range(client: Any, source: _Object, partial: PartialFile, start: int, end: int) -> int:
    digest = checksums.new(source.algorithm or "CRC32")
    position = start
    for attempt in range(1, _ATTEMPTS + 1):
        answer = client.get_object(
            Bucket=source.bucket, Key=source.key, IfMatch=source.etag, Range=f"bytes={position}-{end - 1}"
        )
        try:
            for data in answer["Body"].iter_chunks(_BLOCK):
                os.pwrite(partial.file, data, position)
                digest.update(data)
                position += len(data)
        except BROKEN_BODY:
            if attempt == _ATTEMPTS:
                raise
        if position == end:
            partial.note(start, checksums.text(digest))
            return end - start
    raise IntegrityError(f"s3://{source.bucket}/{source.key} ended at byte {position}, not {end}.", fix="run it again")
