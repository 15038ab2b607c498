"""The quote of an endpoint: does the model fit, what it costs an hour and until its time to live ends."""

from __future__ import annotations

from dataclasses import dataclass

from llmtuner_kit import base_models, catalog, costs, fit, job_times, training
from llmtuner_kit.errors import BudgetError, SettingsError
from llmtuner_kit.runs import Run
from llmtuner_kit.settings import DeploySettings
from llmtuner_kit.workspace import Workspace


@dataclass(frozen=True)
class EndpointQuote:
    """What an endpoint will take.

    Attributes:
        usd_per_hour: of one instance; None when the price is unknown.
        starting_seconds: until it serves, billed like the time after it; modelled, (low, high).
        usd_until_expiry: at most, with all instances until the time to live ends; None: unknown.
    """

    job_name: str
    model: catalog.BaseModel
    instance_type: str
    min_instances: int
    max_instances: int
    fit: fit.Fit
    price: costs.Price | None
    usd_per_hour: float | None
    starting_seconds: tuple[float, float]
    time_to_live_minutes: int
    usd_until_expiry: float | None
    budget_usd: float
    charged: bool

    @property
    def usd_per_month(self) -> float | None:
        """USD of the fewest instances for 730 hours: what an endpoint costs that is left on."""
        return None if self.usd_per_hour is None else self.usd_per_hour * self.min_instances * costs.HOURS_PER_MONTH


def quote(workspace: Workspace, settings: DeploySettings, run: Run | None = None) -> EndpointQuote:
    """The quote of the settings; `run`: their run, if it is open. Raises NotFoundError when the run has no job yet."""
    job_name = training.job_of(workspace, settings.run_name, settings.job_name, run)
    job = training.require_own_job(workspace, job_name)
    model = base_models.of_job(workspace, job)
    region, kind = workspace.aws.region, settings.instance_type or model.instance
    rate = costs.hourly(kind, region, settings.max_instances)
    return EndpointQuote(
        job_name=job_name,
        model=model,
        instance_type=kind,
        min_instances=settings.min_instances,
        max_instances=settings.max_instances,
        fit=fit.serving_fit(model, catalog.instance(kind)),
        price=costs.price(kind, region),
        usd_per_hour=costs.hourly(kind, region),
        starting_seconds=job_times.endpoint_start(model),
        time_to_live_minutes=settings.time_to_live_minutes,
        usd_until_expiry=None if rate is None else rate * settings.time_to_live_minutes / 60,
        budget_usd=settings.budget_usd,
        charged=workspace.aws.charged,
    )


def require_fit(made: EndpointQuote) -> None:
    """Raises SettingsError when the model cannot be served from the instance type."""
    if not made.fit.fits:
        raise SettingsError(
            f"{made.model.model_id} cannot be served from {made.instance_type}: {made.fit.why}.",
            fix=f"set instance_type to {made.fit.smallest!r}" if made.fit.smallest else "deploy a smaller model",
        )


def require_budget(made: EndpointQuote) -> None:
    """Raises BudgetError where the budget does not cover the time to live, or endpoints are charged and there is none."""
    amount, enough = costs.usd(made.usd_until_expiry), costs.usd_up(made.usd_until_expiry)
    if made.charged and not made.budget_usd:
        raise BudgetError(
            f"This endpoint is charged and no budget is set; until its time to live ends it costs up to {amount}.",
            fix=f"set budget_usd, at least {enough}, or a shorter time_to_live_minutes"
            if made.price
            else "set budget_usd; `llmtuner prices refresh` asks AWS for the price first",
        )
    if made.budget_usd and made.usd_until_expiry is not None and made.usd_until_expiry > made.budget_usd:
        minutes = int(made.time_to_live_minutes * made.budget_usd / made.usd_until_expiry)
        raise BudgetError(
            f"Until its time to live ends the endpoint costs up to {amount}; the budget is {costs.usd(made.budget_usd)}.",
            valid=f"budget_usd from {enough}" + (f", or time_to_live_minutes up to {minutes}" if minutes >= 5 else ""),
            fix="set a larger budget_usd, a shorter time_to_live_minutes, or fewer max_instances",
        )
