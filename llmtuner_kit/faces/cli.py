"""The `llmtuner` command: notebooks headless, pipelines, reports, and the local cloud."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import yaml

import llmtuner_kit
from llmtuner_kit.errors import OF_THE_DISK, KitError, SettingsError
from llmtuner_kit.faces import account, yaml_files


class _Plain(click.Group):
    """Shows what the user can put right as its message; everything else keeps its traceback."""

    def invoke(self, context: click.Context) -> Any:
        before = signal.signal(signal.SIGTERM, _end)
        try:
            return super().invoke(context)
        except KitError as error:
            click.echo(click.style(type(error).__name__, bold=True) + f": {error}", err=True)
            context.exit(error.exit_code)
        except OSError as error:
            if error.errno not in OF_THE_DISK:
                raise
            place = error.filename or Path.cwd()
            told = f"{place}: {error.strerror}.\nNext: make room, or call it in a folder you may write; it goes on where it stopped"
            click.echo(f"{click.style('DiskError', bold=True)}: {told}", err=True)
            context.exit(1)
        except KeyboardInterrupt as ended:
            told = "the same command goes on where it stopped; a job or endpoint that was started runs on"
            click.echo(f"\n{click.style('Interrupted', bold=True)}: {told}", err=True)
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # else it tells what a notebook's cell was about
            context.exit(143 if isinstance(ended, _Ended) else 130)
        finally:
            signal.signal(signal.SIGTERM, before)


class _Ended(KeyboardInterrupt):
    """What a timer, a scheduler or CI does to a command that takes too long."""


def _end(*_: object) -> None:
    raise _Ended


_FIRST_STEPS = """\b
First steps, on this machine and for free:
  llmtuner local up                                         start the local cloud
  llmtuner run notebooks/00_start.ipynb -p run_name demo    one notebook, headless
  llmtuner pipeline notebooks/samples/support-tickets.yaml  all nine, on a worked sample

\b
Exit codes:
  0  done
  1  failed, with the reason: a job, an endpoint, a file, a service
  2  wrong use: a command, an option, a parameter
  3  not allowed to cost that: a budget or a quota
  130  interrupted; 143  told to end
"""


class _Run(click.Command):
    """Takes a parameter as two words or, as other tools have it, as NAME=VALUE."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given: list[str] = []
        words = iter(args)
        for word in words:
            given.append(word)
            if word != "-p":
                continue
            name = next(words, "")
            if re.match(r"[A-Za-z_]\w*=", name):
                given += name.split("=", 1)
                continue
            value = next(words, "-p")
            if not name or value == "-p":
                raise click.UsageError(f"-p {name or 'NAME'} has no value; say -p {name or 'NAME'} VALUE.", ctx)
            given += [name, value]
        return super().parse_args(ctx, given)


@click.group(cls=_Plain, epilog=_FIRST_STEPS)
@click.version_option(llmtuner_kit.__version__)
def main() -> None:
    """From your own files to a fine-tuned model at a SageMaker endpoint."""


@main.command(cls=_Run, short_help="Run one notebook headless, strict about names and values.")
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option(
    "-p",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="one parameter of the notebook; or NAME=VALUE",
)
@click.option("-f", "file", type=click.Path(exists=True, dir_okay=False), help="parameters from a YAML file")
@click.option("-o", "output", metavar="FILE", default="", help="the executed notebook; default: out/NOTEBOOK")
@click.option("--help-notebook", is_flag=True, help="list the notebook's parameters and run nothing")
def run(
    notebook: Path, parameters: tuple[tuple[str, str], ...], file: str | None, output: str, *, help_notebook: bool
) -> None:
    """Run one notebook headless; misspelt names and values that do not hold are refused before it starts.

    \b
    llmtuner run notebooks/03_train.ipynb --help-notebook
    llmtuner run notebooks/03_train.ipynb -p run_name demo -p epochs 2
    """
    from llmtuner_kit.faces import notebooks

    known = notebooks.parameters_of(notebook)
    if help_notebook:
        click.echo(notebooks.described(notebook))
        return
    given = _from_file(Path(file)) if file else {}
    given |= {name: _value(name, text, known.get(name)) for name, text in parameters}
    done = notebooks.run(notebook, given, output)
    click.echo(f"{done.notebook.name} in {done.seconds:.1f} s; executed notebook: {done.output}")


def _from_file(file: Path) -> dict[str, Any]:
    given = yaml_files.read(file) or {}
    if not isinstance(given, dict):
        raise SettingsError(f"{file} holds no parameters.", valid="one line for each: epochs: 2")
    return given


def _value(name: str, text: str, default: Any) -> Any:
    """A value from the command line. Texts stay texts: an account number is not a number, nor is 4.10."""
    if isinstance(default, str):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingsError(f"-p {name} {text}: the value cannot be read.", valid=f"such as {default}") from None


@main.command(short_help="Run several notebooks in order; go on where it stopped.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--fresh", is_flag=True, help="run every step again, finished or not")
def pipeline(file: Path, *, fresh: bool) -> None:
    """Run several notebooks in order; a second call goes on at the first unfinished step.

    The file names the steps and their parameters: notebooks/samples/support-tickets.yaml is a worked example.
    Executed notebooks and report.html go into out/NAME, below the folder this is called in.
    """
    from llmtuner_kit.faces import pipelines, report

    found = pipelines.load(file)
    for item in found:
        pipelines.run(item, fresh=fresh, tell=click.echo)
        click.echo(f"report: {report.write(item)}")
    if len(found) > 1:
        click.echo(report.compared(found))


@main.command(short_help="What a pipeline came to: times, answers, money, HTML.")
@click.argument("file", type=click.Path(path_type=Path))
def report(file: Path) -> None:
    """What a pipeline came to: times, loss, base against tuned, money, and the HTML report.

    FILE is the pipeline's YAML file. The runs of a sweep are also shown beside each other.
    """
    from llmtuner_kit.faces import pipelines
    from llmtuner_kit.faces import report as reports

    found = pipelines.load(file)
    for item in found:
        click.echo(reports.text(item))
    if len(found) > 1:
        click.echo(reports.compared(found))


@main.command(short_help="Everything below an S3 address into a folder, verified.")
@click.argument("uri")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--target", type=click.Choice(["local", "local-docker", "aws"]), default="local", show_default=True)
@click.option("--region", default="", help="AWS region; empty: the one your AWS configuration names")
def download(uri: str, folder: Path, target: str, region: str) -> None:
    """Everything below an S3 address into a folder: verified, and resumed when called again after an interruption."""
    from llmtuner_kit import aws, downloads

    made = downloads.fetch_folder(aws.connect(target, region).client("s3"), uri, folder)
    received = sum(item.bytes_received for item in made)
    click.echo(f"{len(made)} files in {folder}, {received:,} bytes received, the rest was there already")


@main.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def local(arguments: tuple[str, ...]) -> None:
    """The local cloud: up, down, status, reset, env, fault."""
    sys.exit(subprocess.call([sys.executable, "-m", "llmtuner_local", *arguments]))


for command in (account.access, account.guard, account.prices):
    main.add_command(command)
