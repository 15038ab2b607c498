"""Notebooks without a browser: the only importer of papermill.

    run("notebooks/03_train.ipynb", {"run_name": "demo", "epochs": 2})

Stricter than papermill: a misspelt name or a value that does not hold is refused before a kernel starts. A cell that
fails fails the run, with the cell's own error; the executed notebook is kept either way.
"""

from __future__ import annotations

import ast
import difflib
import logging
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtuner_kit import errors, rehearsals
from llmtuner_kit import settings as kit_settings
from llmtuner_kit.errors import JobFailedError, KitError, NotFoundError, SettingsError


@dataclass(frozen=True)
class Executed:
    """A notebook that ran: where its executed copy is, and how long it took in seconds."""

    notebook: Path
    output: Path
    seconds: float


class NotebookError(JobFailedError):
    """A cell failed; the message is the cell's, and so is the exit code."""


def step_of(notebook: Path) -> str:
    """The step a notebook is the face of: `03_train.ipynb` -> `train`."""
    step = notebook.stem.partition("_")[2]
    if step not in kit_settings.STEPS:
        raise SettingsError(
            f"{notebook.name} is not one of the kit's notebooks.",
            valid=", ".join(f"{number:02d}_{name}.ipynb" for number, name in enumerate(kit_settings.STEPS)),
        )
    return step


def parameters_of(notebook: Path) -> dict[str, Any]:
    """The parameters cell of a notebook: names and default values."""
    import nbformat

    if not notebook.is_file():
        known = {path.stem: path for path in Path("notebooks").glob("*.ipynb")}
        meant = difflib.get_close_matches(notebook.stem, known, 1)
        fix = f"did you mean {known[meant[0]]}?" if meant else "give the path of one in notebooks/"
        raise NotFoundError(f"There is no notebook {str(notebook)!r}.", fix=fix)
    step_of(notebook)
    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except (nbformat.reader.NotJSONError, UnicodeDecodeError):
        raise SettingsError(f"{notebook.name} is damaged: it is no notebook.", fix="fetch it again") from None
    for cell in cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            return {
                statement.targets[0].id: ast.literal_eval(statement.value)
                for statement in ast.parse(cell.source).body
                if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
            }
    raise SettingsError(f"{notebook.name} has no cell tagged 'parameters'.")


def described(notebook: Path) -> str:
    """The parameters of a notebook for a terminal: name, default, meaning and what can be chosen."""
    fields = kit_settings.STEPS[step_of(notebook)].model_fields
    defaults = {name: repr(default) for name, default in parameters_of(notebook).items()}
    left = max(map(len, defaults)) + 2, max(map(len, defaults.values())) + 2
    lines = []
    for name, default in defaults.items():
        field = fields[name]
        lines.append(f"{name:{left[0]}}{default:{left[1]}}{field.description or ''}")
        if chosen := kit_settings.values_of(field):
            wrapped = textwrap.wrap(f"one of {', '.join(chosen)}", 100, break_on_hyphens=False)
            lines += [" " * sum(left) + line for line in wrapped]
    return "\n".join(lines)


def check(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, when the notebook knows all of them and they hold; raises SettingsError with every problem.

    So does a method that the target cannot rehearse: a pipeline then knows it before its first step.
    """
    known = parameters_of(notebook)
    settings = kit_settings.load(step_of(notebook), known | dict(parameters))
    if isinstance(settings, kit_settings.TrainSettings):
        rehearsals.require_possible(settings.target, settings.method)
    return dict(parameters)


def run(
    notebook: Path | str, parameters: Mapping[str, Any], output: Path | str = "", *, quiet: bool = False
) -> Executed:
    """Run one notebook from its first cell to its last.

    Raises SettingsError before anything starts, NotebookError when a cell fails.
    """
    path = Path(notebook)
    given = check(path, parameters)
    target = Path(output) if output else Path("out") / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), _outputs_shown(quiet):
        # papermill's own imports and nbclient's event loop warn about their future, not about ours.
        warnings.simplefilter("ignore")
        import papermill
        from papermill.exceptions import PapermillExecutionError

        try:
            done = papermill.execute_notebook(
                str(path),
                str(target),
                parameters=given,
                kernel_name="python3",
                progress_bar=False,
                log_output=not quiet,
                # What a cell says of its errors comes as its output. The kernel's own log has nothing else to tell but that
                # nobody else talks to it, and, when this process is interrupted, that nobody listens any more.
                extra_arguments=["--IPKernelApp.log_level=50"],
            )
        except PapermillExecutionError as error:
            failed = NotebookError(
                f"{path.name}, cell {error.exec_count}: {_reason(error)}\nThe notebook as far as it came: {target}"
            )
            failed.exit_code = getattr(errors, error.ename, KitError).exit_code
            raise failed from None
    return Executed(path, target, float(done.metadata.papermill["duration"]))


@contextmanager
def _outputs_shown(quiet: bool) -> Iterator[None]:
    """Send what cells show to standard output while they run, without papermill's own lines about cells."""
    logger = logging.getLogger("papermill")
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(lambda record: not record.getMessage().startswith(_OWN_LINES))
    before = logger.level, logger.propagate
    if not quiet:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


_OWN_LINES = ("Executing ", "Ending ", "Input Notebook", "Output Notebook", "Working directory", "Starting kernel")


def _reason(error: Any) -> str:
    text = str(error.evalue).strip()
    return text if error.ename.endswith("Error") and "\n" in text else f"{error.ename}: {text}"
