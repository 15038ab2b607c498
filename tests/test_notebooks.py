"""The strict headless runner: refuses before a kernel starts, fails when a cell fails, keeps the evidence."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner

from llmtuner_kit.errors import NotFoundError, SettingsError
from llmtuner_kit.faces import cli, notebooks
from llmtuner_kit.faces.notebooks import NotebookError

UPLOAD = Path(__file__).parents[1] / "notebooks" / "01_upload.ipynb"


def small(folder: Path, *sources: str) -> Path:
    """A notebook of the step upload with the real parameters cell and other cells."""
    document = nbformat.read(UPLOAD, as_version=4)
    document.cells = [
        next(cell for cell in document.cells if cell.id == "parameters"),
        *(nbformat.v4.new_code_cell(source) for source in sources),
    ]
    path = folder / "01_upload.ipynb"
    nbformat.write(document, path)
    return path


def test_a_misspelt_name_is_refused_before_a_kernel_starts(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="sauce"):
        notebooks.run(UPLOAD, {"sauce": "x"}, tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()


def test_every_value_that_does_not_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        notebooks.run(UPLOAD, {"dataset": "Not A Label", "target": "mars"}, tmp_path / "out.ipynb")
    assert "dataset" in str(caught.value)
    assert "target" in str(caught.value)


def test_a_notebook_that_is_not_one_of_ours_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        notebooks.run(tmp_path / "01_upload.ipynb", {})
    other = small(tmp_path).rename(tmp_path / "99_other.ipynb")
    with pytest.raises(SettingsError, match="99_other"):
        notebooks.run(other, {})


def test_parameters_arrive_and_what_cells_show_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small(tmp_path, "print('the source is', source)")
    done = notebooks.run(path, {"source": "rows.csv"}, tmp_path / "out.ipynb")
    assert "the source is rows.csv" in capsys.readouterr().out
    assert done.output.exists()
    assert 0 < done.seconds < 60


def test_a_failing_cell_fails_the_run_with_its_own_message_and_stops_there(tmp_path: Path) -> None:
    path = small(
        tmp_path,
        "from llmtuner_kit.errors import DataError\nraise DataError('row 7 is broken', fix='mend it')",
        f"open({str(tmp_path / 'later')!r}, 'w').close()",
    )
    with pytest.raises(NotebookError, match="row 7 is broken"):
        notebooks.run(path, {}, tmp_path / "out.ipynb", quiet=True)
    assert (tmp_path / "out.ipynb").exists()
    assert not (tmp_path / "later").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [("ValueError('it broke')", 1), ("__import__('llmtuner_kit.errors').errors.BudgetError('it broke')", 3)],
)
def test_the_command_ends_with_the_exit_code_of_its_cell_and_the_message(tmp_path: Path, error: str, code: int) -> None:
    path = small(tmp_path, f"raise {error}")
    result = CliRunner().invoke(cli.main, ["run", str(path), "-o", str(tmp_path / "out.ipynb")])
    assert result.exit_code == code
    assert "it broke" in result.stderr
    assert "Traceback" not in result.stderr


def test_texts_from_the_command_line_stay_texts() -> None:
    result = CliRunner().invoke(cli.main, ["run", str(UPLOAD), "-p", "user_id", "0123", "-p", "sauce", "1"])
    assert result.exit_code == 2
    assert "user_id" not in result.stderr
    assert "sauce" in result.stderr
