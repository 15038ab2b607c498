"""The quote: what a training job will take in time and money, before anything is started.

Billable time = fetching and starting + tokens / speed + evaluation + writing, packing and uploading, each as a range.
Speed is measured where a finished job of the user had the same model, method and instance on a charged target, else modelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from llmtuner_kit import base_models, catalog, costs, fit, job_times, runs
from llmtuner_kit.aws import ClientError
from llmtuner_kit.catalog import BaseModel, Instance
from llmtuner_kit.errors import BudgetError
from llmtuner_kit.job_times import Work, work_of
from llmtuner_kit.runs import Run
from llmtuner_kit.settings import TrainSettings
from llmtuner_kit.workspace import Workspace

LONGEST_SECONDS = 28 * 86400
# What every account has before it asks for more: the quota "Longest run time for a training job".
_USUAL_LONGEST_SECONDS = 5 * 86400
_LEAST_WORK_SECONDS = 60
# A job without budget and limit of its own may take this many times its quote before it is stopped.
_PATIENCE = 4
# A measured speed holds for the next job within this share.
_MEASURED_SPREAD = 0.15
_RUNS_SEARCHED = 10
# Share of the tokens that rows beginning alike must spare to be mentioned.
_WORTH_TELLING = 0.1


@dataclass(frozen=True)
class Option:
    """The same job on another instance type."""

    instance_type: str
    seconds: tuple[float, float]
    money: costs.Money


@dataclass(frozen=True)
class Quote:
    """What a job will take, as ranges; `basis` says where the speed comes from.

    Attributes:
        rows: different rows that are trained on.
        tokens: those of the rows, each time that they are trained on.
        tokens_per_second: of all instances together.
        seconds: billable seconds per instance (low, high).
        parts: what they are made of: start, training, evaluation and archive, each (low, high).
        target: where the job would run.
        stop_after_seconds: when the job ends its training by itself, as it could not write its model in the time that a
            stopped job is given; 0: SageMaker stops it at its limit.
        save_seconds: what is taken off the budget, so that a job stopped by it can still pack and upload its work.
        max_runtime_seconds: the hard limit the job gets.
        endpoint_per_hour: USD of one hosting instance of the same type; None: unknown.
        options: instance types the job fits, the cheapest job first, those without a known price last.
    """

    model_id: str
    method: str
    instance_type: str
    instance_count: int
    rows: int
    tokens: int
    tokens_per_second: tuple[float, float]
    seconds: tuple[float, float]
    parts: dict[str, tuple[float, float]]
    money: costs.Money
    price: costs.Price | None
    fit: fit.Fit
    basis: str
    budget_usd: float
    save_seconds: int
    max_runtime_seconds: int
    stop_after_seconds: int
    endpoint_per_hour: float | None
    target: str
    charged: bool
    options: tuple[Option, ...]
    notes: tuple[str, ...]

    @property
    def usd_at_least(self) -> float | None:
        """USD below which the job is not started: the low end of the quote, or a minute of work and saving it."""
        if self.price is None or self.money.low is None:
            return None
        saved = self.price.usd_per_hour * self.instance_count * (self.save_seconds + _LEAST_WORK_SECONDS) / 3600
        return max(self.money.low, saved)

    @property
    def short(self) -> float:
        """USD by which the budget is too small for the job to be started; 0: it is not, or there is none."""
        return max(0.0, (self.usd_at_least or 0.0) - self.budget_usd) if self.budget_usd else 0.0

    @property
    def usd_at_most(self) -> float | None:
        """USD when the job runs until its limit and then saves its work."""
        if self.price is None:
            return None
        return self.price.usd_per_hour * self.instance_count * (self.max_runtime_seconds + self.save_seconds) / 3600

    @property
    def endpoint_per_month(self) -> float | None:
        """USD for 730 hours of one instance."""
        return None if self.endpoint_per_hour is None else self.endpoint_per_hour * costs.HOURS_PER_MONTH

    @property
    def cheapest(self) -> str:
        """The instance type on which the job is cheapest; empty when it fits none."""
        return self.options[0].instance_type if self.options else ""


Measure = Callable[[Workspace, BaseModel, TrainSettings], tuple[float, str] | None]


def quote(
    workspace: Workspace, settings: TrainSettings, run: Run | None = None, measure: Measure | None = None
) -> Quote:
    """What the job will take; `run`: the settings' run, if it is open; `measure`: `measured_speed`, or what knows it."""
    run = run or runs.open_run(workspace, settings.run_name)
    model = base_models.of_run(run, settings.model_id)
    settings = _placed(settings, model)
    work = work_of(run.result("prepare"), model, settings)
    measured = (measure or measured_speed)(workspace, model, settings) if workspace.aws.charged else None
    return make_quote(model, work, settings, workspace.aws.region, charged=workspace.aws.charged, measured=measured)


