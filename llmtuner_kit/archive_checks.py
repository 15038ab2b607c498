"""Is a job's archive the one that the job has checked? Asked before an endpoint is paid for.

A training job loads its archive as a server does, compares its answers with the trained model's, and leaves the
archive's manifest in its small output.tar.gz. As long as nobody has touched the archive since the job ended, that
record speaks for it and nothing large is read. Otherwise the archive is fetched and every file is checked.
"""

from __future__ import annotations

import json
import tempfile
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from llmtuner_kit import artifacts, downloads, packing
from llmtuner_kit.errors import IntegrityError, NotFoundError
from llmtuner_kit.workspace import Workspace

FORMAT = 1
# S3 tells whole seconds, and the clocks of S3 and of the job are not one.
_MARGIN = timedelta(seconds=2)
_NEEDED = ("config.json", "generation_config.json", "tokenizer_config.json", "parity.json", "code/inference.py")


def require_checked(workspace: Workspace, job: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a described job's archive, whose HeadObject is `head`.

    Raises IntegrityError when the archive is not what the job has checked, or does not belong to the job.
    """
    name = job["TrainingJobName"]
    record = _record(workspace, name)
    changed = head["LastModified"] > job["TrainingEndTime"] + _MARGIN
    manifest = record if record and not changed else _verified(workspace, name)
    found = problems(manifest, job)
    if record and manifest != record:
        found.insert(0, f"it was changed at {head['LastModified']:%Y-%m-%d %H:%M:%S} UTC, after the job ended")
    if found:
        raise IntegrityError(
            f"The archive of training job {name} cannot be served: " + "; ".join(found) + ".",
            fix="run 03_train again with another seed: a new job makes a new archive; nothing was created for this one",
        )
    return manifest


def problems(manifest: dict[str, Any], job: dict[str, Any]) -> list[str]:
    """Where a manifest is not that of a servable archive made by this job. Pure."""
    if manifest.get("format") != FORMAT:
        return [f"its format is {manifest.get('format')!r}, this kit serves format {FORMAT}"]
    asked, base, names = job["HyperParameters"], manifest["base"], set(manifest["files"])
    found = []
    if base["model_id"] != asked["model_id"] or base["revision"] != asked["model_revision"]:
        found.append(
            f"its base is {base['model_id']} at {base['revision'][:12]}, "
            f"the job's is {asked['model_id']} at {asked['model_revision'][:12]}"
        )
    if base["family"] != asked["family"]:
        found.append(f"it holds a {base['family']} model, {asked['model_id']} is {asked['family']}")
    if manifest["dataset_sha256"] != asked["dataset_sha256"]:
        found.append("it was trained on another dataset than the job")
    if "parity" not in manifest:
        found.append("its answers were never compared with the trained model's")
    needed = [*_NEEDED, *(["chat_template.jinja"] if asked["family"] == "causal" else [])]
    found += [f"{item} is missing" for item in needed if item not in names]
    if not any(PurePosixPath(item).match("*.safetensors") and "/" not in item for item in names):
        found.append("it has no weights")
    return found


def _record(workspace: Workspace, job_name: str) -> dict[str, Any] | None:
    """The manifest that the job left beside its archive; None when it left none."""
    try:
        return dict(json.loads(artifacts.output_file(workspace, job_name, "manifest.json")))
    except NotFoundError:
        return None


def _verified(workspace: Workspace, job_name: str) -> dict[str, Any]:
    """The manifest inside the archive, after every file was compared with it."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / f"{job_name}.tar.gz"
        key = workspace.paths.model_archive(job_name)
        downloads.fetch(workspace.aws.client("s3"), workspace.bucket, key, archive, lambda _: None)
        packing.unpack(archive, Path(folder) / job_name)
        return artifacts.verify(Path(folder) / job_name)
