"""The action of 02_prepare: uploads of a run -> a dataset version in S3, with its report and card."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtuner_kit import catalog, runs
from llmtuner_kit.aws import is_error
from llmtuner_kit.dataset import card as cards
from llmtuner_kit.dataset import kinds, report
from llmtuner_kit.dataset.build import build
from llmtuner_kit.dataset.chunks import Source
from llmtuner_kit.dataset.report import Report
from llmtuner_kit.dataset.tokens import MaskedRow, open_encoding
from llmtuner_kit.errors import NotFoundError
from llmtuner_kit.settings import PrepareSettings
from llmtuner_kit.workspace import Workspace

Progress = Callable[[str, int, int], None]
DEFAULT_MODEL = "smollm2-135m-instruct"
MASKED_ROWS = 3


@dataclass(frozen=True)
class Prepared:
    """A dataset version.

    Attributes:
        uri: the prefix that holds train.jsonl, validation.jsonl, test.jsonl, rejected.jsonl, duplicates.jsonl,
            report.json and card.json.
        sha256: hash of the three splits, the name of exactly these rows.
        masks: a few training rows, token by token, as the model will be trained on them.
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


def prepare(workspace: Workspace, settings: PrepareSettings, progress: Progress | None = None) -> Prepared:
    """Read the run's uploads, check every row, and write a dataset version.

    Raises NotFoundError when nothing was uploaded, DataError when the files cannot be used as they are.
    """
    watch = progress or _quiet
    run = runs.open_run(workspace, settings.run_name)
    dataset = settings.dataset or str(run.result("upload")["dataset"])
    model_id = _model_of(run)
    encoding = open_encoding(model_id, settings.max_length)
    with _scratch() as folder:
        sources = _fetch(workspace, run, dataset, folder / "sources", watch)
        version = cards.version(sources, settings, model_id, encoding)
        prefix = workspace.paths.dataset(dataset, version)
        found = _existing(workspace, prefix)
        if found is None:
            written = folder / "dataset"
            written.mkdir()
            work = catalog.cache_folder() / "prepare" / f"{workspace.user_id}-{dataset}-{version}"
            work.mkdir(parents=True, exist_ok=True)
            made = build(sources, settings, encoding, model_id, written, work, watch)
            (written / "report.json").write_text(json.dumps(made.as_json(), ensure_ascii=False, indent=1))
            document = cards.card(dataset, version, sources, settings, made, written)
            _store(workspace, prefix, written, document, watch)
            # Kept until here: a preparation that is interrupted goes on behind the chunks that are done.
            shutil.rmtree(work)
        else:
            made, document = found
    prepared = Prepared(
        dataset,
        version,
        workspace.paths.uri(prefix),
        document["sha256"],
        made,
        document,
        tuple(encoding.masks([dict(row) for row in made.samples[:MASKED_ROWS]])),
        reused=found is not None,
    )
    run.save("prepare", settings=settings.model_dump(), result=_noted(prepared))
    return prepared


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


def _model_of(run: runs.Run) -> str:
    start = run.section("start") or {}
    return catalog.base_model((start.get("settings") or {}).get("model_id") or DEFAULT_MODEL).model_id


def _quiet(what: str, done: int, total: int) -> None:
    """Nobody is watching."""


@contextmanager
def _scratch() -> Iterator[Path]:
    top = catalog.cache_folder() / "prepare"
    top.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=top))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(workspace: Workspace, run: runs.Run, dataset: str, folder: Path, progress: Progress) -> list[Source]:
    """The uploaded files of a dataset on this machine: those the run noted, else all under the prefix."""
    client = workspace.aws.client("s3")
    prefix = workspace.paths.uploads(dataset)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=workspace.bucket, Prefix=prefix)
    items = {item["Key"].removeprefix(prefix): item for page in pages for item in page.get("Contents", [])}
    noted = (run.section("upload") or {}).get("result") or {}
    if noted.get("dataset") == dataset:
        names = {file["name"] for file in noted["files"]}
        items = {name: item for name, item in items.items() if name in names}
    items = {name: item for name, item in items.items() if kinds.kind_of(name)}
    if not items:
        raise NotFoundError(
            f"There are no uploaded files of dataset {dataset!r} that can be read.",
            fix="run 01_upload first, or set dataset to one that was uploaded",
        )
    total, done = sum(item["Size"] for item in items.values()), 0
    sources = []
    for number, (name, item) in enumerate(sorted(items.items())):
        path = folder / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        progress(f"fetching {name}", done, total)
        client.download_file(workspace.bucket, item["Key"], str(path))
        done += item["Size"]
        with path.open("rb") as file:
            sources.append(Source(name, path, item["Size"], hashlib.file_digest(file, "sha256").hexdigest()))
    progress("fetched", total, total)
    return sources


def _existing(workspace: Workspace, prefix: str) -> tuple[Report, dict[str, Any]] | None:
    """Report and card of a version that is complete: the card is written last."""
    documents = []
    client = workspace.aws.client("s3")
    for name in ("card.json", "report.json"):
        try:
            documents.append(json.loads(client.get_object(Bucket=workspace.bucket, Key=prefix + name)["Body"].read()))
        except Exception as error:
            if is_error(error, "NoSuchKey", "404"):
                return None
            raise
    return report.from_json(documents[1]), documents[0]


def _store(workspace: Workspace, prefix: str, folder: Path, document: dict[str, Any], progress: Progress) -> None:
    client = workspace.aws.client("s3")
    for number, name in enumerate(cards.FILES):
        progress(f"storing {name}", number, len(cards.FILES))
        client.upload_file(
            str(folder / name), workspace.bucket, prefix + name, ExtraArgs={"ChecksumAlgorithm": "SHA256"}
        )
    client.put_object(
        Bucket=workspace.bucket,
        Key=prefix + "card.json",
        Body=json.dumps(document, ensure_ascii=False, indent=1).encode(),
        ContentType="application/json",
        ChecksumAlgorithm="SHA256",
    )
    progress("stored", len(cards.FILES), len(cards.FILES))