def _placed(settings: TrainSettings, model: BaseModel) -> TrainSettings:
    """The settings with the base model's own instance type, where they name none."""
    return settings.model_copy(update={"instance_type": settings.instance_type or model.instance})


def make_quote(
    model: BaseModel,
    work: Work,
    settings: TrainSettings,
    region: str,
    *,
    charged: bool,
    measured: tuple[float, str] | None = None,
) -> Quote:
    """The quote of a known amount of work. Pure but for the price book. `measured`: (tokens per second, where from)."""
    settings = _placed(settings, model)
    instance = catalog.instance(settings.instance_type)
    fits = _fit(model, instance, work, settings)
    speed = _speed(model, instance, work, fits, settings)
    basis = f"modelled at {fit.UTILISATION[0]:.0%} to {fit.UTILISATION[1]:.0%} of the {instance.gpu}'s peak"
    if measured:
        speed = (measured[0] * (1 - _MEASURED_SPREAD), measured[0] * (1 + _MEASURED_SPREAD))
        basis = f"measured by {measured[1]}, within {_MEASURED_SPREAD:.0%}"
    parts = _parts(model, instance, work, fits, settings, speed)
    seconds = job_times.total(parts)
    money = costs.cost_range(instance.instance_type, region, seconds, settings.instance_count)
    save = job_times.save_seconds(model)
    limit = runtime_limit(settings, seconds, region, save)
    return Quote(
        model_id=model.model_id,
        method=settings.method,
        instance_type=instance.instance_type,
        instance_count=settings.instance_count,
        rows=work.rows,
        tokens=work.tokens,
        tokens_per_second=speed,
        seconds=seconds,
        parts=parts,
        money=money,
        price=costs.price(instance.instance_type, region, "training"),
        fit=fits,
        basis=basis,
        budget_usd=settings.budget_usd,
        save_seconds=save,
        max_runtime_seconds=limit,
        stop_after_seconds=job_times.stop_after(model, limit),
        endpoint_per_hour=costs.hourly(instance.instance_type, region),
        target=settings.target,
        charged=charged,
        options=tuple(_options(model, work, settings, region)),
        notes=tuple(_notes(model, work, settings, fits)),
    )


def require_budget(made: Quote) -> None:
    """Raises BudgetError where a charged job has no budget, or the budget does not pay for the job at its fastest."""
    if made.charged and not made.budget_usd:
        raise BudgetError(
            f"This job is charged and no budget is set; the quote is {made.money}.",
            fix=f"set budget_usd, at least {costs.usd_up(made.money.high)}" if made.money.known else "set budget_usd",
        )
    if made.short:
        # A short job may cost less than what a budget must keep for the slowest saving.
        saving = made.money.low is not None and made.usd_at_least is not None and made.usd_at_least > made.money.low
        kept = f", as {made.save_seconds / 60:.0f} minutes of it are kept to save the work" if saving else ""
        raise BudgetError(
            f"The quote is {made.money} and the budget {costs.usd(made.budget_usd)}: {costs.usd_up(made.short)} too "
            f"little for the job to be started{kept}.",
            valid=f"budget_usd from {costs.usd_up(made.usd_at_least)}",
            fix=", or ".join(["raise budget_usd", *_within(made)]),
        )


def _within(made: Quote) -> list[str]:
    """What would bring the job within its budget: another machine, less work."""
    ways = []
    for item in made.options:
        rate = (item.money.low or 0.0) / item.seconds[0]
        if rate and rate * max(item.seconds[0], made.save_seconds + _LEAST_WORK_SECONDS) <= made.budget_usd:
            ways.append(f"set instance_type to {item.instance_type!r} ({item.money})")
            break
    if made.money.low is not None and made.money.low > made.budget_usd:
        work = made.tokens / made.tokens_per_second[1]
        unpaid = made.seconds[0] * (1 - made.budget_usd / made.money.low)
        share = math.floor(100 * (1 - unpaid / work))
        if share > 0:
            ways.append(f"train on {share} % as many tokens: fewer epochs, max_steps or rows")
    return ways


def _sizes(work: Work, settings: TrainSettings) -> fit.Sizes:
    return fit.Sizes(
        method=settings.method,
        rank=settings.lora_r,
        max_length=work.max_length,
        batch_tokens=settings.batch_tokens,
        dropout=settings.lora_dropout,
    )


def _fit(model: BaseModel, instance: Instance, work: Work, settings: TrainSettings) -> fit.Fit:
    return fit.check(model, instance, **_sizes(work, settings), count=settings.instance_count)


