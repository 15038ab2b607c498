"""The model archive: what can be done with a finished job, the presigned link, the verified local copy."""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from llmtuner_kit import downloads, packing, runs, training
from llmtuner_kit.aws import ClientError, is_error, object_head
from llmtuner_kit.errors import IntegrityError, NotFoundError, NotReadyError, SettingsError
from llmtuner_kit.settings import DownloadSettings
from llmtuner_kit.workspace import Workspace

Progress = Callable[[str, int, int], None]
# SigV4 links made with long-lived keys work for seven days at most; temporary credentials end sooner.
LONGEST_LINK_MINUTES = 7 * 24 * 60
_UNPACKED = 1.4  # bytes inside for each byte of an archive of bf16 weights


@dataclass(frozen=True)
class Action:
    """Something that can be done with a job now, or why not."""

    name: str
    notebook: str
    available: bool
    why: str


@dataclass(frozen=True)
class PresignedLink:
    """A link anybody who has it may use until it ends. `limit`: what ends it sooner than was asked for, else empty."""

    url: str
    expires_at: datetime
    bytes: int
    file_name: str
    limit: str = ""


@dataclass(frozen=True)
class Downloaded:
    """A local copy. `files` is name -> bytes of what is inside; `verified` counts files checked against the manifest."""

    job_name: str
    link: PresignedLink
    archive: Path | None
    folder: Path | None
    files: dict[str, int]
    verified: int
    manifest: dict[str, Any]


def actions(workspace: Workspace, job_name: str) -> list[Action]:
    """What can be done with a job: monitor, stop, download, deploy."""
    status = training.require_own_job(workspace, job_name)["TrainingJobStatus"]
    running = status in ("InProgress", "Stopping")
    # SageMaker packs what a stopped job has left, which may be nothing.
    is_written = status == "Completed" or (status == "Stopped" and wrote_model(workspace, job_name))
    has_model = is_written and _head(workspace, job_name) is not None
    no_model = "the job is still running" if running else f"the job is {status} and left no model"
    return [
        Action("monitor", "04_monitor", True, "status, metrics and log lines"),
        Action("stop", "04_monitor", status == "InProgress", "" if status == "InProgress" else f"the job is {status}"),
        Action("download", "05_download", has_model, "" if has_model else no_model),
        Action("deploy", "06_deploy", has_model, "" if has_model else no_model),
    ]


def wrote_model(workspace: Workspace, job_name: str) -> bool:
    """Whether a job has written and checked its whole model: then it says so in its output."""
    try:
        return bool(output_file(workspace, job_name, "manifest.json"))
    except NotFoundError:
        return False


def archive_head(workspace: Workspace, job_name: str) -> dict[str, Any]:
    """HeadObject of a job's model.tar.gz; raises NotReadyError or NotFoundError saying what the job is."""
    job = training.require_own_job(workspace, job_name)
    found = _head(workspace, job_name)
    if found is not None:
        return found
    status = job["TrainingJobStatus"]
    if status in ("InProgress", "Stopping"):
        raise NotReadyError(
            f"Training job {job_name} is {status}; its archive comes at the end.", fix="wait in 04_monitor"
        )
    raise NotFoundError(f"Training job {job_name} is {status} and has no archive.", fix="run 03_train again")


def _head(workspace: Workspace, job_name: str) -> dict[str, Any] | None:
    return object_head(workspace.aws.client("s3"), workspace.bucket, workspace.paths.model_archive(job_name))


def presign(workspace: Workspace, job_name: str, minutes: int = 60) -> PresignedLink:
    """A link to a job's archive that works for some minutes."""
    if not 1 <= minutes <= LONGEST_LINK_MINUTES:
        raise SettingsError(f"link_minutes is {minutes}.", valid=f"1 to {LONGEST_LINK_MINUTES}")
    head = archive_head(workspace, job_name)
    name = f"{job_name}.tar.gz"
    url = workspace.aws.client("s3").generate_presigned_url(
        "get_object",
        Params={
            "Bucket": workspace.bucket,
            "Key": workspace.paths.model_archive(job_name),
            "ResponseContentDisposition": f'attachment; filename="{name}"',
        },
        ExpiresIn=minutes * 60,
    )
    lasting = workspace.aws.credentials_last(minutes)  # a link ends with the credentials that have signed it
    expires = datetime.now(UTC) + timedelta(minutes=minutes if lasting is None else lasting)
    limit = ""
    if lasting is None:
        limit = "at the latest: the temporary credentials that signed it may end before"
    elif lasting < minutes:
        limit = f"and not for {minutes} minutes, as the credentials that signed it end then"
    return PresignedLink(url, expires, int(head["ContentLength"]), name, limit)


