"""The nine notebooks as files: parameters equal to the settings, four parts, stripped, nothing that fails in silence."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from llmtuner_kit import settings as kit_settings
from llmtuner_kit.faces import forms, notebooks

ROOT = Path(__file__).parents[2]
FOUND = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [f"{number:02d}_{step}" for number, step in enumerate(kit_settings.STEPS)]
each = pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)


def cells(path: Path) -> dict[str, Any]:
    return {cell.id: cell for cell in nbformat.read(path, as_version=4).cells}


def code(path: Path) -> list[Any]:
    return [cell for cell in cells(path).values() if cell.cell_type == "code"]


def test_there_is_one_notebook_for_each_step_and_no_other() -> None:
    assert [path.stem for path in FOUND] == NAMES


@each
def test_parameters_are_the_settings_with_their_defaults(path: Path) -> None:
    model = kit_settings.STEPS[notebooks.step_of(path)]
    expected = {name: field.default for name, field in model.model_fields.items()}
    assert notebooks.parameters_of(path) == expected


@each
def test_every_parameter_is_a_plain_line_that_papermill_can_read(path: Path) -> None:
    lines = cells(path)["parameters"].source.split("\n")
    for line in lines:
        assert re.fullmatch(r"[a-z_]+ = (\"[^\"]*\"|-?[\d.]+|True|False)  # [^=]+", line), line
    first = code(path)[0]
    assert first.metadata.tags == ["parameters"]


@each
def test_parameters_are_explained_in_the_words_of_their_settings(path: Path) -> None:
    fields = kit_settings.STEPS[notebooks.step_of(path)].model_fields
    told = dict(line.split("  # ", 1) for line in cells(path)["parameters"].source.split("\n"))
    assert {line.split(" = ")[0]: text for line, text in told.items()} == {
        name: field.description for name, field in fields.items()
    }


@each
def test_no_text_has_a_number_that_could_go_stale(path: Path) -> None:
    for cell in cells(path).values():
        if cell.cell_type == "markdown":
            assert not re.search(r"(?<![A-Za-z])\d(?!\d?_[a-z])", cell.source), cell.id
    if notebooks.step_of(path) == "download":
        assert "a link that works for an hour" in cells(path)["title"].source
        assert notebooks.parameters_of(path)["link_minutes"] == 60
    if notebooks.step_of(path) == "start":
        assert "the nine notebooks" in cells(path)["title"].source
        assert len(FOUND) == 9


@each
def test_parts_are_parameters_form_action_result_in_order(path: Path) -> None:
    assert [cell.id for cell in code(path)] == ["parameters", "form", "run", "result"]
    assert list(cells(path)) == ["title", "parameters", "form-note", "form", "run-note", "run", "result-note", "result"]


@each
def test_the_last_cell_shows_nothing_when_the_action_before_it_has_failed(path: Path) -> None:
    _, _, action, result = code(path)
    name = forms.RESULTS[notebooks.step_of(path)]
    names = [node for node in ast.walk(ast.parse(action.source)) if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    first = next(node for node in ast.parse(result.source).body if not isinstance(node, ast.ImportFrom))
    assert name in made
    if notebooks.step_of(path) not in ("monitor", "invoke"):  # where what has been seen so far is worth showing
        last = ast.parse(action.source).body[-1]
        assert name in {node.id for node in ast.walk(last) if isinstance(node, ast.Name)}
        assert [node.id for node in names if isinstance(node.ctx, ast.Store)].count(name) == 1
    assert name in {node.id for node in ast.walk(first) if isinstance(node, ast.Name)}


@each
def test_nothing_is_stored_that_belongs_to_one_execution(path: Path) -> None:
    document = nbformat.read(path, as_version=4)
    nbformat.validate(document)
    assert document.metadata.kernelspec.name == "python3"
    assert "widgets" not in document.metadata
    for cell in code(path):
        assert cell.outputs == []
        assert cell.execution_count is None


@each
def test_code_imports_only_the_kit_and_hides_no_error(path: Path) -> None:
    for cell in code(path):
        tree = ast.parse(cell.source)
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Try | ast.FunctionDef | ast.With | ast.Lambda), cell.id
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] == "llmtuner_kit" for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] == "llmtuner_kit"
        assert not re.search(r"^\s*[!%]|\binput\(|interact|Output\(|Thread", cell.source, re.MULTILINE)
        if cell.id != "parameters":
            assert len(cell.source.split("\n")) <= 12


@each
def test_each_cell_may_be_the_first_after_a_restart_of_the_kernel(path: Path) -> None:
    """It imports what it uses, and `show` before all else: what is missing then is told calmly, with the cells to run."""
    made: set[str] = set()
    for cell in code(path)[1:]:
        tree = ast.parse(cell.source)
        imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert tree.body[: len(imports)] == imports
        imported = {alias.name for node in imports for alias in node.names}
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        made |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        assert used <= imported | made | {"globals"}, cell.id
        assert cell.id == "form" or "llmtuner_kit.faces.show" in {node.module for node in imports}, cell.id


@each
def test_no_import_takes_the_name_of_a_parameter(path: Path) -> None:
    parameters = set(notebooks.parameters_of(path))
    for cell in code(path)[1:]:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not parameters & {alias.asname or alias.name for alias in node.names}
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                assert node.id not in parameters


@each
def test_readme_names_the_notebook(path: Path) -> None:
    assert f"notebooks/{path.name}" in (ROOT / "README.md").read_text()
