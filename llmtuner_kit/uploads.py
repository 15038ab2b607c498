"""Files -> the user's own prefix in S3: parallel, resumed at the part, verified by SHA-256 from end to end.

    upload(workspace, UploadSettings(source="tickets.csv"))

Every request carries the SHA-256 of its bytes, which S3 checks on arrival and keeps. What is already there with the
same size and checksum is not sent again; a large file that was interrupted goes on at its first missing part.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmtuner_kit import paths, runs
from llmtuner_kit.aws import is_error
from llmtuner_kit.dataset import kinds
from llmtuner_kit.errors import DataError, IntegrityError, NotFoundError, SettingsError
from llmtuner_kit.settings import UploadSettings
from llmtuner_kit.workspace import Workspace

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done and the bytes there are; from one thread at a time."""

PART = 16 << 20
MOST_PARTS = 10_000
THREADS = 8


@dataclass(frozen=True)
class UploadedFile:
    """One file in S3. `sent` is False when the same bytes were already there."""

    name: str
    uri: str
    bytes: int
    sha256: str
    sent: bool


@dataclass(frozen=True)
class Upload:
    """What 01_upload did. `ignored` are files of the folder that were left out, each with the reason."""

    dataset: str
    uri: str
    files: tuple[UploadedFile, ...]
    ignored: tuple[tuple[str, str], ...]
    bytes: int
    bytes_sent: int
    seconds: float


def upload(workspace: Workspace, settings: UploadSettings, progress: Progress | None = None) -> Upload:
    """Bring a file or a folder into `uploads/{dataset}/` and note it in the run.

    Raises NotFoundError for a missing path, DataError for an empty file or folder or for kinds the kit cannot read.
    """
    run = runs.open_run(workspace, settings.run_name)
    found, ignored = find_files(settings.source)
    dataset = settings.dataset or dataset_name(Path(settings.source))
    prefix = workspace.paths.uploads(dataset)
    sender = _Sender(workspace, sum(path.stat().st_size for _, path in found), progress or _quiet)
    started = time.monotonic()
    there = sender.sizes(prefix)
    files = tuple(sender.send(name, path, f"{prefix}{name}", there) for name, path in found)
    result = Upload(
        dataset,
        workspace.paths.uri(prefix),
        files,
        tuple(ignored),
        sum(file.bytes for file in files),
        sender.sent,
        round(time.monotonic() - started, 3),
    )
    run.save("upload", settings=settings.model_dump(), result=asdict(result))
    return result


def dataset_name(source: Path) -> str:
    """The name a dataset gets from its file or folder: `Support Tickets.csv` -> `support-tickets`."""
    name = source.name if source.is_dir() else source.name.split(".")[0]
    return paths.slug(name) or "dataset"


def find_files(source: str) -> tuple[list[tuple[str, Path]], list[tuple[str, str]]]:
    """The readable files of a path as (name below the path, path), and what was left out with the reason."""
    if not source:
        raise SettingsError("source is empty: there is nothing to upload.", fix="set source to a file or a folder")
    top = Path(source).expanduser()
    if not top.exists():
        near = ", ".join(sorted(item.name for item in top.parent.glob("*"))[:8]) if top.parent.is_dir() else ""
        raise NotFoundError(
            f"There is no file or folder {str(top)!r}.",
            valid=f"in {str(top.parent)!r} there are: {near}" if near else "",
            fix="set source to an existing file or folder",
        )
    if top.is_file():
        if not kinds.kind_of(top.name):
            raise kinds.unsupported([top.name])
        if not top.stat().st_size:
            raise DataError(f"{top.name} is empty (0 bytes).", fix="choose a file that has rows")
        return [(top.name, top)], []
    return _in_folder(top)


def _in_folder(top: Path) -> tuple[list[tuple[str, Path]], list[tuple[str, str]]]:
    found, ignored = [], []
    for path in sorted(path for path in top.rglob("*") if path.is_file()):
        name = path.relative_to(top).as_posix()
        if kinds.is_hidden(name):
            ignored.append((name, "hidden file"))
        elif not kinds.kind_of(name):
            ignored.append((name, "no reader for this kind"))
        elif not path.stat().st_size:
            ignored.append((name, "empty file"))
        else:
            found.append((name, path))
    if found:
        return found, ignored
    if any(reason.startswith("no reader") for _, reason in ignored):
        raise kinds.unsupported([name for name, reason in ignored if reason.startswith("no reader")])
    raise DataError(
        f"The folder {str(top)!r} has no files to upload.", valid=kinds.describe(), fix="choose another folder"
    )


