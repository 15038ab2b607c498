"""The shape of the project itself: import rules, import time, package list."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KIT = ROOT / "llmtuner_kit"
DOORWAYS = {
    "boto3": {"aws.py"},
    "botocore": {"aws.py", "aws_errors.py"},
    "ipywidgets": {"faces/forms.py"},
    "IPython": {"faces/show.py"},
    "matplotlib": {"faces/charts.py"},
    "papermill": {"faces/notebooks.py"},
}
NEVER = {"torch", "transformers", "peft", "train_src", "llmtuner_local"}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def python_files(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, f"no Python files under {folder}"
    return found


@pytest.mark.parametrize("path", python_files(KIT), ids=lambda p: str(p.relative_to(KIT)))
def test_kit_modules_keep_to_the_doorways(path: Path) -> None:
    where = path.relative_to(KIT).as_posix()
    tops = {name.split(".")[0] for name in imported(path)}
    assert not tops & NEVER
    for package, doors in DOORWAYS.items():
        assert package not in tops or where in doors, f"{where} imports {package}"
    if not where.startswith("faces/"):
        assert not any(name.startswith("llmtuner_kit.faces") for name in imported(path))


def test_no_module_of_the_kit_imports_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in python_files(KIT):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {item for item in imported(path) if item.startswith("llmtuner_kit.")}
    for name, items in graph.items():
        # `from package import module` names both; the package itself is then not what is wanted.
        modules = items & set(graph)
        graph[name] = {item for item in modules if not any(other.startswith(f"{item}.") for other in modules)}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        for other in graph[name] - {name}:
            visit(other, (*path, name))

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("folder", ["local", "train_src"])
def test_local_cloud_and_container_code_stand_alone(folder: str) -> None:
    for path in python_files(ROOT / folder):
        tops = {name.split(".")[0] for name in imported(path)}
        assert "llmtuner_kit" not in tops, path
        assert folder == "local" or "llmtuner_local" not in tops, path


def test_importing_the_kit_loads_no_heavy_package() -> None:
    heavy = ("torch", "transformers", "sagemaker", "IPython", "papermill", "matplotlib", "ipywidgets", "pandas")
    code = (
        "import sys, llmtuner_kit, llmtuner_kit.runs, llmtuner_kit.training, llmtuner_kit.deployments;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_package_folder_is_shipped() -> None:
    shipped = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {"train_src"}
    for root, name in ((KIT, "llmtuner_kit"), (ROOT / "local", "llmtuner_local")):
        for init in root.rglob("__init__.py"):
            folders.add(".".join([name, *init.parent.relative_to(root).parts]))
    assert shipped == folders


def test_top_level_holds_the_documented_entries_and_nothing_else() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    top = {line.split("/")[0] for line in listing.stdout.splitlines()}
    files = {".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "LICENSE", "Makefile", "README.md"}
    files |= {"constraints.txt", "environment.yml", "pyproject.toml"}
    assert top <= files | {".ci", ".github", "llmtuner_kit", "local", "notebooks", "tests", "train_src"}
