"""Results of the kit -> cards. Pure: what is shown, not how."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from llmtuner_kit import artifacts, costs, training
from llmtuner_kit.artifacts import Downloaded
from llmtuner_kit.dataset import Prepared, Report
from llmtuner_kit.faces import endings
from llmtuner_kit.faces.show import Card, Chart, Masked, Table, duration, size
from llmtuner_kit.monitoring import Snapshot
from llmtuner_kit.settings import TrainSettings
from llmtuner_kit.training import Quote, TrainingJob
from llmtuner_kit.uploads import Upload
from llmtuner_kit.workspace import Workspace, open_workspace

_SHORT = 300


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


def prepared(made: Prepared) -> Card:
    report = made.report
    title = "Prepared before with the same files and settings" if made.reused else "Prepared"
    facts = [
        ("dataset", f"{made.dataset}, version {made.version}"),
        ("where", made.uri),
        ("rows that came in", report.rows_in),
        ("accepted + rejected + duplicates", f"{report.accepted} + {report.rejected} + {report.duplicates}"),
        ("leaks between splits", report.leaks),
        ("languages", ", ".join(f"{code} {share:.0%}" for code, share in list(report.languages.items())[:6])),
    ]
    parts = [
        _splits(report),
        _sources(report),
        _findings(report),
        _lengths(report),
        *(Chart(c.title, c.x, c.lines, c.alt, c.bars) for c in [_histogram(report)] if c),
        Table("Rows as written", ("question", "answer"), [_row(row) for row in report.samples[:3]]),
        *_masks(made),
    ]
    return Card(title, facts, parts, "03_train")


def _splits(report: Report) -> Table:
    rows = [(name, part.rows, part.tokens, part.trained_tokens) for name, part in report.splits.items()]
    return Table("Splits", ("split", "rows", "tokens", "tokens trained on"), rows)


def _sources(report: Report) -> Table:
    rows = [
        (item.name, item.kind, item.encoding + ("" if item.encoding_certain else " (guessed)"), item.mapping, item.rows)
        for item in report.sources[:20]
    ]
    return Table("How the files were read", ("file", "kind", "encoding", "mapping", "rows"), rows)


def _findings(report: Report) -> Table | str:
    if not report.findings:
        return "No defects were found in any row."
    rows = [
        (
            item.title, item.count, item.effect, item.fix,
            "; ".join(f"{example.source} row {example.row}: {example.detail}" for example in item.examples[:2]),
        )
        for item in report.findings
    ]  # fmt: skip
    return Table("Findings", ("what", "rows", "effect", "how to mend it", "for example"), rows)


def _lengths(report: Report) -> str:
    lengths = report.lengths
    text = (
        f"Row lengths in tokens: half of the rows have at most {lengths.median}, nine in ten at most {lengths.p90}, "
        f"the longest {lengths.longest}; the limit is {lengths.max_length}."
    )
    if lengths.over_rows:
        text += (
            f" {lengths.over_rows} rows are longer; behind the limit stand {lengths.over_answer_tokens} answer tokens."
        )
    return text


def _histogram(report: Report) -> Chart | None:
    bars = report.lengths.histogram
    if not bars:
        return None
    return Chart(
        "Row lengths",
        "tokens",
        {"rows": [(item.start, item.rows) for item in bars]},
        f"{len(bars)} bars; most rows have {max(bars, key=lambda item: item.rows).start} tokens or a little more",
        bars=True,
    )


def _row(row: Mapping[str, Any]) -> tuple[str, str]:
    if "messages" in row:
        asked = " / ".join(m["content"] for m in row["messages"] if m["role"] != "assistant")
        answer = " / ".join(m["content"] for m in row["messages"] if m["role"] == "assistant")
    else:
        asked, answer = " ".join(part for part in (row["instruction"], row["input"]) if part), row["output"]
    return shortened(asked), shortened(answer)


def _masks(made: Prepared) -> list[Masked]:
    cards = []
    for number, mask in enumerate(made.masks, 1):
        pieces, trained = [*mask.source, *mask.pieces], [*(False for _ in mask.source), *mask.trained]
        title = f"Row {number} as the model sees it: {sum(trained)} of {len(trained)} tokens (marked) are trained on"
        cards.append(Masked(title, pieces, trained))
    return cards


def quote(made: Quote) -> Card:
    price = made.price
    priced = f"{costs.usd(price.usd_per_hour)} an hour ({price.source}, {price.date})" if price else "unknown"
    facts = [
        ("model", f"{made.model_id} with {made.method}"),
        ("runs on", f"{made.instance_count} x {made.instance_type}"),
        ("does it fit", made.fit.why),
        ("work", f"{made.tokens} tokens of {made.rows} rows"),
        ("time on AWS", f"{duration(made.seconds[0])} to {duration(made.seconds[1])}"),
        ("money on AWS", str(made.money)),
        ("price", priced),
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
        ("status", f"{seen.status}, {seen.secondary_status}" + (f": {seen.message}" if seen.message else "")),
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
    if log_lines and seen.log:
        parts.append("\n".join(seen.log[-log_lines:]))
    following = "05_download" if seen.status == "Completed" else ""
    return Card(f"Training job {seen.job_name}", facts, parts, following, done=seen.progress)


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
        ("files verified", f"{made.verified} of {len(made.files)} against the manifest"),
    ]
    rows = [(name, size(count)) for name, count in sorted(made.files.items(), key=lambda item: -item[1])[:25]]
    parts: list[Any] = [made.link.url]
    if rows:
        parts.append(Table("What is inside", ("file", "size"), rows))
    return Card("The trained model", facts, parts, "06_deploy")


def shortened(text: str, limit: int = _SHORT) -> str:
    """The text, or its beginning with an ellipsis."""
    flat = text.strip()
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


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
    Prepared: prepared,
    Quote: quote,
    TrainingJob: training_job,
    Snapshot: snapshot,
    Downloaded: downloaded,
    **endings.views(),
}
