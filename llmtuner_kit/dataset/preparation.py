"""The action of 02_prepare: uploads of a run -> a dataset version in S3, with its report and card."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtuner_kit import base_models, catalog, runs
from llmtuner_kit.dataset import card as cards
from llmtuner_kit.dataset import processing, sources, versions
from llmtuner_kit.dataset.processing import Watch
from llmtuner_kit.dataset.report import Report
from llmtuner_kit.dataset.tokens import Encoding, MaskedRow, open_encoding
from llmtuner_kit.errors import disk_errors_in_words
from llmtuner_kit.settings import PrepareSettings, row_numbers
from llmtuner_kit.workspace import Workspace

_ROOM = (
    "make room there, or set LLMTUNER_CACHE to a folder that you may write and that has room, then run the cell again: "
    "it goes on with what is done"
)
_KEPT_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True)
class Prepared:
    """A dataset version.

    Attributes:
        uri: the prefix that holds train.jsonl, validation.jsonl, test.jsonl, rejected.jsonl, duplicates.jsonl,
            findings.jsonl, report.json and card.json, and under rejected/ what is too large for a line of rejected.jsonl.
        sha256: hash of the three splits, the name of exactly these rows.
        masks: the chosen training rows, token by token, as the model will be trained on them.
        reused: the same files were prepared with the same settings before; nothing was done again.
    """

    dataset: str
    version: str
    uri: str
    sha256: str
    report: Report
    card: Mapping[str, Any]
    masks: tuple[MaskedRow, ...]
    reused: bool


def prepare(workspace: Workspace, settings: PrepareSettings, progress: Watch | None = None) -> Prepared:
    """Read the files, check every row, and write a dataset version.

    Raises NotFoundError when there are no files, DataError when they cannot be used as they are, and for a processing
    job also BudgetError and JobFailedError.
    """
    watch = progress or _quiet
    run = runs.open_run(workspace, settings.run_name)
    listing = sources.find(workspace, run, settings)
    model = base_models.of_run(run)
    encoding = open_encoding(model, base_models.tokenizer_folder(workspace, model), settings.max_length)
    if settings.compute == "processing-job":
        made, document, reused = processing.prepare(run, settings, listing, encoding, watch)
    else:
        made, document, reused = _here(workspace, settings, listing, encoding, watch)
    prefix = workspace.paths.dataset(listing.dataset, document["version"])
    prepared = Prepared(
        listing.dataset,
        document["version"],
        workspace.paths.uri(prefix),
        document["sha256"],
        made,
        document,
        _masks(workspace, prefix, encoding, row_numbers(settings.show_rows)),
        reused,
    )
    run.save("prepare", settings=settings.model_dump(), result=_noted(prepared))
    return prepared


def _here(
    workspace: Workspace, settings: PrepareSettings, listing: sources.Listing, encoding: Encoding, watch: Watch
) -> tuple[Report, dict[str, Any], bool]:
    """Prepare on this machine. What is done is kept until the version is stored, so that a killed one goes on."""
    with _folder(f"{workspace.bucket}-{workspace.user_id}-{listing.dataset}", watch) as folder:
        found = sources.fetch(workspace, listing, folder / "sources", watch)
        version = cards.version(found, settings, encoding)
        prefix = workspace.paths.dataset(listing.dataset, version)
        if (existing := versions.existing(workspace, prefix)) is not None:
            return *existing, True
        work, written = folder / version, folder / "dataset"
        work.mkdir(exist_ok=True)
        shutil.rmtree(written, ignore_errors=True)
        written.mkdir()
        made, document = cards.write(found, listing.left_out, settings, encoding, listing.dataset, written, work, watch)
        versions.store(workspace, prefix, written, watch)
        shutil.rmtree(folder)
    return made, document, False


def _masks(workspace: Workspace, prefix: str, encoding: Encoding, numbers: Sequence[int]) -> tuple[MaskedRow, ...]:
    """The chosen rows of the training split (from 1), as far as it has them, token by token."""
    if not numbers:
        return ()
    body = workspace.aws.client("s3").get_object(Bucket=workspace.bucket, Key=prefix + "train.jsonl")["Body"]
    lines = itertools.islice(body.iter_lines(), max(numbers))
    found = {number: json.loads(line) for number, line in enumerate(lines, 1) if number in numbers}
    body.close()
    return tuple(encoding.masks(found))


def _noted(prepared: Prepared) -> dict[str, Any]:
    return {
        "dataset": prepared.dataset,
        "version": prepared.version,
        "uri": prepared.uri,
        "dataset_sha256": prepared.sha256,
        "model_id": prepared.report.model_id,
        "max_length": prepared.report.lengths.max_length,
        "counts": dict(prepared.card["counts"]),
        "splits": {
            name: dict(split) | {"uri": f"{prepared.uri}{name}.jsonl"}
            for name, split in prepared.card["splits"].items()
        },
    }


def _quiet(what: str, done: int, total: int, note: str = "") -> None:
    """Nobody is watching."""


@contextmanager
def _folder(name: str, watch: Watch) -> Iterator[Path]:
    """A folder of this dataset alone that outlives interruptions; those nobody came back to are removed.

    One preparation of a dataset at a time: the next one waits, and may find that all is done.
    """
    top = _top()
    folder = top / name
    with disk_errors_in_words(folder, _ROOM):
        top.mkdir(parents=True, exist_ok=True)
        with (top / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                watch("waiting for another preparation of this dataset on this machine", 0, 1)
                fcntl.flock(lock, fcntl.LOCK_EX)
            folder.mkdir(exist_ok=True)
            os.utime(folder)
            _forget_old(top, folder)
            yield folder


def _top() -> Path:
    """In the cache; in the user's own where that is one which several people share, and is not theirs to write."""
    shared = catalog.cache_folder() / "prepare"
    try:
        shared.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            return shared  # a full disk is told of that place
    return shared if os.access(shared, os.R_OK | os.W_OK | os.X_OK) else catalog.own_cache_folder() / "prepare"


def _forget_old(top: Path, mine: Path) -> None:
    for folder in top.iterdir():
        if folder.is_dir() and folder != mine and time.time() - folder.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
