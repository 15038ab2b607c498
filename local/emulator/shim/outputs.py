"""What a job leaves behind: the folders of all its hosts merged, as an archive or as single objects."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from isal import igzip_threaded
from llmtuner_local.emulator.shim import cloud

_WORKERS = 8


def merged(folders: list[Path]) -> dict[str, Path]:
    """Every file and folder by its name below any of the folders; where several hosts wrote one, the newest counts."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
            name = path.relative_to(folder).as_posix()
            if name not in found or path.lstat().st_mtime_ns >= found[name].lstat().st_mtime_ns:
                found[name] = path
    return dict(sorted(found.items()))


def pack(files: dict[str, Path], target: Path) -> None:
    """A tar.gz of files by their names in it, deflated by as many threads as there are processors."""
    with (
        igzip_threaded.open(target, "wb", compresslevel=1, threads=os.cpu_count() or 1) as deflated,
        cloud.TarFile.open(fileobj=deflated, mode="w|", bufsize=cloud.BLOCK) as archive,
    ):
        for name, path in files.items():
            archive.add(path, arcname=name, recursive=False)


def upload_archive(s3: Any, files: dict[str, Path], target: Path, uri: str, extra: dict[str, str]) -> None:
    """Pack (fast compression: weights hardly shrink) and upload a tar.gz; `target` is where it is written first."""
    pack(files, target)
    s3.upload_file(str(target), *cloud.split_uri(uri), ExtraArgs=extra)
    target.unlink()


def upload_files(s3: Any, files: dict[str, Path], uri: str, extra: dict[str, str]) -> None:
    """Upload every file under a prefix."""
    bucket, prefix = cloud.split_uri(uri)
    base = prefix if prefix.endswith("/") or not prefix else prefix + "/"
    single = [(name, path) for name, path in files.items() if path.is_file()]
    with ThreadPoolExecutor(_WORKERS) as pool:
        sent = [pool.submit(s3.upload_file, str(path), bucket, base + name, ExtraArgs=extra) for name, path in single]
    for item in sent:
        item.result()


def encryption(key: str | None) -> dict[str, str]:
    """How objects are uploaded: with the job's KMS key where it names one."""
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}
