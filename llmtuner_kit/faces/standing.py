"""What stands beside a form before anything is done: the run that is meant, and what the step would work on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from llmtuner_kit import artifacts, base_models, inference, runs, training, uploads
from llmtuner_kit.errors import KitError, NotFoundError
from llmtuner_kit.faces.cards import Card
from llmtuner_kit.faces.parts import Link, Part, listed
from llmtuner_kit.faces.texts import size
from llmtuner_kit.fit import Fit
from llmtuner_kit.run_settings import RunSettings
from llmtuner_kit.runs import Run
from llmtuner_kit.settings import (
    STEPS,
    CleanupSettings,
    DownloadSettings,
    InvokeSettings,
    MonitorSettings,
    StartSettings,
    UploadSettings,
    notebook_of,
)
from llmtuner_kit.workspace import Workspace, open_workspace

Settings = TypeVar("Settings", bound=RunSettings)

# What a step cannot do without, and the setting that stands in for it.
_NEEDS: dict[type[RunSettings], tuple[str, str]] = {
    MonitorSettings: ("train", "job_name"),
    DownloadSettings: ("train", "job_name"),
    InvokeSettings: ("deploy", "endpoint_name"),
}


class OnRun:
    """Beside a form: which run is meant, then what `look(run, settings)` says of it.

    What an empty run name stands for is settled when the form is made, and stays: what the form says is what the next
    cell takes, also when another notebook or a pipeline has used another run meanwhile. What is in the run is read
    again when it was read a while ago, or lacked something: an earlier notebook may have run since.
    """

    _FRESH_SECONDS = 2.0

    def __init__(self, look: Callable[[Run, Any], Card]) -> None:
        self._look = look
        self._workspace: Workspace | None = None
        self._run: Run | None = None
        self._where: tuple[str, ...] = ()
        self._name = self._newest = ""
        self._read = 0.0

    def __call__(self, settings: RunSettings) -> Card:
        found = self._opened(settings)
        try:
            card = self._look(found, settings)
        except NotFoundError:
            self._run = None
            raise
        return dataclasses.replace(card, facts=[("run", self._meant(found, settings)), *card.facts])

    def settled(self, settings: Settings) -> Settings:
        """The settings with the name of the run that is shown, where they have none."""
        if settings.run_name or self._run is None or self._where != _where(settings):
            return settings
        return settings.model_copy(update={"run_name": self._run.name})

    def _opened(self, settings: RunSettings) -> Run:
        if self._workspace is None or self._where != _where(settings):
            self._workspace, self._where, self._run = open_workspace(settings), _where(settings), None
        if self._run is not None and settings.run_name == self._name:
            if time.monotonic() - self._read < self._FRESH_SECONDS:
                return self._run
            if self._run.reload().document:
                self._newest = "" if settings.run_name else runs.list_runs(self._workspace)[0].name
                self._read = time.monotonic()
                return self._run
        self._run = None  # stays so, should there be no such run
        self._run = runs.open_run(self._workspace, settings.run_name)
        self._name, self._newest, self._read = settings.run_name, self._run.name, time.monotonic()
        return self._run

    def _meant(self, found: Run, settings: RunSettings) -> str:
        """An empty name means the newest run, and which that is, is worth knowing."""
        if settings.run_name:
            return found.name
        if self._newest == found.name:
            return f"{found.name}, the newest"
        return f"{found.name}; {self._newest} was used since: run this cell again to take that, or set run_name"


def _where(settings: RunSettings) -> tuple[str, ...]:
    return settings.target, settings.region, settings.user_id, settings.bucket


def run() -> OnRun:
    """The run of a form and how far it is. Raises NotFoundError naming the notebook that has to run before."""
    return OnRun(_run)


def _run(found: Run, settings: RunSettings) -> Card:
    step, instead = _NEEDS.get(type(settings), ("", ""))
    if step and not getattr(settings, instead):
        found.result(step)
    ready = _READY.get(type(settings))
    blocked = refusal(settings, partial(ready, found)) if ready else ""
    return Card("This is about", _made(found), _doomed(found, settings), blocked=blocked)


def _doomed(found: Run, settings: RunSettings) -> list[Part]:
    """The files in S3 that 08_cleanup would take from their user, where it is told to."""
    if not isinstance(settings, CleanupSettings) or not settings.delete_uploads:
        return []
    rows = [(dataset, name) for dataset, names in uploads.uploaded(found).items() for name in names]
    return listed("Uploads that will be deleted", ("dataset", "file"), rows, 8) if rows else []


def _has_archive(found: Run, settings: DownloadSettings) -> None:
    job_name = training.job_of(found.workspace, found.name, settings.job_name, found)
    artifacts.archive_head(found.workspace, job_name)


def _serves(found: Run, settings: InvokeSettings) -> None:
    endpoint_name = settings.endpoint_name or str(found.result("deploy")["endpoint_name"])
    inference.require_serving(found.workspace, endpoint_name)


# What raises where a step would have to be waited with.
_READY: dict[type[RunSettings], Callable[[Run, Any], Any]] = {DownloadSettings: _has_archive, InvokeSettings: _serves}


def _made(found: Run) -> list[tuple[str, str]]:
    """What the steps have left behind so far."""
    results: dict[str, dict[str, Any]] = {step: (found.section(step) or {}).get("result") or {} for step in STEPS}
    job, deployed = str(results["train"].get("job_name", "")), results["deploy"]
    chosen = ((found.section("start") or {}).get("settings") or {}).get("model_id", "")
    serving = f", with the model of {deployed['job_name']}" if deployed.get("job_name", job) != job else ""
    made = [
        ("base model", str(results["train"].get("model_id") or chosen)),
        ("dataset", str(results["prepare"].get("dataset") or results["upload"].get("dataset") or "")),
        ("training job", job),
        ("endpoint", f"{deployed.get('endpoint_name', '')}{serving}"),
        ("done so far", ", ".join(notebook_of(step) for step in _done(results, job))),
    ]
    return [(name, text) for name, text in made if text]


def _done(results: Mapping[str, Mapping[str, Any]], job: str) -> list[str]:
    """The steps that have a result; of an earlier training job's steps none, as they are still to do for this one."""
    earlier = {step for step, result in results.items() if result.get("job_name", job) != job}
    if "deploy" in earlier or results["invoke"].get("endpoint_name") != results["deploy"].get("endpoint_name"):
        earlier.add("invoke")
    return [step for step, result in results.items() if result and step not in earlier]


