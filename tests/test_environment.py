"""The lists of dependencies say the same, and so does all that names versions of Python."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, TOOLS = PYPROJECT["project"], PYPROJECT["tool"]
MAKEFILE = (ROOT / "Makefile").read_text()


def declared() -> set[str]:
    """Every requirement of pyproject, the self-reference of `all` resolved away."""
    lists = [PROJECT["dependencies"], *(v for k, v in PROJECT["optional-dependencies"].items() if k != "all")]
    return {line for part in lists for line in part}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(re.fullmatch(r"([\w.-]+)==([\w.+!-]+)", line).groups() for line in lines if not line.startswith("#"))  # type: ignore[union-attr]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_environment_yml_lists_exactly_what_pyproject_declares() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    options = {line for line in pip if line.startswith("--")}
    assert options == {"--constraint constraints.txt", "--editable ."}
    assert set(pip) - options == declared()


def test_constraints_pin_every_declared_requirement_to_a_version_it_admits() -> None:
    pinned = {normal(name): version for name, version in pins().items()}
    for line in declared():
        requirement = Requirement(line)
        version = pinned.get(normal(requirement.name))
        assert version, f"{requirement.name} has no pin in constraints.txt"
        assert requirement.specifier.contains(version, prereleases=True), f"{line} does not admit {version}"


def test_extra_all_names_every_extra_but_test() -> None:
    extras = PROJECT["optional-dependencies"]
    (line,) = extras["all"]
    assert Requirement(line).extras == set(extras) - {"all", "test"}


def test_required_packages_of_the_environment_are_declared() -> None:
    names = {Requirement(line).name for line in declared()}
    wanted = {
        "jupyterlab",
        "ipywidgets",
        "papermill",
        "boto3",
        "sagemaker",
        "transformers",
        "peft",
        "datasets",
        "localstack-client",
        "pytest",
    }
    assert wanted <= names


def test_the_same_versions_of_python_are_named_everywhere() -> None:
    """What pip admits is what `make` takes, CI runs on, mypy and ruff keep to, and the classifiers say."""
    admitted = [
        f"3.{minor}" for minor in range(30) if SpecifierSet(PROJECT["requires-python"]).contains(f"3.{minor}.1")
    ]
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert admitted == named == ci["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert TOOLS["mypy"]["python_version"] == admitted[0]
    assert TOOLS["ruff"]["target-version"] == f"py{admitted[0].replace('.', '')}"
    first, last = re.search(r"\(3, (\d+)\) <= sys.version_info < \(3, (\d+)\)", MAKEFILE).groups()  # type: ignore[union-attr]
    assert PROJECT["requires-python"] == f">=3.{first},<3.{last}"


NONE = "exit 127"
WITHOUT_VENV = """[ "$1" = --version ] && echo Python 3.13.5 && exit; echo "No module named 'ensurepip'" >&2; exit 1"""
OLD = """[ "$1" = --version ] && echo Python 3.10.12 && exit; case "$2" in *version_info*) exit 1; esac"""


def make(folder: Path, *options: str, **programs: str) -> str:
    """What `make` says about the environment's Python where `programs`, shell scripts, are all there is."""
    for name, script in {"grep": 'exec /usr/bin/grep "$@"', **programs}.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    command = ["/usr/bin/make", "--file", str(ROOT / "Makefile"), "VENV=venv", "venv/bin/python", *options]
    done = subprocess.run(command, cwd=folder, env={"PATH": str(folder)}, capture_output=True, text=True, check=False)
    assert not (folder / "venv").exists(), "nothing half-made, which the next `make` would take for whole"
    return done.stdout + done.stderr


def test_make_takes_the_first_python_that_is_supported_and_has_venv(tmp_path: Path) -> None:
    real = f'exec {sys.executable} "$@"'
    programs = {"python3": OLD, "python3.13": WITHOUT_VENV, "python3.12": NONE, "python3.11": real}
    said = make(tmp_path, "--dry-run", **programs)
    assert f"{Path(sys.executable).resolve()} -m venv --clear venv" in said


@pytest.mark.parametrize(
    ("script", "here"),
    [(OLD, "Python 3.10.12."), (WITHOUT_VENV, "Python 3.13.5 without venv."), (None, "python3: not found.")],
    ids=["old", "without venv", "none"],
)
def test_make_says_what_python_it_needs_and_what_is_here(tmp_path: Path, script: str | None, here: str) -> None:
    said = make(tmp_path, **({"python3": script} if script else {}))
    assert "Needed: Python 3.11 to 3.14 with venv. Here: " in said
    assert here in said
    assert "apt install python3-venv" in said


def test_make_refuses_a_named_python_that_is_too_old(tmp_path: Path) -> None:
    assert "Here: Python 3.10.12." in make(tmp_path, "PYTHON=python3.10", **{"python3.10": OLD})
