"""The run record: what was asked for and what came of it, shared by the nine notebooks.

One JSON object per run in S3, one section per step: `{"settings": ..., "result": ..., "at": ...}`. Writes are
conditional, so two notebooks that save at the same time keep both sections. AWS stays the truth for the
status of jobs and endpoints; the record is how the next notebook, or a restarted kernel, finds them.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import llmtuner_kit
from llmtuner_kit import paths
from llmtuner_kit.aws import ClientError, is_error
from llmtuner_kit.errors import ConflictError, NotFoundError
from llmtuner_kit.settings import notebook_of
from llmtuner_kit.workspace import Workspace

_ATTEMPTS = 20


@dataclass
class Run:
    """One run. Sections are read from the last state seen; `reload` looks again."""

    workspace: Workspace
    name: str
    document: dict[str, Any] = field(default_factory=dict)
    etag: str = ""

    @property
    def key(self) -> str:
        return self.workspace.paths.run_record(self.name)

    @property
    def uri(self) -> str:
        return self.workspace.paths.uri(self.key)

    def section(self, step: str) -> dict[str, Any] | None:
        """What a step saved, or None."""
        found = self.document.get("steps", {}).get(step)
        return dict(found) if found else None

    def result(self, step: str) -> dict[str, Any]:
        """The result of a step; raises NotFoundError naming the notebook to run first."""
        section = self.section(step)
        if not section or not section.get("result"):
            notebook = notebook_of(step)
            raise NotFoundError(
                f"Run {self.name!r} has no result of {notebook} yet.",
                fix=f"run {notebook} with run_name {self.name!r} first, or choose another run",
            )
        return dict(section["result"])

    def reload(self) -> Run:
        """Read the record again."""
        client = self.workspace.aws.client("s3")
        try:
            answer = client.get_object(Bucket=self.workspace.bucket, Key=self.key)
        except client.exceptions.NoSuchKey:
            self.document, self.etag = {}, ""
            return self
        self.etag = answer["ETag"]
        self.document = json.loads(answer["Body"].read())
        return self

    def save(
        self, step: str, *, settings: Mapping[str, Any] | None = None, result: Mapping[str, Any] | None = None
    ) -> None:
        """Write one section; parts not given keep their last value. Another writer's sections are never lost."""

        def edit(document: dict[str, Any]) -> None:
            section = document["steps"].setdefault(step, {})
            if settings is not None:
                section["settings"] = dict(settings)
            if result is not None:
                section["result"] = dict(result)
            section["at"] = _now()

        self._change(edit)

    def note(self, group: str, name: str, facts: Mapping[str, Any]) -> None:
        """Remember something that costs money, beside what was noted before: a job, an endpoint, an upload."""

        def edit(document: dict[str, Any]) -> None:
            document.setdefault(group, {})[name] = dict(facts)

        self._change(edit)

    def noted(self, group: str) -> dict[str, dict[str, Any]]:
        """Name -> facts of everything noted under a group, the oldest first."""
        return {name: dict(facts) for name, facts in self.document.get(group, {}).items()}

    def _change(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Edit the record as it is now and write it, again from its new state when somebody else was faster."""
        for _ in range(_ATTEMPTS):
            document = json.loads(json.dumps(self.document)) or self._new_document()
            edit(document)
            document["updated_at"] = _now()
            document["kit_version"] = llmtuner_kit.__version__
            if self._write(document):
                return
            self.reload()
        raise ConflictError(
            f"The record of run {self.name!r} changed {_ATTEMPTS} times while it was being saved.",
            fix="another program writes the same run without pause; stop it and run the cell again",
        )

    def _new_document(self) -> dict[str, Any]:
        return {"run_name": self.name, "user_id": self.workspace.user_id, "created_at": _now(), "steps": {}}

    def _write(self, document: dict[str, Any]) -> bool:
        condition = {"IfMatch": self.etag} if self.etag else {"IfNoneMatch": "*"}
        try:
            answer = self.workspace.aws.client("s3").put_object(
                Bucket=self.workspace.bucket,
                Key=self.key,
                Body=json.dumps(document, indent=2, default=str).encode(),
                ContentType="application/json",
                **condition,
            )
        except ClientError as error:
            if is_error(error, "PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"):
                return False
            raise
        self.document, self.etag = json.loads(json.dumps(document, default=str)), answer["ETag"]
        return True


@dataclass(frozen=True)
class RunSummary:
    """One line of the list of runs."""

    name: str
    updated_at: datetime


def list_runs(workspace: Workspace) -> list[RunSummary]:
    """The user's runs, newest first."""
    client = workspace.aws.client("s3")
    found = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=workspace.bucket, Prefix=workspace.paths.runs):
        for item in page.get("Contents", []):
            name, _, file = item["Key"].removeprefix(workspace.paths.runs).partition("/")
            if file == "run.json":
                found.append(RunSummary(name, item["LastModified"]))
    return sorted(found, key=lambda run: (run.updated_at, run.name), reverse=True)


def open_run(workspace: Workspace, run_name: str = "", *, create: bool = False) -> Run:
    """Open a run by name; an empty name means the newest one. Raises NotFoundError with the runs there are."""
    if not run_name:
        runs = list_runs(workspace)
        if not runs:
            raise NotFoundError(
                f"User {workspace.user_id!r} has no run yet.",
                fix="run 00_start first, or pass run_name to name a run",
            )
        run_name = runs[0].name
    run = Run(workspace, paths.check_label(run_name, "run_name")).reload()
    if not run.document:
        if not create:
            names = [item.name for item in list_runs(workspace)]
            meant = difflib.get_close_matches(run_name, names, 1)
            new = f"run 00_start with run_name {run_name!r}"
            raise NotFoundError(
                f"There is no run {run_name!r} of user {workspace.user_id!r}.",
                valid=", ".join(names) if names else "",
                fix=f"set run_name to {meant[0]!r}, or, to begin a new run, {new}" if meant else new,
            )
        run.save("start")
    return run


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
