"""Commands about an account rather than a run: access, guard, prices."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llmtuner_kit.workspace import Workspace


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, text in (
        ("bucket", "S3 bucket; default: the kit's own"),
        ("user-id", "user of the kit; default: your login name"),
        ("region", "AWS region; default: the configured one"),
    ):
        command = click.option(f"--{name}", default="", help=text)(command)
    choice = click.Choice(["local", "local-docker", "aws"])
    return click.option("--target", type=choice, default="aws", show_default=True)(command)


def _workspace(target: str, region: str, user_id: str, bucket: str) -> Workspace:
    from llmtuner_kit import settings  # here, not above: `llmtuner --help` must not wait for boto3
    from llmtuner_kit.workspace import open_workspace

    given = {"target": target, "region": region, "user_id": user_id, "bucket": bucket}
    return open_workspace(settings.load("start", given))


@click.group()
def access() -> None:
    """Policies: what a user may do, what jobs may do."""


@access.command()
@click.option("--json", "as_json", is_flag=True, help="the policy document instead of sentences")
@_options
def show(target: str, region: str, user_id: str, bucket: str, *, as_json: bool) -> None:
    """The policy one user of the kit needs, and nothing more."""
    from llmtuner_kit import access as policies

    found = _workspace(target, region, user_id, bucket)
    aws = found.aws
    policy = policies.user_policy(found.bucket, found.user_id, aws.account_id, aws.region, aws.partition)
    click.echo(json.dumps(policy, indent=2) if as_json else "\n".join(policies.sentences(policy)))


@access.command()
@click.option("--create", is_flag=True, help="create the role, or bring it up to date")
@click.option("--own", is_flag=True, help="a role for this user alone, which reaches no other prefix")
@click.option("--vpc", is_flag=True, help="with --create: jobs and endpoints may run in a VPC of the account")
@_options
def role(target: str, region: str, user_id: str, bucket: str, *, create: bool, own: bool, vpc: bool) -> None:
    """The execution role of jobs and endpoints."""
    from llmtuner_kit import access as policies

    found = _workspace(target, region, user_id, bucket)
    if create:
        click.echo(policies.create_execution_role(found.aws, found.bucket, found.user_id if own else "", vpc=vpc))
    else:
        click.echo(policies.execution_role(found.aws, user_id=found.user_id if own else ""))


@click.command(short_help="Your endpoints and their cost; delete what is over.")
@click.option("--delete", is_flag=True, help="delete what has outlived its time")
@_options
def guard(target: str, region: str, user_id: str, bucket: str, *, delete: bool) -> None:
    """Your endpoints with what they cost; --delete removes those whose time is over."""
    from llmtuner_kit import costs, endpoints

    found = _workspace(target, region, user_id, bucket)
    if delete:  # first: what cannot be shown, as the price book is damaged, is deleted all the same
        gone = endpoints.delete_expired(found)
        click.echo(f"Deleted: {', '.join(gone)}." if gone else "Nothing has outlived its time.")
    living = [item for item in endpoints.list_own(found) if not delete or item.status != "Deleting"]
    for item in living:
        until = f"{item.expires_at:%Y-%m-%d %H:%M} UTC" if item.expires_at else "no end set"
        over = "  OVER" if item.expired else ""
        free = "" if found.aws.charged else " on AWS, here it costs nothing"
        hourly = f"{costs.usd(item.usd_per_hour)} an hour, {costs.usd(item.cost_usd)} so far{free}"
        click.echo(
            f"{item.endpoint_name}  {item.status}  {item.instance_type} x{item.instances}  {hourly}  until {until}{over}"
        )
    if not living:
        click.echo(f"No endpoint of user {found.user_id!r} is running in {found.aws.region}.")
    elif any(item.expired for item in living) and not delete:
        click.echo("Run again with --delete to remove what is over.")


@click.group()
def prices() -> None:
    """The price book."""


@prices.command(short_help="Ask the AWS Price List API for a region's prices.")
@click.option("--region", default="", help="AWS region; default: the configured one")
def refresh(region: str) -> None:
    """Read the prices of a region from the AWS Price List API into your own price book."""
    from llmtuner_kit import aws
    from llmtuner_kit import prices as fresh

    found = fresh.refresh(aws.connect("aws", region))
    click.echo(f"{found.known} prices of {found.region} are in {found.path}; {len(found.changed)} changed.")


@prices.command("show")
@click.option("--region", default="us-east-1", show_default=True)
def show_prices(region: str) -> None:
    """What the price book knows of a region."""
    from llmtuner_kit import catalog, costs

    names = catalog.instance_types()
    if all(costs.price(name, region) is None for name in names):
        click.echo(f"The book has no price of region {region!r}: `llmtuner prices refresh --region {region}` asks AWS.")
        return
    click.echo(f"Prices in {region}; `llmtuner prices refresh --region {region}` asks AWS for those of today.")
    for name in names:
        found = costs.price(name, region)
        text = f"{costs.usd(found.usd_per_hour)} an hour  ({found.source}, {found.date})" if found else "unknown"
        click.echo(f"{name:18} {text}")


@prices.command("set", short_help="Enter a price that you know.")
@click.argument("instance_type")
@click.argument("usd_per_hour", type=float)
@click.option("--region", default="us-east-1", show_default=True)
def set_price(instance_type: str, usd_per_hour: float, region: str) -> None:
    """Enter a price that you know, for quotes, meters and receipts; the next refresh of the region replaces it."""
    from llmtuner_kit import prices as fresh

    path = fresh.enter(instance_type, usd_per_hour, region)
    click.echo(f"{instance_type} in {region}: ${usd_per_hour} an hour, in {path}.")
