"""Watching what runs on AWS: an outage of minutes is waited out, and what it does not end is said."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from llmtuner_kit.aws import THROTTLED, is_error
from llmtuner_kit.errors import AccessError, KitError, NotReadyError
from llmtuner_kit.workspace import Workspace

_PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0, 60.0, 60.0, 60.0)
"""Seconds before asking again. Each asking takes its own time too: the clients repeat a request before they give up."""

Seen = TypeVar("Seen")


def wait_out(
    look: Callable[[], Seen], workspace: Workspace, what: str, *, sleep: Callable[[float], None] = time.sleep
) -> Seen:
    """What `look` returns; asked again for some minutes while AWS cannot be reached or asks to slow down.

    A local cloud that does not answer has been stopped, and is not waited for. When AWS does not answer for longer, or
    does not take the credentials any more, the error says that `what` runs on.
    """
    pauses = iter(_PAUSES)
    said = False
    while True:
        try:
            return look()
        except KitError as error:
            passing = isinstance(error, NotReadyError) and (workspace.aws.charged or is_error(error, *THROTTLED))
            pause = next(pauses, None) if passing else None
            if pause is None:
                if workspace.aws.charged and error.__cause__ and isinstance(error, NotReadyError | AccessError):
                    raise _running_on(error, what) from error.__cause__
                raise
            if not said:
                sys.stderr.write(f"{error.problem}\nIt is asked again for some minutes; {what} runs on meanwhile.\n")
                said = True
        sleep(pause)


def _running_on(error: KitError, what: str) -> KitError:
    told = f"{what} runs on and costs money; run the cell again to go on watching"
    return type(error)(error.problem, valid=error.valid, fix="; ".join(filter(None, (error.fix, told))))
