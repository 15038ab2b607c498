"""rejected.jsonl: one entry a rejected record, with the reason and the original bytes.

    {"source": "t.csv", "row": 7, "kind": "wrong_field_count", "reason": "...", "original": "too,many,fields"}

The original is text, or `original_base64` where the bytes are not UTF-8, or `original_file` with `original_bytes`
where they are more than 1 MiB: a file beside rejected.jsonl, in the folder `rejected`, named by its SHA-256. So is
every archive or compressed file that could not be opened; of a member that could not be taken out of its archive, the
original is the archive.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from llmtuner_kit.dataset import records
from llmtuner_kit.dataset.records import Record, Stretch

FOLDER = "rejected"


class Writer:
    """Makes entries; originals that are files of their own go into the folder `rejected` under `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # An archive may be the original of each of its members.
        self._copied: dict[Stretch, tuple[str, int]] = {}

    def entries(self, items: Iterable[tuple[Record, tuple[str, str]]]) -> tuple[bytes, dict[str, int]]:
        """The entries of records with their problems as lines; the files these name, with their sizes in bytes."""
        found, files = [], {}
        for record, (kind, reason) in items:
            entry: dict[str, object] = {"source": record.source, "row": record.row, "kind": kind, "reason": reason}
            if record.apart or len(record.raw) > records.LARGEST_HELD:
                name, size = self._file(record)
                files[name] = size
                entry |= {"original_file": name, "original_bytes": size}
            else:
                entry |= _held(record.raw)
            found.append(json.dumps(entry).encode() + b"\n")
        return b"".join(found), files

    def _file(self, record: Record) -> tuple[str, int]:
        """Copy an original, a block at a time; its name and size."""
        if record.apart in self._copied:
            return self._copied[record.apart]
        place = self._folder / FOLDER
        place.mkdir(exist_ok=True)
        part, digest, size = place / f"{os.getpid()}.part", hashlib.sha256(), 0
        with part.open("wb") as file:
            for block in record.apart.blocks() if record.apart else (record.raw,):
                digest.update(block)
                size += file.write(block)
        name = f"{FOLDER}/{digest.hexdigest()}"
        part.replace(self._folder / name)
        if record.apart:
            self._copied[record.apart] = name, size
        return name, size


def _held(raw: bytes) -> dict[str, object]:
    try:
        return {"original": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {"original_base64": base64.b64encode(raw).decode()}


def bring(names: Iterable[str], work: Path, folder: Path) -> None:
    """Bring originals from the folder they were written under to that of the dataset; they stay where they were too."""
    for name in sorted(set(names)):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        try:
            target.hardlink_to(work / name)
        except OSError:
            # On another file system, or one without links.
            shutil.copyfile(work / name, target)


def original(entry: Mapping[str, Any], folder: Path) -> BinaryIO:
    """The original bytes of an entry of the rejected.jsonl in `folder`, opened for reading."""
    if "original_file" in entry:
        return (folder / entry["original_file"]).open("rb")
    if "original_base64" in entry:
        return io.BytesIO(base64.b64decode(entry["original_base64"]))
    return io.BytesIO(entry["original"].encode())
