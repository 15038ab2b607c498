"""The preparation inside a processing job: files of the channel `source` -> a dataset version as the job's output.

    python3 -m llmtuner_kit.dataset.job /opt/ml/processing

job.json in the channel `code` says what to do; processing.py writes it. What the user can put right is left as the
job's exit message.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

from llmtuner_kit.dataset import card as cards
from llmtuner_kit.dataset.chunks import Source
from llmtuner_kit.dataset.processing import PROGRESS
from llmtuner_kit.dataset.tokens import Encoding
from llmtuner_kit.errors import KitError
from llmtuner_kit.settings import PrepareSettings

_EVERY_SECONDS = 2.0


def run(root: Path) -> None:
    """Prepare what lies under `root` as processing.py has asked; raises KitError."""
    code = root / "input" / "code"
    job = json.loads((code / "job.json").read_text())
    settings = PrepareSettings(**job["settings"])
    encoding = Encoding(code / "tokenizer", **job["encoding"])
    sources = [_source(name, root / "input" / "source" / place) for name, place, _ in job["files"]]
    folder, work = root / "output" / "dataset", root / "work"
    folder.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    left_out = [(name, why) for name, why in job["left_out"]]
    cards.write(sources, left_out, settings, encoding, job["dataset"], folder, work, _Printed())


def _source(name: str, path: Path) -> Source:
    with path.open("rb") as file:
        return Source(name, path, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


class _Printed:
    """Progress as log lines, not more often than somebody could read them."""

    def __init__(self) -> None:
        self._what, self._at = "", 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what or done >= total or now - self._at >= _EVERY_SECONDS:
            self._what, self._at = what, now
            sys.stdout.write(f"{PROGRESS} {done} {total} {what}\n")
            sys.stdout.flush()


def main() -> int:
    """Run the job; the exit code says whether the version was written."""
    root = Path(sys.argv[1])
    try:
        run(root)
    except KitError as error:
        message = root.parent / "output" / "message"
        message.parent.mkdir(parents=True, exist_ok=True)
        message.write_text(str(error))
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