def part_size(size: int) -> int:
    """Bytes in a part: 16 MiB, more only where S3's 10,000 parts would not hold the file. Depends on nothing else,
    so that the same file has the same checksum on every machine."""
    part = PART
    while part * MOST_PARTS < size:
        part *= 2
    return part


def checksum_of(path: Path) -> str:
    """The SHA-256 that S3 keeps for a file uploaded by this module: of the bytes, or `...-n` over its n parts."""
    size = path.stat().st_size
    part = part_size(size)
    with path.open("rb") as file:
        if size <= part:
            return _base64(hashlib.sha256(file.read()).digest())
        digests = [hashlib.sha256(data).digest() for data in iter(lambda: file.read(part), b"")]
    return f"{_base64(hashlib.sha256(b''.join(digests)).digest())}-{len(digests)}"


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _quiet(what: str, done: int, total: int) -> None:
    """Nobody is watching."""


class _Sender:
    """Sends files, at most THREADS requests at a time, and counts bytes."""

    def __init__(self, workspace: Workspace, total: int, progress: Progress) -> None:
        self._client = workspace.aws.client("s3")
        self._bucket = workspace.bucket
        self._uri = workspace.paths.uri
        self._total, self._progress = total, progress
        self._lock = threading.Lock()
        self._done = self.sent = 0

    def sizes(self, prefix: str) -> dict[str, int]:
        """Keys below a prefix with their sizes."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}

    def send(self, name: str, path: Path, key: str, there: dict[str, int]) -> UploadedFile:
        """One file, unless its bytes are there already."""
        size = path.stat().st_size
        checksum = checksum_of(path) if there.get(key) == size else ""
        if checksum and self._checksum_there(key) == checksum:
            self._count(name, size, sent=False)
            return UploadedFile(name, self._uri(key), size, checksum, sent=False)
        if size <= part_size(size):
            data = path.read_bytes()
            checksum = _base64(hashlib.sha256(data).digest())
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ChecksumSHA256=checksum)
            self._count(name, len(data))
        else:
            checksum = self._send_parts(name, path, key, size)
        if path.stat().st_size != size:
            raise IntegrityError(f"{path} changed while it was being uploaded.", fix="run the cell again")
        return UploadedFile(name, self._uri(key), size, checksum, sent=True)

    def _checksum_there(self, key: str) -> str:
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
        except Exception as error:
            if is_error(error, "404", "NoSuchKey"):
                return ""
            raise
        return str(head.get("ChecksumSHA256", ""))

    def _send_parts(self, name: str, path: Path, key: str, size: int) -> str:
        upload_id, there = self._unfinished(key)
        if not upload_id:
            upload_id = self._client.create_multipart_upload(
                Bucket=self._bucket, Key=key, ChecksumAlgorithm="SHA256", ChecksumType="COMPOSITE"
            )["UploadId"]
        part = part_size(size)

        def send_one(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek((number - 1) * part)
                data = file.read(part)
            checksum = _base64(hashlib.sha256(data).digest())
            known = there.get(number)
            if known and known["ChecksumSHA256"] == checksum:
                self._count(name, len(data), sent=False)
                return known
            answer = self._client.upload_part(
                Bucket=self._bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=data, ChecksumSHA256=checksum
            )
            self._count(name, len(data))
            return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

        with ThreadPoolExecutor(THREADS) as pool:
            parts = list(pool.map(send_one, range(1, -(-size // part) + 1)))
        digests = b"".join(base64.b64decode(item["ChecksumSHA256"]) for item in parts)
        checksum = f"{_base64(hashlib.sha256(digests).digest())}-{len(parts)}"
        self._client.complete_multipart_upload(
            Bucket=self._bucket,
            Key=key,
            UploadId=upload_id,
            MultipartUpload={"Parts": parts},
        )
        return checksum

    def _unfinished(self, key: str) -> tuple[str, dict[int, dict[str, Any]]]:
        """The newest interrupted upload of a key and the parts of it that arrived; empty when there is none."""
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=key)
        mine = [item for page in pages for item in page.get("Uploads", []) if item["Key"] == key]
        if not mine:
            return "", {}
        newest = max(mine, key=lambda item: item["Initiated"])["UploadId"]
        return newest, {item["PartNumber"]: item for item in self._parts(key, newest)}

    def _parts(self, key: str, upload_id: str) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator("list_parts").paginate(Bucket=self._bucket, Key=key, UploadId=upload_id)
        for page in pages:
            for item in page.get("Parts", []):
                if "ChecksumSHA256" in item:
                    yield {name: item[name] for name in ("PartNumber", "ETag", "ChecksumSHA256")}

    def _count(self, name: str, size: int, *, sent: bool = True) -> None:
        with self._lock:
            self._done += size
            self.sent += size if sent else 0
            self._progress(name, self._done, self._total)
