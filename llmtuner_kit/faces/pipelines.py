"""Several notebooks in order, from one YAML file: shared parameters, resume at the first unfinished step, sweeps.

    name: support-tickets
    parameters:                 # for every step that has them
      run_name: demo
    steps:
      - start: {model_id: smollm2-135m-instruct}
      - upload: {source: ./support-tickets/tickets.csv}
      - prepare
      - train: {epochs: 2}
    sweep:                      # optional: the pipeline once for each combination, as run_name-1, run_name-2, ...
      learning_rate: [0.0002, 0.001]

A text that begins with `./` or `../` is a path from the folder of the YAML file. Executed notebooks, the state and
report.html are in out/NAME/.
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llmtuner_kit
from llmtuner_kit import paths
from llmtuner_kit import settings as kit_settings
from llmtuner_kit.errors import ConflictError, NotFoundError, SettingsError
from llmtuner_kit.faces import notebooks, yaml_files


@dataclass(frozen=True)
class Step:
    """One notebook with all of its parameters."""

    step: str
    notebook: Path
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Pipeline:
    """A resolved pipeline: one run, its steps in order."""

    name: str
    run_name: str
    steps: tuple[Step, ...]

    @property
    def folder(self) -> Path:
        return Path("out") / self.name


@dataclass(frozen=True)
class StepDone:
    """A step that ended well: how long it took, and what of."""

    step: str
    seconds: float
    output: str
    digest: str


def load(file: Path | str, notebooks_folder: Path | None = None) -> list[Pipeline]:
    """Read and check a pipeline file; several pipelines when it has a sweep. Raises SettingsError with all problems."""
    path = Path(file)
    if not path.is_file():
        raise NotFoundError(
            f"There is no pipeline file {str(path)!r}.",
            fix="give the path of one; notebooks/samples/support-tickets.yaml is a worked example",
        )
    document = _document(path)
    folder = notebooks_folder or _notebooks_near(path)
    name = str(document.get("name") or path.stem)
    shared = _from(path, document.get("parameters") or {})
    run_name = str(shared.get("run_name") or paths.slug(name) or name)
    sweep: dict[str, list[Any]] = document.get("sweep") or {}
    combinations = [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]
    made, problems = [], []
    for number, chosen in enumerate(combinations, 1):
        own = f"{run_name}-{number}" if sweep else run_name
        steps, found = _steps(document["steps"], shared | chosen | {"run_name": own}, sweep, path, folder)
        problems += found
        made.append(Pipeline(f"{name}-{number}" if sweep else name, own, steps))
    if problems:
        raise SettingsError.of(list(dict.fromkeys(problems)), fix=f"change them in {path}")
    return made


_LONGEST_NAME = 100
_PARTS = ("name", "parameters", "steps", "sweep")


def _document(path: Path) -> dict[str, Any]:
    """The file as it is, when it has the form of a pipeline."""
    document = yaml_files.read(path) or {}
    unknown = sorted(map(str, set(document) - set(_PARTS))) if isinstance(document, dict) else []
    if not isinstance(document, dict) or unknown or not document.get("steps"):
        raise SettingsError(
            f"{path.name} is not a pipeline" + (f": it has {', '.join(unknown)}." if unknown else "."),
            valid=", ".join(_PARTS),
            fix="begin with a copy of notebooks/samples/support-tickets.yaml",
        )
    wrong = []
    name = str(document.get("name") or "")
    if name and (name != Path(name).name or len(name.encode()) > _LONGEST_NAME):
        wrong.append(f"name: is {name!r}, and names a folder below `out`: at most {_LONGEST_NAME} characters without /")
    if not isinstance(document["steps"], list):
        wrong.append("steps: one line for each step, in order: `- train`, or `- train: {epochs: 2}`")
    if not isinstance(document.get("parameters") or {}, dict):
        wrong.append("parameters: one line for each: `epochs: 2`")
    sweep = document.get("sweep") or {}
    if not isinstance(sweep, dict) or not all(isinstance(values, list) and values for values in sweep.values()):
        wrong.append("sweep: a list of values for each parameter: `learning_rate: [0.0002, 0.001]`")
    if wrong:
        raise SettingsError.of(wrong, fix=f"change them in {path}; notebooks/samples has worked examples")
    return document


def run(pipeline: Pipeline, *, fresh: bool = False, tell: Callable[[str], None] = print) -> list[StepDone]:
    """Run the steps that are not done yet. Raises NotebookError at the first that fails; a second call goes on there.

    Raises ConflictError while another process runs it in this folder.
    """
    pipeline.folder.mkdir(parents=True, exist_ok=True)
    with _alone(pipeline):
        return _run(pipeline, tell, fresh=fresh)


def _run(pipeline: Pipeline, tell: Callable[[str], None], *, fresh: bool) -> list[StepDone]:
    state = pipeline.folder / "state.json"
    finished = [] if fresh else _kept(pipeline, _read(state))
    for number, step in enumerate(pipeline.steps):
        place = f"[{number + 1}/{len(pipeline.steps)}] {step.notebook.stem}"
        if number < len(finished):
            tell(f"{place} was done before")
            continue
        tell(f"\n{place}")
        digest = _digest(step, finished)
        result = notebooks.run(step.notebook, step.parameters, pipeline.folder / step.notebook.name)
        finished.append(StepDone(step.step, result.seconds, str(result.output), digest))
        _write(state, finished)
    return finished


@contextmanager
def _alone(pipeline: Pipeline) -> Iterator[None]:
    """A timer may call for a pipeline whose last run is not over; both would write the same notebooks."""
    with (pipeline.folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"Pipeline {pipeline.name} is running already, in {pipeline.folder.resolve()}.",
                fix="wait until it has ended, or call it in another folder or with another name and run_name",
            ) from None
        yield


def _kept(pipeline: Pipeline, done: list[StepDone]) -> list[StepDone]:
    """The steps that need not run again: from the first that has changed, later ones run too.

    So does 06_deploy, when 08_cleanup has deleted since what it had made.
    """
    kept: list[StepDone] = []
    for step, before in zip(pipeline.steps, done, strict=False):
        if before.digest != _digest(step, kept):
            break
        kept.append(before)
    names = [item.step for item in kept]
    if (
        len(kept) < len(pipeline.steps)
        and "deploy" in names
        and any(item.step == "cleanup" for item in done[len(kept) :])
    ):
        return kept[: names.index("deploy")]
    return kept


def state_of(pipeline: Pipeline) -> list[StepDone]:
    """The steps of a pipeline that have ended well."""
    return _read(pipeline.folder / "state.json")


def _steps(
    items: list[Any], shared: Mapping[str, Any], swept: Iterable[str], path: Path, folder: Path
) -> tuple[tuple[Step, ...], list[str]]:
    steps, problems, used, overruled = [], [], {"run_name"}, set()
    for item in items:
        (step, own), *others = item.items() if isinstance(item, dict) and item else [(str(item), None)]
        if step not in kit_settings.STEPS:
            meant = difflib.get_close_matches(Path(step).stem.lstrip("0123456789_"), kit_settings.STEPS, 1)
            hint = f"did you mean {meant[0]}?" if meant else f"there are {', '.join(kit_settings.STEPS)}"
            problems.append(f"{step}: no such step; {hint}")
            continue
        if others or not isinstance(own or {}, dict):
            problems.append(
                f"{step}: its parameters stand in braces, or indented below it: `- {step}: {{name: value}}`"
            )
            continue
        fields = kit_settings.STEPS[step].model_fields
        given = {name: value for name, value in shared.items() if name in fields} | _from(path, own or {})
        used |= set(given)
        overruled |= {(step, name) for name in swept if name in (own or {})}
        number = list(kit_settings.STEPS).index(step)
        notebook = folder / f"{number:02d}_{step}.ipynb"
        try:
            steps.append(Step(step, notebook, notebooks.check(notebook, given)))
        except SettingsError as error:
            lines = error.problem.split("\n")[1:] or [f"{error.problem} {error.fix}"]
            problems += [f"{step}: {line.lstrip('- ').rstrip()}" for line in lines]
    for name in (name for name in shared if name not in used):
        known = [field for step in steps for field in kit_settings.STEPS[step.step].model_fields]
        meant = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {meant[0]}?" if meant else ""
        problems.append(f"{'sweep' if name in swept else 'parameters'}: no step has {name!r}{hint}")
    problems += [
        f"sweep: {name} has no effect, as step {step} sets it itself; take it out there"
        for step, name in sorted(overruled)
    ]
    return tuple(steps), problems


def _notebooks_near(path: Path) -> Path:
    """The folder with the nine notebooks: that of the file or one above it, else `notebooks` here or of the project."""
    project = Path(llmtuner_kit.__file__).parents[1]
    for folder in (*path.resolve().parents, Path("notebooks").resolve(), project):
        for candidate in (folder, folder / "notebooks"):
            if (candidate / "00_start.ipynb").is_file():
                return candidate
    raise NotFoundError(f"No notebooks are found from {path} upwards.", fix="keep the file in the project's folder")


def _from(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str((path.resolve().parent / value).resolve())
        if isinstance(value, str) and value.startswith(("./", "../"))
        else value
        for name, value in values.items()
    }


def _digest(step: Step, before: list[StepDone]) -> str:
    """Changes when the step's parameters or notebook change, or any step before it."""
    source = step.notebook.read_bytes()
    parts = [step.step, step.parameters, hashlib.sha256(source).hexdigest(), [item.digest for item in before]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read(state: Path) -> list[StepDone]:
    """The steps that are done; of a file that is damaged none: done again, they find what they have made."""
    try:
        return [StepDone(**item) for item in json.loads(state.read_text())]
    except (FileNotFoundError, ValueError, TypeError):
        return []


def _write(state: Path, steps: list[StepDone]) -> None:
    temporary = state.with_suffix(".part")
    temporary.write_text(json.dumps([asdict(item) for item in steps], indent=1))
    temporary.rename(state)
