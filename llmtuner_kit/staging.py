"""What a job reads besides its data, put into the user's prefix once: the training code and a base model that is
not the Hub's.

Both lie under a name that follows from their content, so the same code or model is sent once and never replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmtuner_kit import base_models, catalog, job_code, paths
from llmtuner_kit.aws import object_sizes
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
    _put_missing(workspace, prefix, files)
    return workspace.paths.uri(prefix)


def stage_model(workspace: Workspace, model: catalog.BaseModel) -> str:
    """Put a base model of this machine or of another prefix under its revision, once; the URI of the prefix."""
    prefix = workspace.paths.base_model(model.model_id, base_models.revision(model))
    if model.source.startswith("s3://"):
        _copy_missing(workspace, prefix, model.source, base_models.unchanged(workspace, model).weights)
    elif model.source:
        names = base_models.unchanged(workspace, model).weights
        _put_missing(workspace, prefix, {name: Path(model.source) / name for name in names})
    else:
        folder = catalog.base_model_folder(model.model_id)
        _put_missing(workspace, prefix, {path.name: path for path in sorted(folder.iterdir()) if path.is_file()})
    return workspace.paths.uri(prefix)


def _copy_missing(workspace: Workspace, prefix: str, source: str, names: Sequence[str]) -> None:
    """Copy files from another prefix, inside S3."""
    client, (bucket, start) = workspace.aws.client("s3"), paths.split_uri(source)
    there, sizes = object_sizes(client, workspace.bucket, prefix), object_sizes(client, bucket, start)
    for name in names:
        if there.get(prefix + name) != sizes[start + name]:
            client.copy({"Bucket": bucket, "Key": start + name}, workspace.bucket, prefix + name)


def _put_missing(workspace: Workspace, prefix: str, files: Mapping[str, bytes | Path]) -> None:
    """Upload what is not there yet; the prefix carries a hash, so equal names and sizes are equal files."""
    client = workspace.aws.client("s3")
    there = object_sizes(client, workspace.bucket, prefix)
    for name, content in files.items():
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if there.get(prefix + name) == size:
            continue
        if isinstance(content, Path):
            client.upload_file(str(content), workspace.bucket, prefix + name)
        else:
            client.put_object(Bucket=workspace.bucket, Key=prefix + name, Body=content)
