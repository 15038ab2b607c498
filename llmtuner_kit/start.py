"""00_start: connect, check, open or create the run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from llmtuner_kit import base_models, preflight, runs
from llmtuner_kit.preflight import Finding
from llmtuner_kit.runs import Run, RunSummary
from llmtuner_kit.settings import StartSettings
from llmtuner_kit.workspace import Workspace, open_workspace


@dataclass(frozen=True)
class Start:
    """A workspace with an open run; `created` says whether the run is new."""

    workspace: Workspace
    run: Run
    findings: tuple[Finding, ...]
    runs: tuple[RunSummary, ...]
    created: bool

    @property
    def ready(self) -> bool:
        """Whether nothing was found that would stop a run."""
        return all(item.level != "problem" for item in self.findings)


def new_run_name(now: datetime | None = None) -> str:
    """A name from the date and time, as for a person who did not choose one."""
    return (now or datetime.now(UTC)).strftime("run-%Y%m%d-%H%M%S")


def begin(settings: StartSettings) -> Start:
    """Open the workspace and the run, and check what the run will need."""
    workspace = open_workspace(settings)
    model = base_models.resolve(settings.model_id, lambda: workspace.aws.client("s3"))
    base_models.remember(workspace, model)
    found = runs.list_runs(workspace)
    name = settings.run_name or new_run_name()
    created = name not in {item.name for item in found}
    run = runs.open_run(workspace, name, create=True)
    findings = tuple(preflight.check(workspace, model))
    result = {
        "target": settings.target,
        "region": workspace.aws.region,
        "account_id": workspace.aws.account_id,
        "bucket": workspace.bucket,
        "user_id": workspace.user_id,
        "base_model": {"model_id": model.model_id, "revision": base_models.revision(model)},
        "findings": [{"name": item.name, "level": item.level, "text": item.text} for item in findings],
    }
    run.save("start", settings=settings.model_dump(), result=result)
    return Start(workspace, run, findings, tuple(runs.list_runs(workspace)), created)
