"""Dataset versions in S3: complete when their card is there, which is written last."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmtuner_kit.aws import is_error
from llmtuner_kit.dataset import report
from llmtuner_kit.dataset.report import Report
from llmtuner_kit.workspace import Workspace

Progress = Callable[[str, int, int], None]


def existing(workspace: Workspace, prefix: str) -> tuple[Report, dict[str, Any]] | None:
    """Report and card of a version, or None while it is not complete."""
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


def store(workspace: Workspace, prefix: str, folder: Path, progress: Progress) -> None:
    """Bring the files of a version into S3, the card last."""
    client = workspace.aws.client("s3")
    names = _names(json.loads((folder / "card.json").read_text("utf-8")))
    for number, name in enumerate(names):
        progress(f"storing {name}", number, len(names))
        kind = {"ContentType": "application/json"} if name.endswith(".json") else {}
        client.upload_file(
            str(folder / name), workspace.bucket, prefix + name, ExtraArgs={"ChecksumAlgorithm": "SHA256", **kind}
        )
    progress("stored", len(names), len(names))


def move(workspace: Workspace, origin: str, prefix: str, card: Mapping[str, Any]) -> None:
    """Bring a version that a job has written under one prefix to its own, inside S3; the card last."""
    client, bucket = workspace.aws.client("s3"), workspace.bucket
    for name in _names(card):
        client.copy(
            {"Bucket": bucket, "Key": origin + name}, bucket, prefix + name, ExtraArgs={"ChecksumAlgorithm": "SHA256"}
        )
    for name in _names(card):
        client.delete_object(Bucket=bucket, Key=origin + name)


def _names(card: Mapping[str, Any]) -> tuple[str, ...]:
    """The files of a version, the card last."""
    return (*card["files"], "card.json")
