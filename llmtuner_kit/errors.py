"""Every error a user of the kit is meant to see.

    KitError
    ├── SettingsError         what was typed into a form or passed with -p does not hold
    ├── DataError             a file or a row cannot be used
    ├── NotFoundError         a run, job, model or endpoint of that name does not exist
    ├── ConflictError         a name is taken, or a record changed under us
    ├── AccessError           the identity in use may not do this
    ├── QuotaError            the account's limit for this instance type is reached
    ├── BudgetError           the quote is above what was allowed
    ├── NotReadyError         the thing exists and cannot be used yet
    ├── JobFailedError        a training job, processing job or deployment ended as failed
    ├── DiskError             a disk of this machine is full, or a folder may not be written
    ├── IntegrityError        bytes are not what the record says they are
    └── LocalCloudError       the local cloud could not be started or reached

A message says what is wrong with the value, what would be valid and what to do next. Anything that is not
a KitError is a bug of the kit and keeps its traceback.
"""

from __future__ import annotations

import errno
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

WIDTH = 100  # characters of a line of an error in a notebook: what a browser of 1280 pixels shows beside its files
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


class KitError(Exception):
    """Something the user can put right.

    Args:
        problem: what is wrong, with the value.
        valid: what would have been accepted, when that can be said.
        fix: the next step, for the form and for a headless run.

    Attributes:
        exit_code: what the command line ends with; those there are stand in `llmtuner --help`.
    """

    exit_code = 1

    def __init__(self, problem: str, *, valid: str = "", fix: str = "") -> None:
        self.problem, self.valid, self.fix = problem, valid, fix
        super().__init__(self.text())

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (workers of the data preparation); keyword arguments would be lost.
        return _rebuild, (type(self), self.problem, self.valid, self.fix)

    def text(self) -> str:
        """The whole message, one line a part."""
        parts = [self.problem]
        if self.valid:
            parts.append(f"Valid: {self.valid}")
        if self.fix:
            parts.append(f"Next: {self.fix}")
        return "\n".join(parts)

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this: one readable block in place of a traceback, in Jupyter and in papermill's output.
        lines = f"{type(self).__name__}: {self.text()}".replace("\n", "\n  ").split("\n")
        return [part for line in lines for part in _wrapped(line)]


def _wrapped(line: str) -> list[str]:
    """A line as several that a page shows whole: Jupyter breaks long ones in the middle of words."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(
        line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    ) or [""]


def _rebuild(kind: type[KitError], problem: str, valid: str, fix: str) -> KitError:
    return kind(problem, valid=valid, fix=fix)


class SettingsError(KitError, ValueError):
    """One or more settings do not hold; all of them are listed at once.

    It is a ValueError too, so that pydantic collects it with the other problems of a form.
    """

    exit_code = 2

    @classmethod
    def of(cls, problems: Sequence[str], *, fix: str = "") -> SettingsError:
        """Build one error from a list of lines `field: what is wrong`."""
        head = "1 setting needs a change" if len(problems) == 1 else f"{len(problems)} settings need a change"
        return cls("\n".join([head + ":", *(f"- {line}" for line in problems)]), fix=fix)


class DataError(KitError):
    """A file or a row cannot be used."""


class NotFoundError(KitError):
    """Nothing of that name exists."""


class ConflictError(KitError):
    """The name is taken, or somebody changed the record in the meantime."""


class AccessError(KitError):
    """The identity in use may not do this."""


class QuotaError(KitError):
    """The account's limit is reached."""

    exit_code = 3


class BudgetError(KitError):
    """The quote is above what was allowed."""

    exit_code = 3


class NotReadyError(KitError):
    """The thing exists and cannot be used yet."""


class JobFailedError(KitError):
    """A job or a deployment ended as failed."""


class DiskError(KitError):
    """A disk of this machine is full, or a folder may not be written."""


@contextmanager
def disk_errors_in_words(place: Path, fix: str) -> Iterator[None]:
    """Inside, a full or closed disk is a DiskError that names the place where the error does not."""
    try:
        yield
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        raise DiskError(f"{error.filename or place}: {error.strerror}.", fix=fix) from error


class IntegrityError(KitError):
    """Bytes differ from what the record says."""


class LocalCloudError(KitError):
    """The local cloud could not be started or reached."""
