"""The report of a pipeline: as text at its end, and as one HTML page with all executed notebooks."""

from __future__ import annotations

import html
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtuner_kit import evaluation, monitoring, receipts, runs
from llmtuner_kit.errors import KitError, NotFoundError
from llmtuner_kit.faces import endings, pipelines, reading, views
from llmtuner_kit.faces.cards import Card
from llmtuner_kit.faces.parts import Table
from llmtuner_kit.faces.pipelines import Pipeline
from llmtuner_kit.faces.texts import duration
from llmtuner_kit.run_settings import RunSettings
from llmtuner_kit.runs import Run
from llmtuner_kit.workspace import Workspace, open_workspace

_CONTROLS = "application/vnd.jupyter.widget-view+json"


def cards(pipeline: Pipeline) -> list[Card]:
    """Stages, data, training, held-out rows, side-by-side answers, receipt: those that there are."""
    done = pipelines.state_of(pipeline)
    rows = [(item.step, duration(item.seconds), item.output) for item in done]
    total = duration(sum(item.seconds for item in done))
    made = [Card(f"Pipeline {pipeline.name}, run {pipeline.run_name}: {total}", parts=[_stages(rows)])]
    if not done:
        return made
    run = _run_of(pipeline)
    workspace = run.workspace
    if prepared := (run.section("prepare") or {}).get("result"):
        made.append(_data(prepared))
    if trained := (run.section("train") or {}).get("result"):
        made += [_training(workspace, trained), *_held_out(workspace, trained["job_name"])]
    if answers := (run.section("invoke") or {}).get("result", {}).get("samples"):
        samples = tuple(evaluation.Sample(**item) for item in answers)
        votes = run.result("invoke").get("votes", [])
        made.append(Card("Base against tuned at the endpoint", parts=reading.named(samples, votes)))
    made.append(endings.receipt(receipts.receipt(workspace, pipeline.run_name)))
    return made


def _run_of(pipeline: Pipeline) -> Run:
    fields = set(RunSettings.model_fields)
    workspace = open_workspace(
        RunSettings(**{name: value for name, value in pipeline.steps[0].parameters.items() if name in fields})
    )
    try:
        return runs.open_run(workspace, pipeline.run_name)
    except NotFoundError as error:
        raise NotFoundError(
            f"{error.problem} The steps were done, but what they made has been deleted since.",
            fix="`llmtuner pipeline FILE --fresh` runs all of them again",
        ) from None


def compared(sweep: Sequence[Pipeline]) -> Card:
    """The runs of a sweep beside each other: what they differ in, and what came of it on rows none was trained on."""
    given = [
        {name: value for step in item.steps for name, value in step.parameters.items() if name != "run_name"}
        for item in sweep
    ]
    varied = [name for name in given[0] if len({str(values.get(name)) for values in given}) > 1]
    rows = [
        (item.run_name, *(values[name] for name in varied), *_outcome(item))
        for item, values in zip(sweep, given, strict=True)
    ]
    head = ("run", *varied, "last loss", "perplexity", "token accuracy", "verdict")
    return Card("The runs beside each other", parts=[Table("Tuned, on held-out rows", head, rows)])


def _outcome(pipeline: Pipeline) -> tuple[str, str, str, str]:
    if not pipelines.state_of(pipeline):
        return "not yet", "", "", ""
    run = _run_of(pipeline)
    trained = (run.section("train") or {}).get("result")
    if not trained:
        return "not yet", "", "", ""
    loss = monitoring.snapshot(run.workspace, trained["job_name"]).last("train_loss")
    shown = "" if loss is None else f"{loss:.3f}"
    try:
        made = evaluation.held_out(run.workspace, trained["job_name"])
    except KitError:
        return shown, "", "", "no held-out evaluation"
    return shown, f"{made.tuned.perplexity:.2f}", f"{made.tuned.token_accuracy:.1%}", made.verdict


def _stages(rows: list[tuple[str, str, str]]) -> Table | str:
    if not rows:
        return "Nothing of it has run yet: `llmtuner pipeline FILE` starts it."
    return Table("Stages", ("step", "time", "executed notebook"), rows)


