"""The three lists of dependencies say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


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
    assert "python=3.11" in environment["dependencies"]
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
