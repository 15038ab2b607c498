"""Names of jobs: they follow from the inputs, so that the same inputs find the same job instead of paying again."""

from __future__ import annotations

from collections.abc import Callable

from llmtuner_kit import access, paths
from llmtuner_kit.errors import ConflictError

_ATTEMPTS = 99


def of_inputs(base: str, digest: str, user_id: str, status: Callable[[str], str]) -> str:
    """The name of the inputs' job. One that failed or was stopped keeps its name and makes room for a next try.

    Args:
        base: what the name begins with; shortened when the whole is too long.
        digest: of the inputs.
        status: of the job that has a name; empty when none has.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        name = of_try(base, digest, user_id, attempt)
        if status(name) not in ("Failed", "Stopped"):
            return name
    raise ConflictError(
        f"{_ATTEMPTS} jobs of the same inputs have failed or were stopped (last: {name}).", fix="look at their reasons"
    )


def of_try(base: str, digest: str, user_id: str, attempt: int = 1) -> str:
    """The name of the first job of the inputs, or of a later try."""
    mark = access.user_mark(user_id)  # ends the name: a policy on log streams holds on to it
    tail = f"{digest}-{mark}" if attempt == 1 else f"{digest}-{attempt}-{mark}"
    return paths.check_name(paths.fit_name(paths.slug(base), tail), "job_name")