def _speed(
    model: BaseModel, instance: Instance, work: Work, fits: fit.Fit, settings: TrainSettings
) -> tuple[float, float]:
    share = max(work.max_length, settings.batch_tokens // (instance.gpus * settings.instance_count))
    pass_tokens = min(max(fits.micro_tokens, work.max_length), share)
    slow, fast = fit.tokens_per_second(
        model,
        instance,
        method=settings.method,
        count=settings.instance_count,
        checkpointing=fits.checkpointing,
        spread_pass_tokens=pass_tokens if fits.sharded else 0,
    )
    # Attention still reads every row whole, so that not all of it need be gained.
    return slow, fast / (1 - work.spared(pass_tokens))


def _parts(
    model: BaseModel,
    instance: Instance,
    work: Work,
    fits: fit.Fit,
    settings: TrainSettings,
    speed: tuple[float, float],
) -> dict[str, tuple[float, float]]:
    reading = fit.reading_seconds(model, instance, count=settings.instance_count, spread=fits.sharded)
    return job_times.parts(model, work, speed, reading, spread=fits.sharded)


def _options(model: BaseModel, work: Work, settings: TrainSettings, region: str) -> list[Option]:
    """Every instance type the job fits, the cheapest job first."""
    found = []
    one = _on_one(settings)
    for instance in fit.fitting_instances(model, **_sizes(work, settings)):
        fits = _fit(model, instance, work, one)
        speed = _speed(model, instance, work, fits, one)
        seconds = job_times.total(_parts(model, instance, work, fits, one, speed))
        found.append(Option(instance.instance_type, seconds, costs.cost_range(instance.instance_type, region, seconds)))
    return sorted(found, key=lambda item: (item.money.high is None, item.money.high or 0.0))


def _on_one(settings: TrainSettings) -> TrainSettings:
    """The same settings on one instance: options are compared one instance each."""
    return settings.model_copy(update={"instance_count": 1})


def _notes(model: BaseModel, work: Work, settings: TrainSettings, fits: fit.Fit) -> list[str]:
    notes = []
    if work.spared(fits.micro_tokens) >= _WORTH_TELLING:
        notes.append(
            f"all rows begin with the same {work.shared_tokens} tokens, of about {work.mean_length:.0f} that they have: "
            "these are computed for many rows at once, and the low end counts on it"
        )
    if settings.spot:
        notes.append("spot is billed lower, by an amount nobody can promise; the quote is the on-demand price")
    instance = catalog.instance(settings.instance_type)
    wanted = fit.host_memory_gb(model, instance, settings.method)
    if instance.memory_gb < wanted:
        notes.append(
            f"the machine's own memory is tight for this model (about {wanted:.0f} GB wanted); "
            "a larger size of the same family is safer"
        )
    if fits.fits and fits.headroom < 0.05:
        notes.append("GPU memory is nearly full; a smaller max_length makes room")
    return notes


def runtime_limit(settings: TrainSettings, seconds: tuple[float, float], region: str, save_seconds: int) -> int:
    """MaxRuntimeInSeconds: what was asked for, what the budget buys less the time to save, or four times the quote.

    A budget alone asks for no more than an account's usual quota, and for a longer quote as much as that.
    """
    asked = settings.max_runtime_minutes * 60
    limits = [asked] if asked else []
    rate = costs.hourly(settings.instance_type, region, settings.instance_count, "training")
    if settings.budget_usd and rate:
        limits.append(max(_LEAST_WORK_SECONDS, int(settings.budget_usd / rate * 3600 - save_seconds)))
    if not limits:
        limits.append(max(3600, int(seconds[1] * _PATIENCE)))
    if not asked:
        limits.append(max(_USUAL_LONGEST_SECONDS, math.ceil(seconds[1])))
    return min(*limits, LONGEST_SECONDS)


def measured_speed(workspace: Workspace, model: BaseModel, settings: TrainSettings) -> tuple[float, str] | None:
    """(tokens per second, job) of the newest finished job of the user with the same model, method and machines."""
    client = workspace.aws.client("sagemaker")
    for item in runs.list_runs(workspace)[:_RUNS_SEARCHED]:
        trained = (runs.open_run(workspace, item.name).section("train") or {}).get("result") or {}
        same = (
            trained.get("model_id") == model.model_id
            and trained.get("instance_type") == settings.instance_type
            and trained.get("instance_count") == settings.instance_count
            and trained.get("hyperparameters", {}).get("method") == settings.method
        )
        if not same:
            continue
        try:
            job = client.describe_training_job(TrainingJobName=trained["job_name"])
        except ClientError:
            continue  # deleted meanwhile: another run may know
        metrics = {point["MetricName"]: float(point["Value"]) for point in job.get("FinalMetricDataList", [])}
        if job["TrainingJobStatus"] == "Completed" and metrics.get("tokens_per_second", 0) > 0:
            return metrics["tokens_per_second"], f"training job {trained['job_name']}"
    return None
