"""Results of the kit -> cards. Pure: what is shown, not how."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from llmtuner_kit import artifacts, costs, training
from llmtuner_kit.artifacts import Downloaded
from llmtuner_kit.dataset import Prepared
from llmtuner_kit.faces import endings, preparation
from llmtuner_kit.faces.show import Card, Chart, Table, duration, shortened, size
from llmtuner_kit.monitoring import Snapshot
from llmtuner_kit.settings import TrainSettings
from llmtuner_kit.training import Quote, TrainingJob
from llmtuner_kit.uploads import Upload
from llmtuner_kit.workspace import Workspace, open_workspace


def of(result: Any) -> Card:
    """The card of any result of the kit."""
    view = _VIEWS.get(type(result))
    return view(result) if view else _plain(result)


def live_quote(settings: TrainSettings) -> Card:
    """The quote for settings as they stand in the form."""
    return quote(training.quote(open_workspace(settings), settings))


def upload(made: Upload) -> Card:
    rows = [(file.name, size(file.bytes), "sent" if file.sent else "was there") for file in made.files[:20]]
    parts: list[Any] = [Table("Files", ("file", "size", "what happened"), rows)]
    if made.ignored:
        parts.append(Table("Left out", ("file", "why"), made.ignored[:20]))
    facts = [
        ("dataset", made.dataset),
        ("where", made.uri),
        ("files", len(made.files)),
        ("sent", f"{size(made.bytes_sent)} of {size(made.bytes)} in {duration(made.seconds)}"),
    ]
    return Card("Uploaded, every file verified by its SHA-256", facts, parts, "02_prepare")


def quote(made: Quote) -> Card:
    facts = [
        ("model", f"{made.model_id} with {made.method}"),
        ("runs on", f"{made.instance_count} x {made.instance_type}"),
        ("does it fit", made.fit.why),
        ("work", f"{made.tokens:,} tokens of {made.rows:,} rows"),
        ("time on AWS", f"{duration(made.seconds[0])} to {duration(made.seconds[1])}"),
        ("money on AWS", str(made.money)),
        ("price", costs.priced(made.price)),
        ("stopped after", duration(made.max_runtime_seconds)),
        ("an endpoint of this type", f"{costs.usd(made.endpoint_per_hour)} an hour"),
        ("is it charged", "yes, this is AWS" if made.charged else "no, this runs on your machine"),
    ]
    return Card("Quote", facts, [made.basis])


def training_job(made: TrainingJob) -> Card:
    title = "Found the job that the same inputs started before" if made.reused else "Training job started"
    facts = [("job", made.job_name), ("model archive will be", made.model_uri)]
    if made.quote:
        facts += [("time on AWS", f"{duration(made.quote.seconds[0])} to {duration(made.quote.seconds[1])}")]
        facts += [("money on AWS", str(made.quote.money))]
    return Card(title, facts, following="04_monitor")


def snapshot(seen: Snapshot, log_lines: int = 15) -> Card:
    numbers = [
        (label, f"{value:.4g}")
        for label, name in (
            ("loss", "train_loss"), ("token accuracy", "token_accuracy"), ("validation loss", "eval_loss"),
            ("tokens per second", "tokens_per_second"), ("learning rate", "learning_rate"), ("epoch", "epoch"),
        )
        if (value := seen.last(name)) is not None
    ]  # fmt: skip
    facts = [
        ("status", _status(seen)),
        (
            "time",
            duration(seen.elapsed_seconds) + (f", about {duration(seen.eta_seconds)} left" if seen.eta_seconds else ""),
        ),
        ("cost so far", costs.usd(seen.cost_usd) + ("" if seen.charged else " on AWS; here it costs nothing")),
        *numbers,
    ]
    if seen.failure_reason:
        facts.append(("reason", seen.failure_reason))
    parts: list[Any] = _curves(seen)
    # The numbers of metric lines are in the curves.
    log = [line for line in seen.log if not line.startswith("metric ")]
    if log_lines and log:
        parts.append("\n".join(log[-log_lines:]))
    following = "05_download" if seen.status == "Completed" else ""
    return Card(f"Training job {seen.job_name}", facts, parts, following, done=seen.progress)


def _status(seen: Snapshot) -> str:
    """`InProgress, Training: downloading the training image`, each word once."""
    steps = [seen.status, *([seen.secondary_status] if seen.secondary_status != seen.status else [])]
    return ", ".join(steps) + (f": {seen.message}" if seen.message and not seen.done else "")


def finished(workspace: Workspace, seen: Snapshot) -> Card:
    """The end of a job, and what can be done with it now."""
    rows = [
        (action.name, action.notebook, "yes" if action.available else action.why)
        for action in artifacts.actions(workspace, seen.job_name)
    ]
    card = snapshot(seen, log_lines=0)
    return dataclasses.replace(card, parts=[*card.parts, Table("What you can do now", ("action", "in", "now"), rows)])


def _curves(seen: Snapshot) -> list[Chart]:
    charts = []
    for title, names in (
        ("Loss", {"training": "train_loss", "validation": "eval_loss"}),
        ("Token accuracy", {"training": "token_accuracy", "validation": "eval_token_accuracy"}),
    ):
        lines = {label: seen.metrics[name] for label, name in names.items() if len(seen.metrics.get(name, ())) > 1}
        if lines:
            told = "; ".join(f"{label} from {p[0][1]:.3f} to {p[-1][1]:.3f}" for label, p in lines.items())
            charts.append(Chart(title, "step", lines, told))
    return charts


def downloaded(made: Downloaded) -> Card:
    facts = [
        ("job", made.job_name),
        ("link until", f"{made.link.expires_at:%Y-%m-%d %H:%M} UTC"),
        ("size", size(made.link.bytes)),
        ("archive", made.archive or "not fetched"),
        ("unpacked in", made.folder or "not unpacked"),
        ("verified", f"all {made.verified} files of the manifest" if made.folder else "not unpacked, so not checked"),
    ]
    rows = [(name, size(count)) for name, count in sorted(made.files.items(), key=lambda item: -item[1])[:25]]
    parts: list[Any] = [made.link.url]
    if rows:
        more = f" (the largest 25 of {len(made.files)} files)" if len(made.files) > 25 else ""
        parts.append(Table(f"What is inside{more}", ("file", "size"), rows))
    return Card("The trained model", facts, parts, "06_deploy")


def _plain(result: Any) -> Card:
    """A card of any dataclass: its plain fields."""
    if not dataclasses.is_dataclass(result) or isinstance(result, type):
        return Card(str(result))
    fields = {item.name: getattr(result, item.name) for item in dataclasses.fields(result) if item.repr}
    facts = [
        (name.replace("_", " "), shortened(str(value))) for name, value in fields.items() if value not in ("", None)
    ]
    return Card(type(result).__name__, facts)


_VIEWS: dict[type, Callable[[Any], Card]] = {
    Upload: upload,
    Prepared: preparation.prepared,
    Quote: quote,
    TrainingJob: training_job,
    Snapshot: snapshot,
    Downloaded: downloaded,
    **endings.views(),
}
