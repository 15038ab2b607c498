"""Results of the kit -> cards. Pure: what is shown, not how."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from llmtuner_kit import artifacts, costs, quotes, training
from llmtuner_kit.artifacts import Downloaded
from llmtuner_kit.catalog import BaseModel
from llmtuner_kit.dataset import Prepared
from llmtuner_kit.faces import endings, preparation, standing
from llmtuner_kit.faces.cards import Card
from llmtuner_kit.faces.charts import Chart
from llmtuner_kit.faces.parts import Folded, Link, Part, Table, listed
from llmtuner_kit.faces.texts import duration, shortened, size
from llmtuner_kit.monitoring import Snapshot
from llmtuner_kit.quotes import Quote
from llmtuner_kit.runs import Run
from llmtuner_kit.settings import TrainSettings
from llmtuner_kit.training import TrainingJob
from llmtuner_kit.uploads import Upload
from llmtuner_kit.workspace import Workspace

_OPTIONS = 6


def of(result: Any) -> Card:
    """The card of any result of the kit."""
    view = _VIEWS.get(type(result))
    return view(result) if view else _plain(result)


def live_quote() -> standing.OnRun:
    """The quote for the settings as they stand in the form of 03_train."""
    known: dict[tuple[Any, ...], tuple[float, str] | None] = {}

    def measure(workspace: Workspace, model: BaseModel, settings: TrainSettings) -> tuple[float, str] | None:
        """Looked for in the records of other runs, which most edits have nothing to do with."""
        key = (workspace, model.model_id, settings.method, settings.instance_type, settings.instance_count)
        if key not in known:
            known[key] = quotes.measured_speed(workspace, model, settings)
        return known[key]

    def look(run: Run, settings: TrainSettings) -> Card:
        card = quote(quotes.quote(run.workspace, settings, run, measure))
        return dataclasses.replace(card, facts=[("dataset", run.result("prepare").get("dataset", "")), *card.facts])

    return standing.OnRun(look)


def upload(made: Upload) -> Card:
    rows = [(file.name, size(file.bytes), "sent" if file.sent else "was there") for file in made.files]
    parts = listed("Files", ("file", "size", "what happened"), rows)
    if made.ignored:
        parts += listed("Left out", ("file", "why"), made.ignored)
    facts = [
        ("dataset", made.dataset),
        ("where", made.uri),
        ("files", len(made.files)),
        ("sent", f"{size(made.bytes_sent)} of {size(made.bytes)}{_again(made)}"),
    ]
    return Card("Uploaded, every file verified by its SHA-256", facts, parts, "02_prepare")


def _again(made: Upload) -> str:
    if not made.bytes_sent:
        return ", as it is there already"
    return f" in {duration(made.seconds)}" if made.seconds >= 1 else ""


def quote(made: Quote) -> Card:
    budget = "" if made.budget_usd or not made.charged else "; set budget_usd, without one no job is started"
    facts = [
        ("model", f"{made.model_id} with {made.method}"),
        ("runs on", f"{made.instance_count} x {made.instance_type}"),
        ("does it fit", made.fit.verdict),
        ("work", f"{made.tokens:,} tokens of {made.rows:,} {'row' if made.rows == 1 else 'rows'}"),
        ("time on AWS", _range(made.seconds)),
        ("of that", "; ".join(f"{part} {_range(seconds)}" for part, seconds in made.parts.items())),
        ("money on AWS", str(made.money)),
        ("price", costs.priced(made.price)),
        _end(made),
        ("an endpoint of this type", _endpoint(made)),
        (
            "is it charged",
            f"yes, this is AWS{budget}"
            if made.charged
            else "no, this runs on your machine; 04_monitor says how long it takes there",
        ),
        ("how it is known", f"the speed is {made.basis}"),
    ]
    others = [(item.instance_type, _range(item.seconds), str(item.money)) for item in made.options[:_OPTIONS]]
    parts: list[Any] = [f"Mind: {note}." for note in made.notes]
    if others:
        parts.append(
            Folded(
                "The same job on other machines, the cheapest", [Table("", ("instance type", "time", "money"), others)]
            )
        )
    refused = standing.refusal(made, training.require_startable)
    return Card("Quote", facts, parts, blocked=refused, offer=standing.fitting(made.fit))


def _endpoint(made: Quote) -> str:
    if made.endpoint_per_hour is None:
        return "price unknown"
    return f"{costs.usd(made.endpoint_per_hour)} an hour, left on {costs.usd(made.endpoint_per_month)} a month"


def _end(made: Quote) -> tuple[str, str]:
    """Where the budget is too small for the job to be started, that it is; else when the job ends at the latest."""
    if made.short:
        return "budget", f"{costs.usd(made.budget_usd)}, {costs.usd_up(made.short)} too little for it to be started"
    most = duration(made.max_runtime_seconds) + costs.at_most(made.usd_at_most)
    partly = made.budget_usd and made.money.high is not None and made.money.high > made.budget_usd
    why = " (the budget is below the high end of the quote)" if partly else ""
    if not why and made.max_runtime_seconds < made.seconds[1]:
        why = " (that is below the high end of the quote)"
    return "stopped after", f"{most}{why}; what it has learnt is kept"


def _range(seconds: tuple[float, float]) -> str:
    if max(seconds) < 1:
        return "under 1 s"
    low, high = map(duration, seconds)
    if low == high:
        return low
    return f"up to {high}" if low == duration(0) else f"{low} to {high}"


def training_job(made: TrainingJob) -> Card:
    title = "Found the job that the same inputs started before" if made.reused else "Training job started"
    facts = [("job", made.job_name), ("model archive will be", made.model_uri)]
    if made.earlier:
        facts.append(("goes on from", f"the last checkpoint of {made.earlier} and its tries since, if there is one"))
    if made.other_code:
        first = "stop it in 04_monitor (stop = True), or " if made.other_code == "InProgress" else ""
        facts.append(("its code", "not this kit's, which was updated since: nothing is paid for twice"))
        facts.append(("to train with this one's", f"{first}set another seed or run_name; then run 03_train again"))
    return Card(title, facts, following="04_monitor")


def snapshot(seen: Snapshot, log_lines: int = 15) -> Card:
    facts = [
        ("status", _status(seen)),
        ("time", duration(seen.elapsed_seconds) + _left(seen)),
        ("cost" if seen.done else "cost so far", _cost(seen)),
        *_interrupted(seen),
        *_numbers(seen),
    ]
    if seen.failure_reason:
        facts.append(("reason", seen.failure_reason))
    parts: list[Any] = curves(seen)
    # The numbers of metric lines are in the curves.
    log = [line for line in seen.log if not line.startswith("metric ")]
    if log_lines and log:
        parts.append("\n".join(log[-log_lines:]))
    stepping = seen.doing.startswith("step ")
    return Card(
        f"Training job {seen.job_name}", facts, parts, done=seen.progress, said=_said(seen),
        phase="steps" if stepping else seen.doing,
    )  # fmt: skip


def _status(seen: Snapshot) -> str:
    """`Training: step 3 of 8`, or how it ended; each word once."""
    if seen.done:
        return seen.ended
    steps = [*([] if seen.status == "InProgress" else [seen.status]), seen.secondary_status]
    return f"{', '.join(dict.fromkeys(steps))}: {seen.doing}"


def _left(seen: Snapshot) -> str:
    return f", about {duration(seen.eta_seconds)} left" if seen.eta_seconds else ""


def _cost(seen: Snapshot) -> str:
    saved = f", {seen.spot_saving:.0%} saved by spot" if seen.spot_saving is not None else ""
    return f"{_amount(seen)}{saved}" + ("" if seen.charged else "; here it costs nothing")


def _amount(seen: Snapshot) -> str:
    at_most = "at most " if seen.spot and seen.spot_saving is None and seen.cost_usd is not None else ""
    return at_most + costs.usd(seen.cost_usd) + ("" if seen.charged else " on AWS")


def _interrupted(seen: Snapshot) -> list[tuple[str, str]]:
    """How often spot instances were taken away, and what becomes of the job then."""
    if not seen.interruptions:
        return []
    times = "1 interruption" if seen.interruptions == 1 else f"{seen.interruptions} interruptions"
    return [("spot", times + ("" if seen.done else "; goes on from its last checkpoint, if it has one"))]


def _numbers(seen: Snapshot) -> list[tuple[str, str]]:
    """The newest metrics with their units, the loss also as it was at first."""
    facts = []
    loss, first = seen.last("train_loss"), seen.first("train_loss")
    if loss is not None and first is not None:
        facts.append(("loss", f"{loss:.3f}" + (f", at first {first:.3f}" if first != loss else "")))
    for label, name, form in (
        ("validation loss", "eval_loss", "{:.3f}"),
        ("token accuracy", "token_accuracy", "{:.1%}"),
        ("speed", "tokens_per_second", "{:,.0f} tokens a second"),
        ("epoch", "epoch", "{:.2f}"),
        ("learning rate", "learning_rate", "{:.3g}"),
    ):
        if (value := seen.last(name)) is not None:
            facts.append((label, form.format(value)))
    before, after = seen.last("base_perplexity"), seen.last("perplexity")
    if before is not None and after is not None:
        facts.append(("perplexity on held-out rows", f"{after:,.2f}, of the base model {before:,.2f}; lower is better"))
    return facts


def _said(seen: Snapshot) -> str:
    """One line for a log: `1 min 2 s · step 12 of 64 · loss 2.412 · 356 tokens/s · about 4 min 2 s left · $0.03`."""
    numbers = [
        form.format(value)
        for name, form in (("train_loss", "loss {:.3f}"), ("tokens_per_second", "{:,.0f} tokens/s"))
        if seen.doing.startswith("step ") and (value := seen.last(name)) is not None
    ]
    parts = [duration(seen.elapsed_seconds), seen.doing if seen.status == "InProgress" else _status(seen), *numbers]
    if left := _left(seen):
        parts.append(left.removeprefix(", "))
    if seen.cost_usd is not None and seen.elapsed_seconds:
        parts.append(_amount(seen))
    return " · ".join(parts)


def finished(workspace: Workspace, seen: Snapshot) -> Card:
    """The end of a job, and what can be done with it now; its curves stand where it was watched."""
    rows = [
        (action.name, action.notebook, "yes" if action.available else action.why)
        for action in artifacts.actions(workspace, seen.job_name)
    ]
    card = snapshot(seen, log_lines=0)
    parts: list[Any] = [Table("What you can do now", ("action", "in", "now"), rows)]
    if seen.status == "Stopped":
        limits = (
            " with a larger budget_usd or max_runtime_minutes, or without spot" if seen.ended != seen.status else ""
        )
        parts.insert(0, f"03_train goes on from the last checkpoint when it is run again{limits}.")
    has_model = any(name == "download" and now == "yes" for name, _, now in rows)
    following = "05_download" if has_model else "03_train" if seen.done else "04_monitor"
    return Card(card.title, card.facts, parts, following)


def curves(seen: Snapshot) -> list[Part]:
    """Loss and token accuracy by step, where there is more than one."""
    charts: list[Part] = []
    for title, names in (
        ("Loss", {"training": "train_loss", "validation": "eval_loss"}),
        ("Token accuracy", {"training": "token_accuracy", "validation": "eval_token_accuracy"}),
    ):
        lines = {label: seen.metrics[name] for label, name in names.items() if seen.metrics.get(name)}
        if any(len(points) > 1 for points in lines.values()):
            told = "; ".join(f"{label} from {p[0][1]:.3f} to {p[-1][1]:.3f}" for label, p in lines.items())
            charts.append(Chart(title, "step", lines, told))
    return charts


def downloaded(made: Downloaded) -> Card:
    facts = [
        ("job", made.job_name),
        ("link until", f"{made.link.expires_at:%Y-%m-%d %H:%M} UTC {made.link.limit}".rstrip()),
        ("size", size(made.link.bytes)),
        ("archive", made.archive.resolve() if made.archive else "not fetched"),
        ("unpacked in", made.folder.resolve() if made.folder else "not unpacked"),
        ("verified", f"all {made.verified} files of the manifest" if made.folder else "not unpacked, so not checked"),
    ]
    rows = [(name, size(count)) for name, count in sorted(made.files.items(), key=lambda item: -item[1])]
    parts: list[Any] = [Link(f"Download model.tar.gz ({size(made.link.bytes)})", made.link.url)]
    if rows:
        parts += listed(f"What is inside: {len(rows)} files, the largest first", ("file", "size"), rows, 10)
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
