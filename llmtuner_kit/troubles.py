"""Known failures: from a reason and log lines to the cause and the next step. No guess when nothing matches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Trouble:
    """A recognised failure: its kind, the line that shows it, what to do."""

    kind: str
    evidence: str
    fix: str


_KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        "out-of-memory",
        r"CUDA out of memory|OutOfMemoryError|exit code: 137|Killed process|Cannot allocate memory",
        "choose a larger instance_type, method qlora, or a smaller max_length",
    ),
    (
        "not-a-number",
        r"\b(loss|gradient)[^.\n]{0,40}\b(nan|inf|not finite|not a number)\b|exploding",
        "lower learning_rate (try a third) and look at the rows named in the log",
    ),
    (
        "gated-model",
        r"gated repo|GatedRepoError|401 Client Error|403 Client Error|awaiting a review|access to (the )?(gated )?model",
        "accept the licence on the model's Hub page and give the job a token through HF_TOKEN_SECRET_ARN",
    ),
    (
        "no-hub",
        r"couldn't connect to|Connection(Error| refused)[^\n]*huggingface|LocalEntryNotFoundError|offline mode",
        "the container cannot reach the Hub: use a base model that ships offline, or open its network",
    ),
    (
        "capacity",
        r"CapacityError|[Ii]nsufficient [Cc]apacity|Unable to provision",
        "there is no free instance of this type now: try again later, another instance_type or another region",
    ),
    (
        "quota",
        r"ResourceLimitExceeded|service limit",
        "ask for the quota it names in Service Quotas, or choose another instance_type",
    ),
    (
        "no-trained-token",
        r"no trained token|nothing to train|all labels are|zero trained",
        "prepare the data again with a larger max_length; every row needs an answer that is left after cutting",
    ),
    (
        "bad-row",
        r"row \d+[^\n]*(not JSON|has no|misses|is not)",
        "repair the row it names in the dataset (02_prepare shows it) and start again",
    ),
    (
        "hyperparameter",
        r"wrong hyperparameters|is not a hyperparameter",
        "change the setting it names; code and kit must be of one version",
    ),
    (
        "parity",
        r"[Pp]arity",
        "the archive answers otherwise than the trained model: keep the job's log and report it; do not deploy it",
    ),
    (
        "ping",
        r"did not pass the ping health check",
        "read the endpoint's log lines above: the server ended or did not load the model in time",
    ),
    (
        "adapter-only",
        r"no local weights|does not appear to have a file named (pytorch_model|model\.safetensors)|adapter_config\.json only",
        "the archive holds an adapter without its base: deploy the archive of a finished job of this kit",
    ),
    (
        "access",
        r"AccessDenied|not authorized to perform|Could not assume role",
        "give the execution role what it names; `llmtuner access role --create` brings it up to date",
    ),
    (
        "disk-here",
        r"The disk of [^\n]* on this machine is full",
        "make room there",
    ),
    (
        "disk",
        r"No space left on device",
        "choose an instance_type of a larger size: its disk comes with it",
    ),
    (
        "platform",
        r"InternalServerError|We encountered an internal error",
        "the platform broke, not your settings: run 03_train again, it goes on from the last checkpoint",
    ),
)  # fmt: skip


def recognise(reason: str, log: Sequence[str] = ()) -> Trouble | None:
    """The first known failure in the reason, else in the last lines of the log, newest first; None when none is."""
    for text in (reason, *reversed(log[-60:])):
        for kind, pattern, fix in _KNOWN:
            if re.search(pattern, text):
                return Trouble(kind, text.strip()[:300], fix)
    return None
