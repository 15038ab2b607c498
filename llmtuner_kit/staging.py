"""What a job reads besides its data, put into the user's prefix once: the training code, and a base model not the Hub's.

Both lie under a name that follows from their content, so the same code or model is sent once and never replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from llmtuner_kit import base_models, catalog, job_code, paths
from llmtuner_kit.aws import object_sizes
from llmtuner_kit.errors import disk_errors_in_words
from llmtuner_kit.sending import Moved, Progress, Sender
from llmtuner_kit.workspace import Workspace


def code_files(folder: Path) -> dict[str, bytes]:
    """Relative name -> content of everything a job needs of the folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
    }


def content_hash(files: Mapping[str, bytes]) -> str:
    """Twelve hex digits that change with any name or byte."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def stage_code(workspace: Workspace) -> tuple[str, str]:
    """Put train_src under its content's hash, once; (hash, URI)."""
    files = code_files(job_code.folder())
    sha = content_hash(files)
    return sha, stage(workspace, workspace.paths.code(sha), files)


def stage(workspace: Workspace, prefix: str, files: Mapping[str, bytes]) -> str:
    """Put files under a prefix that carries their hash, once; its URI."""
    client = workspace.aws.client("s3")
    there = object_sizes(client, workspace.bucket, prefix)
    for name in _missing(prefix, {name: len(content) for name, content in files.items()}, there):
        client.put_object(Bucket=workspace.bucket, Key=prefix + name, Body=files[name])
    return workspace.paths.uri(prefix)


def stage_model(workspace: Workspace, model: catalog.BaseModel, progress: Progress | None = None) -> str:
    """Put a base model of this machine or of another prefix under its revision, once; the URI of the prefix.

    Raises ConflictError or NotFoundError where it is not there yet and its source is no longer what it was.
    """
    prefix = workspace.paths.base_model(model.model_id, base_models.revision(model))
    if not model.source:
        folder = catalog.base_model_folder(model.model_id)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        there = object_sizes(workspace.aws.client("s3"), workspace.bucket, prefix)
        source, sizes = str(folder), _missing(prefix, sizes, there)
    else:
        staged = base_models.staged_folder(workspace, model)
        source, missing = model.source, [name for name in staged.weights if name not in staged.files]
        files = base_models.unchanged(workspace, model).files if missing else {}
        sizes = {name: files[name] for name in missing}
    if sizes:
        count = _counting(model.title, sum(sizes.values()), progress)
        with disk_errors_in_words(Path(source), f"its owner lets others read it with `chmod -R a+rX {source}`"):
            _bring(workspace, source, prefix, list(sizes), count)
    return workspace.paths.uri(prefix)


def _missing(prefix: str, sizes: Mapping[str, int], there: Mapping[str, int]) -> dict[str, int]:
    """The prefix carries a hash, so equal names and sizes are equal files."""
    return {name: size for name, size in sizes.items() if there.get(prefix + name) != size}


def _counting(what: str, total: int, progress: Progress | None) -> Moved:
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(what, done, total)

    moved(0)  # before the first part of a large file has arrived, too
    return moved


def _bring(workspace: Workspace, source: str, prefix: str, names: list[str], moved: Moved) -> None:
    """Send files from a folder, or copy them from another prefix inside S3."""
    client = workspace.aws.client("s3")
    if source.startswith("s3://"):
        bucket, start = paths.split_uri(source)
        _copy(
            client, {prefix + name: {"Bucket": bucket, "Key": start + name} for name in names}, workspace.bucket, moved
        )
    else:
        with Sender(client, workspace.bucket, moved) as sender:
            sender.send([(prefix + name, Path(source) / name) for name in names], prefix)


def _copy(client: Any, sources: Mapping[str, dict[str, str]], bucket: str, moved: Moved) -> None:
    """Copy objects to the keys they are given by, inside S3. `moved` is called in the caller's thread, as Sender does."""
    counts: SimpleQueue[int | None] = SimpleQueue()
    interrupted = False

    def copied(count: int) -> None:
        if interrupted:
            raise InterruptedError("copying was interrupted")  # ends the transfer that called, and removes its parts
        counts.put(count)

    def copy_all() -> None:
        for key, source in sources.items():
            client.copy(source, bucket, key, Callback=copied)

    with ThreadPoolExecutor(1, "copy") as pool:
        copying = pool.submit(copy_all)
        copying.add_done_callback(lambda _: counts.put(None))
        try:
            while (count := counts.get()) is not None:
                moved(count)
        except BaseException:
            interrupted = True
            raise
        copying.result()
