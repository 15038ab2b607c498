"""The dataset card and the version: what went in, what came out, and the hashes that prove it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llmtuner_kit
from llmtuner_kit.dataset.build import Progress, build
from llmtuner_kit.dataset.chunks import Source
from llmtuner_kit.dataset.report import Report
from llmtuner_kit.dataset.tokens import Encoding
from llmtuner_kit.run_settings import RunSettings
from llmtuner_kit.settings import PrepareSettings

# Counted up whenever the same files and settings would give other bytes than before.
FORMAT = 6
FILES = (
    "train.jsonl", "validation.jsonl", "test.jsonl", "rejected.jsonl", "duplicates.jsonl", "findings.jsonl",
    "report.json",
)  # fmt: skip
# Settings that decide where the work is done and what is shown of it, not what comes out.
_ELSEWHERE = (
    "source", "dataset", "show_rows", "compute", "instance_type", "max_runtime_minutes", "budget_usd", "role_arn",
    "subnets", "security_groups",
)  # fmt: skip


def resolved(settings: PrepareSettings) -> dict[str, Any]:
    """The settings that decide about the content: not where it runs, nor as whom."""
    return settings.model_dump(exclude={*RunSettings.model_fields, *_ELSEWHERE})


def version(sources: Sequence[Source], settings: PrepareSettings, encoding: Encoding) -> str:
    """Twelve hex digits of everything that decides about the content: files, settings, tokenizer, template."""
    parts = {
        "format": FORMAT,
        "sources": sorted((source.name, source.size, source.checksum) for source in sources),
        "settings": resolved(settings),
        "model_id": encoding.model_id,
        "max_length": encoding.max_length,
        "tokenizer": encoding.fingerprint,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def card(
    dataset: str, version: str, sources: Sequence[Source], settings: PrepareSettings, report: Report, folder: Path
) -> dict[str, Any]:
    """What card.json holds. No time and no place in it: the same input gives the same bytes."""
    files = {name: _sha256(folder / name) for name in (*FILES, *sorted(report.originals))}
    return {
        "dataset": dataset,
        "version": version,
        "sha256": hashlib.sha256(
            "".join(files[f"{s}.jsonl"] for s in ("train", "validation", "test")).encode()
        ).hexdigest(),
        "kit_version": llmtuner_kit.__version__,
        "model_id": report.model_id,
        "max_length": report.lengths.max_length,
        "settings": resolved(settings),
        "sources": [
            {"name": source.name, "bytes": source.size, "checksum": source.checksum}
            for source in sorted(sources, key=lambda source: source.name)
        ],
        "counts": {
            "rows_in": report.rows_in,
            "accepted": report.accepted,
            "rejected": report.rejected,
            "duplicates": report.duplicates,
            "rows_out": report.rows_out,
        },
        "splits": {name: dataclasses.asdict(split) for name, split in report.splits.items()},
        "left_out": [{"name": name, "why": why} for name, why in report.left_out],
        "files": files,
    }


def write(
    sources: Sequence[Source],
    left_out: Sequence[tuple[str, str]],
    settings: PrepareSettings,
    encoding: Encoding,
    dataset: str,
    folder: Path,
    work: Path,
    progress: Progress,
    workers: int = 0,
) -> tuple[Report, dict[str, Any]]:
    """Prepare files into `folder`, all of FILES, large originals and card.json; the report and the card.

    The same code on a laptop and in a processing job; `work` keeps what is done when it is interrupted.
    """
    made = build(sources, settings, encoding, encoding.model_id, folder, work, progress, workers)
    made = dataclasses.replace(made, left_out=tuple(left_out))
    (folder / "report.json").write_text(json.dumps(made.as_json(), ensure_ascii=False, indent=1), "utf-8")
    document = card(dataset, version(sources, settings, encoding), sources, settings, made, folder)
    (folder / "card.json").write_text(json.dumps(document, ensure_ascii=False, indent=1), "utf-8")
    return made, document


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
