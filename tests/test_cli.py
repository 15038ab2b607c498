"""The command line as somebody meets it who has never seen it."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llmtuner_kit import errors
from llmtuner_kit.faces import notebooks
from llmtuner_kit.faces.cli import main
from llmtuner_kit.settings import TrainSettings

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "notebooks/03_train.ipynb")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), terminal_width=80)


@pytest.mark.parametrize("group", [[], ["access"], ["prices"]])
def test_no_summary_of_a_command_is_cut_off(group: list[str]) -> None:
    shown = run(*group, "--help")
    assert shown.exit_code == 0
    assert "..." not in shown.output.replace("[ARGS]...", "")


def test_the_first_page_says_how_to_begin() -> None:
    for line in ("llmtuner local up", "llmtuner pipeline notebooks/samples/support-tickets.yaml"):
        assert line in run("--help").output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "03_trian.ipynb"], "There is no notebook"),
        (["pipeline", "nothing.yaml"], "worked example"),
        (["prices", "set", "ml.m5.4xlarg", "1"], "ml.m5.4xlarge"),
        (["download", "s3://x/", "y", "--target", "lokal"], "'local', 'local-docker', 'aws'"),
        (["guard"], "target local needs none of them"),
        (["run", str(ROOT / "README.md")], "not one of the kit's notebooks"),
        (["run", TRAIN, "-p", "lora_rank", "8"], "did you mean lora_r?"),
        (["run", TRAIN, "-p", "epochs", "["], "the value cannot be read"),
        (["run", TRAIN, "-p", "epochs"], "-p epochs has no value; say -p epochs VALUE"),
        (["run", TRAIN, "-p", "epochs", "-p", "seed", "1"], "-p epochs has no value"),
        (["run", TRAIN, "-p"], "-p NAME has no value"),
        (["run", TRAIN, "-p", "lora_rank=8"], "did you mean lora_r?"),
        (["run", TRAIN, "-f", str(ROOT / "LICENSE")], "is not YAML"),
        (["run", TRAIN, "-f", str(ROOT / "constraints.txt")], "holds no parameters"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(arguments: list[str], told: str) -> None:
    done = run(*arguments)
    assert done.exit_code != 0
    assert told in done.output
    assert "Traceback" not in done.output


def test_a_parameter_is_two_words_or_joined_by_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, object]] = []
    done = notebooks.Executed(Path(TRAIN), Path("out"), 1.0)
    monkeypatch.setattr(notebooks, "run", lambda _, parameters, __: given.append(parameters) or done)
    assert run("run", TRAIN, "-p", "epochs=2", "-p", "run_name", "a=b", "-p", "seed", "-1").exit_code == 0
    assert given == [{"epochs": 2, "run_name": "a=b", "seed": -1}]


def test_every_exit_code_is_on_the_first_page() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.KitError)]
    shown = run("--help").output
    for code in {kind.exit_code for kind in kinds} | {0, 130}:
        assert f"\n    {code}  " in shown


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_says_that_it_goes_on_and_ends_as_interrupted(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(notebooks, "run", interrupted)
    done = run("run", TRAIN)
    assert done.exit_code == code
    assert "goes on where it stopped" in done.output


@pytest.mark.parametrize(("code", "shown"), [(errno.ENOSPC, True), (errno.EACCES, True), (errno.EPROTO, False)])
def test_a_disk_that_is_full_or_closed_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, code: int, shown: bool
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(notebooks, "run", full)
    done = run("run", TRAIN)
    assert done.exit_code == 1
    assert ("goes on where it stopped" in done.output and str(Path.cwd()) in done.output) == shown
    assert isinstance(done.exception, OSError) != shown


def test_the_parameters_of_a_notebook_are_listed_with_their_defaults_and_meaning() -> None:
    shown = run("run", TRAIN, "--help-notebook").output
    line = next(line for line in shown.splitlines() if line.startswith("learning_rate"))
    assert line.split(maxsplit=2) == [
        "learning_rate",
        "0.0002",
        TrainSettings.model_fields["learning_rate"].description,
    ]
    assert "executed notebook" not in shown
    following = shown.splitlines()[[line.split()[0] for line in shown.splitlines()].index("method") + 1]
    assert following.strip() == "one of lora, rslora, dora, qlora, full"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("03_train", "did you mean notebooks/03_train.ipynb?"),
        ("3_trian.ipynb", "03_train"),
        ("zzz", "one in notebooks/"),
    ],
)
def test_a_notebook_that_is_not_there_is_answered_with_the_likeliest(
    monkeypatch: pytest.MonkeyPatch, given: str, meant: str
) -> None:
    monkeypatch.chdir(ROOT)
    assert meant in run("run", given).output


def test_a_pipeline_that_has_not_run_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where pipelines keep what they have done
    shown = run("report", str(ROOT / "notebooks/samples/support-tickets.yaml"))
    assert "Nothing of it has run yet" in shown.output
