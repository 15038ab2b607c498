"""The parts of README.md that follow from the operation table: `python -m llmtuner_local.documentation` writes them.

A part stands between `<!-- NAME: generated -->` and `<!-- end -->`. A function's docstring becomes its operation's note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from llmtuner_local.emulator import faults, wire
from llmtuner_local.emulator.operations import AUTOSCALING, SAGEMAKER, Operation

FILE = Path(__file__).parent / "README.md"
_VERB = re.compile(r"^(Add|Associate|Attach|Batch\w+?|Create|Delete|Deregister|Describe|Detach|Disable|Disassociate|Enable|"
                   r"Get|Import|List|Put|Query|Register|Render|Retry|Search|Send\w+?|Start|Stop|Update|Extend)(?=[A-Z])")  # fmt: skip


def render(text: str) -> str:
    """The text with its generated parts made anew."""
    for name, content in _parts().items():
        start, end = f"<!-- {name}: generated -->\n", "<!-- end -->"
        before, found, rest = text.partition(start)
        if not found or end not in rest:
            raise ValueError(f"README.md has no part named {name}.")
        text = before + start + content + end + rest.partition(end)[2]
    return text


def _parts() -> dict[str, str]:
    return {
        "sagemaker": _table(SAGEMAKER),
        "application-autoscaling": _table(AUTOSCALING),
        "faults": "".join(f"- `{name}`{_number(kind)}: {kind.help}\n" for name, kind in faults.KINDS.items()),
        "absent": _absent(),
    }


def _table(operations: Mapping[str, Operation]) -> str:
    return "".join(f"- `{name}`{_note(name, operations[name])}\n" for name in sorted(operations))


def _note(name: str, operation: Operation) -> str:
    """The first sentence of the function's docstring, without the operation's own name."""
    first = " ".join((operation.__doc__ or "").split("\n\n")[0].split()).removeprefix(f"{name}: ").rstrip(".")
    return f": {first[:1].lower()}{first[1:]}" if first else ""


def _number(kind: faults.Kind) -> str:
    return f" `--{kind.number} {kind.default:g}`" if kind.number else ""


def _absent() -> str:
    """What AWS's operations that are not here are about."""
    names = set(wire.service_model("sagemaker").operation_names) - set(SAGEMAKER)
    emulated = {_noun(name) for name in SAGEMAKER}
    nouns = sorted({_noun(name) for name in names} - emulated)
    return f"{len(names)} operations of `sagemaker`, on {', '.join(nouns)}.\n"


def _noun(operation: str) -> str:
    """What an operation is about: CreateTrainingJob and ListTrainingJobs are about TrainingJob."""
    noun = _VERB.sub("", operation)
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    if noun.endswith("ses"):
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith(("ss", "Status", "Metrics", "Tags")) else noun


if __name__ == "__main__":
    FILE.write_text(render(FILE.read_text()))