def refusal(made: Any, *checks: Callable[[Any], Any]) -> str:
    """Why a step would refuse to start with this quote, by its own checks and in its own words; else nothing."""
    try:
        for check in checks:
            check(made)
    except KitError as error:
        return str(error)
    return ""


def fitting(checked: Fit) -> dict[str, str]:
    """What to set where a model does not fit its machine, when there is one that it fits."""
    return {} if checked.fits or not checked.smallest else {"instance_type": checked.smallest}


def base_model(settings: StartSettings) -> Card:
    """What the chosen base model is and where it can be tuned."""
    model = base_models.resolve(settings.model_id, lambda: open_workspace(settings).aws.client("s3"))
    if model.embedded:
        where = "this machine and AWS; its weights are here already or are made here"
    else:
        where = f"AWS, on {model.instance} or larger, and this machine as its memory allows"
    facts = [
        ("base model", model.title),
        ("kind", "decoder (writes on)" if model.family == "causal" else "encoder and decoder (text in, text out)"),
        ("weights", _weights(model.parameters)),
        ("longest row", f"{model.context:,} tokens"),
        ("trained on", where),
        *([] if model.embedded else [("weights come from", model.source or "the Hub")]),
        ("licence", model.licence + ("; accept it on the Hub first" if model.gated else "")),
    ]
    page: list[Part] = [Link("Its page on the Hub", f"https://huggingface.co/{model.hub_id}")] if model.hub_id else []
    return Card("The model you start from", facts, page)


def _weights(count: int) -> str:
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:,.1f} million"


def to_upload() -> OnRun:
    """The files that would be sent. Raises what the upload would raise: no such file, nothing readable, no run."""
    return OnRun(_to_upload)


def _to_upload(_: Run, settings: UploadSettings) -> Card:
    found, ignored = uploads.find_files(settings.source)
    sizes = [(name, path.stat().st_size) for name, path in found]
    facts = [("files", f"{len(sizes):,}, {size(sum(count for _, count in sizes))} in all")]
    parts = listed("Files", ("file", "size"), [(name, size(count)) for name, count in sizes], 8)
    if ignored:
        parts += listed("Left out", ("file", "why"), ignored, 8)
    return Card("What will be sent", facts, parts)