def download(workspace: Workspace, settings: DownloadSettings, progress: Progress | None = None) -> Downloaded:
    """Link, local copy and contents of a job's archive; every file is checked against the manifest."""
    job_name = training.job_of(workspace, settings.run_name, settings.job_name)
    link = presign(workspace, job_name, settings.link_minutes)
    made = Downloaded(job_name, link, None, None, {}, 0, {})
    if settings.folder:
        folder = Path(settings.folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if settings.unpack:
            packing.remove_abandoned(folder / job_name)  # first: it may be the room that is needed
            _require_room(folder / link.file_name, link.bytes)
        archive = _fetch(workspace, job_name, folder / link.file_name, progress)
        made = _opened(made, archive, folder / job_name) if settings.unpack else _listed(made, archive)
    run = runs.open_run(workspace, settings.run_name)
    result = {
        "job_name": job_name,
        "archive": str(made.archive or ""),
        "folder": str(made.folder or ""),
        "bytes": link.bytes,
        "verified_files": made.verified,
    }
    run.save("download", settings=settings.model_dump(), result=result)
    return made


def _require_room(archive: Path, size: int) -> None:
    """Before hours are spent on it: room for what has still to come, and for what is inside. Raises DataError."""
    partial = archive.with_name(archive.name + ".part")
    there = sum(path.stat().st_blocks * 512 for path in (archive, partial) if path.exists())
    needed = max(0, size - there) + int(_UNPACKED * size)
    downloads.require_room(archive, needed, "set unpack = False, or folder = '' for the link alone")


def _fetch(workspace: Workspace, job_name: str, target: Path, progress: Progress | None) -> Path:
    """The archive as a file: resumed where a killed download stopped, kept where the same bytes are there already."""
    size = int(archive_head(workspace, job_name)["ContentLength"])
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(target.name, done, size)

    key = workspace.paths.model_archive(job_name)
    return downloads.fetch(workspace.aws.client("s3"), workspace.bucket, key, target, moved).path


def _listed(made: Downloaded, archive: Path) -> Downloaded:
    with packing.members(archive) as opened:
        files = {item.name: item.size for item in opened if item.isfile()}
    return replace(made, archive=archive, files=files)


def _opened(made: Downloaded, archive: Path, folder: Path) -> Downloaded:
    packing.unpack(archive, folder)
    manifest = verify(folder)
    files = {
        item.relative_to(folder).as_posix(): item.stat().st_size for item in sorted(folder.rglob("*")) if item.is_file()
    }
    verified = len(manifest["files"])
    return replace(made, archive=archive, folder=folder, files=files, verified=verified, manifest=manifest)


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of an unpacked archive against manifest.json; returns the manifest."""
    path = folder / "manifest.json"
    if not path.exists():
        raise IntegrityError(f"{folder} has no manifest.json: it is no archive of this kit, or it is not complete.")
    try:
        manifest: dict[str, Any] = dict(json.loads(path.read_text()))
        listed: dict[str, Any] = dict(manifest["files"])
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", fix="download the archive again") from error
    wrong = []
    for name, expected in listed.items():
        file = folder / name
        wanted = expected["sha256"] if isinstance(expected, dict) else expected
        if not file.is_file():
            wrong.append(f"{name} is missing")
        elif _sha256(file) != wanted:
            wrong.append(f"{name} has other bytes")
    extra = {item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_file()}
    extra -= {*listed, "manifest.json"}
    wrong += [f"{name} is not in the manifest" for name in sorted(extra)]
    if wrong:
        raise IntegrityError(f"{folder.name}: " + "; ".join(wrong[:8]), fix="download the archive again")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def output_file(workspace: Workspace, job_name: str, name: str) -> bytes:
    """One file of a job's output.tar.gz; raises NotFoundError when it is not there."""
    client = workspace.aws.client("s3")
    key = workspace.paths.output_archive(job_name)
    with tempfile.TemporaryFile() as file:
        try:
            client.download_fileobj(workspace.bucket, key, file)
        except ClientError as error:
            if is_error(error, "404", "NoSuchKey"):
                raise NotFoundError(
                    f"Training job {job_name} has no {key}.",
                    fix="wait until the job has completed",
                ) from None
            raise
        file.seek(0)
        with tarfile.open(fileobj=file) as opened:
            for item in opened:
                if item.name.removeprefix("./") == name and item.isfile():
                    found = opened.extractfile(item)
                    assert found is not None
                    return found.read()
    raise NotFoundError(f"The output of training job {job_name} has no {name}.")
