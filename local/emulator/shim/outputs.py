"""What a job leaves behind: the folders of all its hosts merged, as an archive or as single objects."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.shim import cloud, trees
from llmtuner_local.emulator.shim.trees import Entry

_WORKERS = 8


def merged(bases: list[Path], name: str) -> dict[str, Entry]:
    """What is in the folder `name` of any host; where several hosts wrote one file, the newest counts."""
    found: dict[str, Entry] = {}
    for base in bases:
        for inside, entry in trees.entries(base, name).items():
            if inside not in found or entry.modified_ns >= found[inside].modified_ns:
                found[inside] = entry
    return dict(sorted(found.items()))


def upload_archive(s3: Any, files: dict[str, Entry], target: Path, uri: str, extra: dict[str, str]) -> None:
    """Pack and upload a tar.gz; `target` is where it is written first."""
    trees.pack(files, target)
    packed = trees.entries(target.parent, ".")[target.name]
    cloud.upload(s3, packed, *cloud.split_uri(uri), extra)
    target.unlink()


def upload_files(s3: Any, files: dict[str, Entry], uri: str, extra: dict[str, str]) -> None:
    """Upload every file under a prefix; links are left out."""
    bucket, prefix = cloud.split_uri(uri)
    base = cloud.as_folder(prefix)
    single = [(name, entry) for name, entry in files.items() if entry.is_file]
    with ThreadPoolExecutor(_WORKERS) as pool:
        sent = [pool.submit(cloud.upload, s3, entry, bucket, base + name, extra) for name, entry in single]
    for item in sent:
        item.result()


def encryption(key: str | None) -> dict[str, str]:
    """How objects are uploaded: with the job's KMS key where it names one."""
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}
