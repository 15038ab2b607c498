"""Where a dataset's files come from: the run's upload, or any S3 prefix that can be read; and bringing them here.

Fetched files are kept under the name of their content until the dataset is made, so a preparation that was
interrupted fetches only what it lacks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from llmtuner_kit import paths
from llmtuner_kit.aws import is_error
from llmtuner_kit.dataset import kinds
from llmtuner_kit.dataset.chunks import Source
from llmtuner_kit.errors import AccessError, DataError, NotFoundError
from llmtuner_kit.runs import Run
from llmtuner_kit.settings import PrepareSettings
from llmtuner_kit.workspace import Workspace

Progress = Callable[[str, int, int], None]
_THREADS = 8


@dataclass(frozen=True)
class Stored:
    """One file in S3; `name` is its path below the prefix, `etag` changes with its content."""

    name: str
    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class Listing:
    """The files to prepare, in the order of their names, and those that are not, each with the reason."""

    dataset: str
    bucket: str
    prefix: str
    files: tuple[Stored, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def folder(self) -> str:
        """The prefix that the files lie under: the prefix itself, or for a single file the folder it is in."""
        if not self.prefix or self.prefix.endswith("/"):
            return self.prefix
        alone = any(file.key == self.prefix for file in self.files)
        return self.prefix[: self.prefix.rfind("/") + 1] if alone else f"{self.prefix}/"

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def find(workspace: Workspace, run: Run, settings: PrepareSettings) -> Listing:
    """What there is to prepare. Raises NotFoundError, AccessError or DataError when there is nothing to read."""
    if settings.source:
        bucket, prefix = paths.split_uri(settings.source)
        dataset = settings.dataset or paths.slug(PurePosixPath(prefix).name.split(".")[0] or bucket)
        items = _listed(workspace, bucket, prefix)
    else:
        dataset = settings.dataset or str(run.result("upload")["dataset"])
        bucket, prefix = workspace.bucket, workspace.paths.uploads(dataset)
        items = _listed(workspace, bucket, prefix)
        noted = (run.section("upload") or {}).get("result") or {}
        if noted.get("dataset") == dataset:
            # Files of earlier uploads may lie beside those of the last one.
            items = {name: item for name, item in items.items() if name in {file["name"] for file in noted["files"]}}
    if not items:
        raise NotFoundError(
            f"There are no files under s3://{bucket}/{prefix}.",
            fix="check source, or leave it empty and run 01_upload"
            if settings.source
            else "run 01_upload first, or set dataset to one that was uploaded",
        )
    kept, left_out = _sorted_out(items, settings.leave_out)
    if not kept:
        raise DataError(
            "There is nothing to prepare: "
            + "; ".join(f"{name} ({why})" for name, why in left_out[:5])
            + (f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""),
            valid=kinds.describe(),
            fix="change leave_out, or upload other files",
        )
    return Listing(dataset, bucket, prefix, tuple(kept), tuple(left_out))


def _listed(workspace: Workspace, bucket: str, prefix: str) -> dict[str, Stored]:
    """The objects of a prefix by their names below it; a prefix that is itself an object is a file of that name."""
    folder = prefix if not prefix or prefix.endswith("/") else prefix + "/"
    try:
        pages = workspace.aws.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [item for page in pages for item in page.get("Contents", [])]
    except Exception as error:
        if is_error(error, "NoSuchBucket"):
            raise NotFoundError(f"There is no bucket {bucket!r}.", fix="check source") from None
        if is_error(error, "AccessDenied", "403"):
            raise AccessError(
                f"You may not list s3://{bucket}/{prefix}.",
                fix="ask the bucket's owner for s3:ListBucket and s3:GetObject, or upload a copy with 01_upload",
            ) from None
        raise
    items: dict[str, Stored] = {}
    for item in found:
        key = item["Key"]
        name = PurePosixPath(key).name if key == prefix else key.removeprefix(folder)
        # Consoles make folders visible by empty objects whose names end with a slash.
        if (key == prefix or key.startswith(folder)) and not key.endswith("/"):
            items[name] = Stored(name, key, item["Size"], item["ETag"].strip('"'))
    return items


def _sorted_out(items: dict[str, Stored], leave_out: str) -> tuple[list[Stored], list[tuple[str, str]]]:
    patterns = [pattern.strip().lower() for pattern in leave_out.split(",") if pattern.strip()]
    kept, left_out = [], []
    for name, item in sorted(items.items()):
        named = next((p for p in patterns if _matches(name.lower(), p)), "")
        if kinds.is_hidden(name):
            left_out.append((name, "hidden file"))
        elif not kinds.kind_of(name):
            left_out.append((name, "no reader for this kind"))
        elif named and len(items) > 1:
            left_out.append((name, f"leave_out names {named!r}"))
        elif not item.size:
            left_out.append((name, "empty file"))
        else:
            kept.append(item)
    return kept, left_out


def _matches(name: str, pattern: str) -> bool:
    """A pattern without a slash is meant for the file's own name, wherever it lies."""
    return fnmatchcase(name if "/" in pattern else PurePosixPath(name).name, pattern)


def fetch(workspace: Workspace, listing: Listing, folder: Path, progress: Progress) -> list[Source]:
    """The files of a listing on this machine, those already there not fetched again."""
    folder.mkdir(parents=True, exist_ok=True)
    client, done = workspace.aws.client("s3"), 0
    sources: list[Source] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for source in pool.map(lambda item: _fetched(client, listing.bucket, item, folder), listing.files):
            sources.append(source)
            done += source.size
            progress("fetching files", done, listing.bytes)
    return sources


def _fetched(client: Any, bucket: str, item: Stored, folder: Path) -> Source:
    path = folder / hashlib.sha256(f"{bucket}/{item.key} {item.etag} {item.size}".encode()).hexdigest()[:32]
    if not path.exists():
        part = path.with_suffix(".part")
        try:
            client.download_file(bucket, item.key, str(part))
        except Exception as error:
            if is_error(error, "AccessDenied", "403"):
                raise AccessError(
                    f"You may not read s3://{bucket}/{item.key}.", fix="ask the bucket's owner for s3:GetObject"
                ) from None
            raise
        part.rename(path)
    with path.open("rb") as file:
        return Source(item.name, path, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
