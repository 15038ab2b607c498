"""Cards of what comes after training: endpoint, answers, clean-up, receipt, start. Pure, as views.py."""

from __future__ import annotations

from typing import Any

from llmtuner_kit import costs, inference
from llmtuner_kit.endpoints import CleanUp, Endpoint, EndpointStatus
from llmtuner_kit.evaluation import Comparison, HeldOut, Sample
from llmtuner_kit.faces.show import Card, Table, duration
from llmtuner_kit.settings import InvokeSettings
from llmtuner_kit.workspace import Workspace


def status(seen: EndpointStatus) -> Card:
    facts = [
        ("status", seen.status + (f": {seen.failure_reason}" if seen.failure_reason else "")),
        ("instances", f"{seen.instances} of {seen.desired_instances} x {seen.instance_type}"),
        (
            "cost",
            f"{costs.usd(seen.usd_per_hour)} an hour" + ("" if seen.charged else " on AWS; here it costs nothing"),
        ),
        ("until", f"{seen.expires_at:%Y-%m-%d %H:%M} UTC" if seen.expires_at else "somebody deletes it"),
    ]
    return Card(f"Endpoint {seen.endpoint_name}", facts)


def endpoint(made: Endpoint) -> Card:
    facts = [
        ("model of", made.job_name),
        ("costs", f"{costs.usd(made.usd_per_hour)} an hour, {costs.usd(made.usd_until_expiry)} until it is deleted"),
        ("deleted at", f"{made.expires_at:%Y-%m-%d %H:%M} UTC, or in 08_cleanup"),
        ("autoscaling", made.autoscaling or "none"),
    ]
    return Card("Reused the endpoint of this run" if made.reused else "Deployed", facts, following="07_invoke")


def samples(rows: tuple[Sample, ...]) -> list[Table]:
    """Base and tuned on the same question, one below the other, which reads better than columns."""
    return [
        Table(
            f"Question {number}: {item.prompt}",
            ("who", "answer"),
            [("base", item.base), ("tuned", item.tuned), ("the answer in the data", item.reference)],
        )
        for number, item in enumerate(rows, 1)
    ]


def comparison(made: Comparison) -> Card:
    notes = [made.note] if made.note else []
    return Card("Base against tuned, on questions neither has seen", parts=[*notes, *samples(made.samples)])


def held_out(made: HeldOut) -> Card:
    facts = [
        ("held-out rows", f"{made.rows}, {made.tokens} answer tokens"),
        ("perplexity", f"base {made.base.perplexity:.2f}, tuned {made.tuned.perplexity:.2f} ({made.change:+.0%})"),
        ("token accuracy", f"base {made.base.token_accuracy:.1%}, tuned {made.tuned.token_accuracy:.1%}"),
        (
            "verdict",
            f"{made.verdict} (95 % interval of the loss difference {made.interval[0]:.3f} to {made.interval[1]:.3f})",
        ),
    ]
    return Card("Base against tuned on held-out rows", facts, samples(made.samples))


def clients(workspace: Workspace, settings: InvokeSettings) -> Card:
    """How to call the endpoint from an application."""
    target = inference.deployed(workspace, settings.run_name, settings.endpoint_name)
    examples = inference.client_examples(workspace, target)
    parts = [f"# {name}\n{code}" for name, code in examples.items()]
    return Card("Calling it from an application", parts=parts, following="08_cleanup")


def cleaned(made: CleanUp) -> Card:
    rows = [*((what, "deleted") for what in made.removed), *((what, "kept") for what in made.kept)]
    parts = [Table("What became of it", ("what", ""), rows)] if rows else ["There was nothing left to delete."]
    return Card("Cleaned up", parts=parts)


def receipt(made: costs.Receipt) -> Card:
    rows = [
        (line.what, line.instance_type, duration(line.seconds), costs.usd(line.usd), line.quoted, line.verdict)
        for line in made.lines
    ]
    note = (
        "This is on your AWS bill." if made.charged else "It ran on this machine: the amounts are what AWS would bill."
    )
    head = ("what", "instance", "time", "cost", "quoted", "")
    return Card(f"Receipt of run {made.run_name}: {costs.usd(made.total_usd)}", parts=[Table(note, head, rows)])


def views() -> dict[type, Any]:
    """Type of result -> its card."""
    return {
        EndpointStatus: status,
        Endpoint: endpoint,
        Comparison: comparison,
        HeldOut: held_out,
        CleanUp: cleaned,
        costs.Receipt: receipt,
    }
