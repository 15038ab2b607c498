"""Cards of start, endpoint, answers, clean-up and receipt, and the one prompt that 07_invoke shows live."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

from llmtuner_kit import artifacts, costs, endpoint_quotes, evaluation, inference
from llmtuner_kit.cleanup import CleanUp
from llmtuner_kit.deployments import Endpoint
from llmtuner_kit.endpoint_quotes import EndpointQuote
from llmtuner_kit.endpoints import EndpointStatus
from llmtuner_kit.errors import SettingsError
from llmtuner_kit.evaluation import HeldOut
from llmtuner_kit.faces import reading, standing
from llmtuner_kit.faces.cards import Card
from llmtuner_kit.faces.parts import Folded, Part, Table
from llmtuner_kit.faces.texts import duration
from llmtuner_kit.runs import Run
from llmtuner_kit.settings import DeploySettings, InvokeSettings
from llmtuner_kit.start import Start
from llmtuner_kit.workspace import Workspace


def status(seen: EndpointStatus) -> Card:
    facts = [
        ("status", seen.status + (f": {seen.failure_reason}" if seen.failure_reason else "")),
        (
            "instances",
            f"{seen.instances} of {seen.desired_instances} x {seen.instance_type}"
            if seen.desired_instances
            else "starting",
        ),
        (
            "cost",
            f"{costs.usd(seen.usd_per_hour)} an hour" + ("" if seen.charged else " on AWS; here it costs nothing"),
        ),
        ("until", f"{seen.expires_at:%Y-%m-%d %H:%M} UTC" if seen.expires_at else "somebody deletes it"),
    ]
    return Card(f"Endpoint {seen.endpoint_name}", facts, phase=seen.status)


def live_quote() -> standing.OnRun:
    """What an endpoint would cost, for the settings as they stand in the form of 06_deploy."""

    def look(run: Run, settings: DeploySettings) -> Card:
        made = endpoint_quotes.quote(run.workspace, settings, run)
        card = quote(made)
        early = standing.refusal(made.job_name, partial(artifacts.archive_head, run.workspace))
        return dataclasses.replace(card, blocked=early or card.blocked)

    return standing.OnRun(look)


def quote(made: EndpointQuote) -> Card:
    least, most = made.min_instances, made.max_instances
    count = f"{least}" if least == most else f"{least} to {most}"
    budget = "" if made.budget_usd or not made.charged else "; set budget_usd, without one nothing is created"
    facts = [
        ("model of", made.job_name),
        ("runs on", f"{count} x {made.instance_type}"),
        ("does it fit", made.fit.verdict),
        ("price", costs.priced(made.price) + (" for each" if most > 1 else "")),
        ("serves after", " to ".join(map(duration, made.starting_seconds)) + ", which counts"),
        ("time to live", duration(made.time_to_live_minutes * 60) + costs.at_most(made.usd_until_expiry)),
        ("after that", f"{_monthly(made.usd_per_month)}, as it {_deleted_by(charged=made.charged)}"),
        ("is it charged", f"yes, this is AWS{budget}" if made.charged else "no, this runs on your machine"),
    ]
    refused = standing.refusal(made, endpoint_quotes.require_fit, endpoint_quotes.require_budget)
    return Card("Quote", facts, blocked=refused, offer=standing.fitting(made.fit))


def _monthly(amount: float | None) -> str:
    return "it costs on" if amount is None else f"{costs.usd(amount)} a month"


def _deleted_by(*, charged: bool) -> str:
    """Nothing deletes an endpoint by itself, and who pays for it has to know that."""
    where = "" if charged else " --target local"
    return f"stays on until 08_cleanup or `llmtuner guard --delete{where}` deletes it"


def endpoint(made: Endpoint) -> Card:
    facts = [
        ("model of", made.job_name),
        ("costs", f"{costs.usd(made.usd_per_hour)} an hour, {costs.usd(made.usd_until_expiry)} for its time to live"),
        ("time to live", f"until {made.expires_at:%Y-%m-%d %H:%M} UTC; it {_deleted_by(charged=made.charged)}"),
        ("autoscaling", made.autoscaling or "none"),
    ]
    return Card("Reused the endpoint of this run" if made.reused else "Deployed", facts, following="07_invoke")


def held_out(made: HeldOut, *, named: bool = False) -> Card:
    facts = [
        ("held-out rows", f"{made.rows:,}, {made.tokens:,} answer tokens"),
        ("perplexity", f"base {made.base.perplexity:.2f}, tuned {made.tuned.perplexity:.2f} ({made.change:+.0%})"),
        ("token accuracy", f"base {made.base.token_accuracy:.1%}, tuned {made.tuned.token_accuracy:.1%}"),
        (
            "verdict",
            f"{made.verdict} (95 % interval of the loss difference {made.interval[0]:.3f} to {made.interval[1]:.3f})",
        ),
    ]
    answers = reading.named(made.samples) if named else reading.blinded(made.samples)
    return Card("Base against tuned on held-out rows", facts, answers)


def answer(workspace: Workspace, settings: InvokeSettings) -> tuple[Iterator[str], str]:
    """(the answer in pieces, what is asked): the prompt of the settings, else a held-out row as it was trained on.

    Where all rows of the run's dataset have one system message, the prompt comes after it, as their questions did. Raises
    SettingsError when there is neither.
    """
    if settings.prompt:
        system = "" if settings.endpoint_name else evaluation.system_message(workspace, settings.run_name)
        if not system:
            return _pieces(workspace, settings, settings.prompt), settings.prompt
        asked = [{"role": "system", "content": system}, {"role": "user", "content": settings.prompt}]
        return _pieces(workspace, settings, asked), f"{settings.prompt} (after the dataset's system message)"
    rows = evaluation.test_rows(workspace, settings.run_name, 1)
    if not rows:
        raise SettingsError("prompt is empty, and the run's dataset has no held-out rows.", fix="set prompt")
    messages, _ = evaluation.prompt_of(rows[0])
    return _pieces(workspace, settings, messages), messages[-1]["content"]


def _pieces(workspace: Workspace, settings: InvokeSettings, prompt: str | list[dict[str, str]]) -> Iterator[str]:
    """One after the other as they are written, or all in one when stream is off."""
    target = inference.deployed(workspace, settings.run_name, settings.endpoint_name)
    inference.require_serving(workspace, target.endpoint_name)
    options = settings.model_dump(include={"max_new_tokens", "temperature", "top_p"})
    if settings.stream:
        yield from inference.stream(workspace, target, prompt, **options)
    else:
        yield inference.invoke(workspace, target, prompt, **options).text


def clients(workspace: Workspace, settings: InvokeSettings) -> Card:
    """How to call the endpoint from an application."""
    target = inference.deployed(workspace, settings.run_name, settings.endpoint_name)
    examples = inference.client_examples(workspace, target)
    parts: list[Part] = [Folded(name, [code]) for name, code in examples.items()]
    if not workspace.aws.charged:
        parts.insert(0, 'In a terminal run first: eval "$(llmtuner local env)". On AWS the same code needs nothing.')
    return Card("Calling it from an application", parts=parts, following="08_cleanup")


def cleaned(made: CleanUp) -> Card:
    rows = [*((what, "deleted") for what in made.removed), *((what, "kept") for what in made.kept)]
    parts = [Table("", ("what", "what became of it"), rows)] if rows else ["There was nothing left to delete."]
    return Card("Cleaned up", parts=parts)


def receipt(made: costs.Receipt) -> Card:
    head = ["what", "instance", "time", "cost", "quoted"]
    rows = [
        [line.what, line.instance_type, duration(line.seconds), costs.usd(line.usd), line.quoted] for line in made.lines
    ]
    note, total = "This is on your AWS bill.", costs.usd(made.total_usd)
    if made.charged:
        head.append("verdict")
        rows = [[*row, line.verdict] for row, line in zip(rows, made.lines, strict=True)]
    else:
        # The quote is for the instance, the time is this machine's: one says nothing about the other.
        note = (
            "It ran on this machine and cost nothing. The cost is its time at AWS's price, the quote is AWS's own time."
        )
        total = f"nothing to pay; at AWS's prices {total}"
    return Card(f"Receipt of run {made.run_name}: {total}", parts=[Table(note, head, rows)])


def started(made: Start) -> Card:
    """Where you are, what is ready, and what is not with its fix."""
    workspace = made.workspace
    facts = [
        ("run", f"{made.run.name} ({'new' if made.created else 'resumed'})"),
        ("target", f"{workspace.aws.target}, region {workspace.aws.region}, account {workspace.aws.account_id}"),
        ("is it charged", "yes, this is AWS" if workspace.aws.charged else "no, this runs on your machine"),
        ("yours", workspace.paths.uri(workspace.paths.root)),
    ]
    marks = {"ok": "ready", "warning": "look", "problem": "PROBLEM"}
    rows = [(item.name, marks.get(item.level, item.level), item.text, item.fix) for item in made.findings]
    parts = [Table("Checked", ("what", "state", "found", "how to mend it"), rows)]
    others = [(item.name, f"{item.updated_at:%Y-%m-%d %H:%M}") for item in made.runs if item.name != made.run.name][:8]
    if others:
        parts.append(Table("Your other runs", ("run", "last used (UTC)"), others))
    return Card("Ready" if made.ready else "Not ready yet", facts, parts, "01_upload")


def views() -> dict[type, Any]:
    """Type of result -> its card."""
    return {
        Start: started,
        EndpointStatus: status,
        Endpoint: endpoint,
        HeldOut: held_out,
        CleanUp: cleaned,
        costs.Receipt: receipt,
    }