def _data(prepared: dict[str, Any]) -> Card:
    """What was learnt from: what became of the rows that came in, and how they were divided."""
    counts, splits = prepared["counts"], prepared["splits"]
    became = ("accepted", "rejected", "duplicates")
    facts = [
        ("dataset", f"{prepared['dataset']}, version {prepared['version']}"),
        ("rows that came in", f"{counts['rows_in']:,}: " + ", ".join(f"{counts[what]:,} {what}" for what in became)),
        ("rows as divided", ", ".join(f"{name} {part['rows']:,}" for name, part in splits.items())),
    ]
    return Card("Data", facts)


def _training(workspace: Workspace, trained: dict[str, Any]) -> Card:
    seen = monitoring.snapshot(workspace, trained["job_name"])
    asked = trained["hyperparameters"]
    many, unit = (asked["max_steps"], "step") if int(asked["max_steps"]) else (f"{float(asked['epochs']):g}", "epoch")
    length = f"{many} {unit}{'' if many == '1' else 's'}"
    facts = [
        ("base model", f"{trained['model_id']}, tuned with {asked['method']}"),
        ("for", f"{length} at learning rate {float(asked['learning_rate']):g}"),
        ("job", seen.job_name),
        ("status", seen.status),
        ("time", duration(seen.elapsed_seconds)),
    ]
    first, last = seen.first("train_loss"), seen.last("train_loss")
    if first is not None and last is not None:
        facts.append(("loss", f"first {first:.3f}, last {last:.3f}"))
    return Card("Training", facts, views.curves(seen))


def _held_out(workspace: Workspace, job_name: str) -> list[Card]:
    try:
        return [endings.held_out(evaluation.held_out(workspace, job_name), named=True)]
    except KitError as error:
        return [Card("No held-out evaluation", parts=[str(error)])]


def text(pipeline: Pipeline) -> str:
    """The report for a terminal."""
    path = pipeline.folder / "report.html"
    ending = f"HTML report: {path.resolve()}" if path.exists() else "There is no HTML report yet."
    return "\n\n".join([*(repr(card) for card in cards(pipeline)), ending])


# Light or dark as the reader's system is, and as narrow as a telephone; charts are drawn on white.
_STYLE = (
    "<meta name='viewport' content='width=device-width'><style>:root{color-scheme:light dark}"
    "body{max-width:70em;margin:2em auto;padding:0 1em;font-family:system-ui,sans-serif}.lt,pre{overflow-x:auto}"
    "summary{cursor:pointer}table{border-collapse:collapse}"
    "@media(prefers-color-scheme:dark){.lt img{filter:invert(.9) hue-rotate(180deg)}}</style>"
)


def write(pipeline: Pipeline) -> Path:
    """Write report.html: the cards, then every executed notebook, in one file without anything from elsewhere."""
    sections = []
    for item in pipelines.state_of(pipeline):
        body = _notebook(Path(item.output))
        sections.append(f"<details><summary>{html.escape(item.step)}</summary>{body}</details>")
    if sections:
        sections.insert(0, "<h4>Executed notebooks</h4>")
    shown = "".join(card._repr_html_() for card in cards(pipeline))
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(pipeline.name)}</title>{_STYLE}"
        f"<body>{shown}{''.join(sections)}</body></html>"
    )
    path = pipeline.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _notebook(path: Path) -> str:
    """The body of an executed notebook as HTML."""
    with warnings.catch_warnings():
        # nbconvert's dependencies warn about each other.
        warnings.simplefilter("ignore")
        import nbformat
        from nbconvert import HTMLExporter

        exporter = HTMLExporter(template_name="basic", embed_images=True, exclude_anchor_links=True)
        document = nbformat.read(path, as_version=4)
        for output in [output for cell in document.cells for output in cell.get("outputs", ())]:
            output.get("data", {}).pop(_CONTROLS, None)  # nothing can be pressed here: what stands for them is shown
        body, _ = exporter.from_notebook_node(document)
    return str(body)
