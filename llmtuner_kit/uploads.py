"""Files -> the user's own prefix in S3: parallel, resumed at the part, verified by SHA-256 from end to end.

upload(workspace, UploadSettings(source="tickets.csv"))
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from llmtuner_kit import paths, runs
from llmtuner_kit.dataset import kinds
from llmtuner_kit.errors import DataError, NotFoundError, SettingsError
from llmtuner_kit.sending import Progress, Sender
from llmtuner_kit.settings import UploadSettings
from llmtuner_kit.workspace import Workspace

_SHOWN = 8
_LONGEST_NAME = 880  # bytes of a name below the source: with the longest prefix before it, what S3 takes as a key


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
    total = done = 0
    what = found[0][0] if len(found) == 1 else f"{len(found)} files"

    def moved(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(what, done, total)

    started = time.monotonic()
    try:
        total = sum(path.stat().st_size for _, path in found)
        _note(run, dataset, [name for name, _ in found])  # first: what an interrupted upload leaves is the run's too
        with Sender(workspace.aws.client("s3"), workspace.bucket, moved) as sender:
            sent = sender.send([(prefix + name, path) for name, path in found], prefix)
    except OSError as error:
        if error.filename is None:
            raise
        raise DataError(
            f"{error.filename} cannot be read: {error.strerror}.",
            fix="put that right, or move the file away; then run the cell again: what has arrived is not sent again",
        ) from None
    files = tuple(
        UploadedFile(name, workspace.paths.uri(item.key), item.bytes, item.sha256, item.bytes_sent > 0)
        for (name, _), item in zip(found, sent, strict=True)
    )
    result = Upload(
        dataset,
        workspace.paths.uri(prefix),
        files,
        tuple(ignored),
        sum(item.bytes for item in sent),
        sum(item.bytes_sent for item in sent),
        round(time.monotonic() - started, 3),
    )
    run.save("upload", settings=settings.model_dump(), result=asdict(result))
    return result


def _note(run: runs.Run, dataset: str, names: list[str]) -> None:
    names = sorted({*uploaded(run).get(dataset, ()), *names})
    run.note("uploads", dataset, {"files": names})


def uploaded(run: runs.Run) -> dict[str, list[str]]:
    """Dataset -> the names of all files that a run has uploaded into it, in whichever of its uploads."""
    found = {dataset: list(facts["files"]) for dataset, facts in run.noted("uploads").items()}
    last = (run.section("upload") or {}).get("result") or {}
    if last and last["dataset"] not in found:  # by a kit that noted the last upload only
        found[last["dataset"]] = [item["name"] for item in last["files"]]
    return {dataset: names for dataset, names in found.items() if names}


def dataset_name(source: Path) -> str:
    """The name a dataset gets from its file or folder: `Support Tickets.csv` -> `support-tickets`."""
    name = source.name if source.is_dir() else source.name.split(".")[0]
    return paths.slug(name) or "dataset"


def find_files(source: str) -> tuple[list[tuple[str, Path]], list[tuple[str, str]]]:
    """The readable files of a path as (name below the path, path), and what was left out with the reason."""
    if not source:
        raise SettingsError(
            "source is empty: there is nothing to upload.",
            fix="set source to a file or a folder; samples/support-tickets/tickets.csv is one to try",
        )
    top = Path(source).expanduser()
    if not top.exists():
        raise NotFoundError(
            f"There is no file or folder {str(top)!r}.",
            valid=_beside(top),
            fix="set source to an existing file or folder",
        )
    if top.is_file():
        if not kinds.kind_of(top.name):
            raise kinds.unsupported([top.name])
        if not top.stat().st_size:
            raise DataError(f"{top.name} is empty (0 bytes).", fix="choose a file that has rows")
        if reason := _unfit(top.name):
            raise DataError(f"{_readable(top.name)} cannot be uploaded: {reason}.", fix="give it another name")
        return [(top.name, top)], []
    return _in_folder(top)


def _beside(missing: Path) -> str:
    """What there is in the folder of a path that is not there; names like its own where there are any."""
    folder = missing.parent.resolve()
    names = sorted(item.name for item in folder.glob("*") if not kinds.is_hidden(item.name))
    near = difflib.get_close_matches(missing.name, names, _SHOWN) or names[:_SHOWN]
    return f"in {str(folder)!r} there are: {', '.join(near)}" if near else ""


def _in_folder(top: Path) -> tuple[list[tuple[str, Path]], list[tuple[str, str]]]:
    found, ignored = [], []
    for name, why in sorted(_walked(top)):
        path = top / name
        if reason := why or _unfit(name):
            ignored.append((_readable(name), reason))
        elif kinds.is_hidden(name):
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
    left_out = ", ".join(f"{name} ({reason})" for name, reason in ignored[:_SHOWN])
    raise DataError(
        f"The folder {str(top)!r} has no files to upload" + (f"; left out: {left_out}." if left_out else "."),
        valid=kinds.describe(),
        fix="choose another folder",
    )


def _unfit(name: str) -> str:
    """Why a name cannot be one in S3; empty when it can."""
    try:
        return "its path is too long" if len(name.encode()) > _LONGEST_NAME else ""
    except UnicodeEncodeError:
        return "its name is not UTF-8"


def _readable(name: str) -> str:
    """A name that can be shown and stored, whatever its bytes are."""
    return name.encode("utf-8", "backslashreplace").decode()


def _no_file(path: Path) -> str:
    """Why there is nothing to read; empty for a file and for a link to one."""
    if path.is_file():
        return ""
    return "link that leads nowhere" if path.is_symlink() else "no regular file"


def _walked(top: Path) -> Iterator[tuple[str, str]]:
    """Every file below a folder, and every folder not gone into with the reason: hidden ones may hold any number."""
    closed: list[OSError] = []
    for folder, inside, files in os.walk(top, onerror=closed.append):
        place = Path(folder).relative_to(top)
        hidden = [name for name in inside if kinds.is_hidden(name)]
        yield from (((place / name).as_posix() + "/", "hidden folder") for name in hidden)
        linked = [name for name in inside if name not in hidden and (Path(folder) / name).is_symlink()]
        yield from (((place / name).as_posix() + "/", "linked folder; set source to it") for name in linked)
        inside[:] = [name for name in inside if name not in hidden]
        yield from (((place / name).as_posix(), _no_file(Path(folder) / name)) for name in files)
    for error in closed:
        yield Path(error.filename).relative_to(top).as_posix() + "/", f"cannot be read: {error.strerror}"
