"""What the rows of a split begin with alike: a trainer that packs rows computes that once in each pass."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from llmtuner_kit.dataset.tokens import Encoding

_ROWS = 32


def shared_tokens(split: Path, encoding: Encoding) -> int:
    """Tokens that rows from all over a split begin with, template included; 0 for one row and for encoder-decoders."""
    if encoding.family != "causal":
        return 0
    lines = dict.fromkeys(_spread(split))
    rows = encoding.masks({number: json.loads(line) for number, line in enumerate(lines)})
    if len(rows) < 2:
        return 0
    columns = zip(*(row.ids for row in rows), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _spread(split: Path) -> list[bytes]:
    """Lines at even distances, as they lie in the file; the same line again where it is long."""
    size, found = split.stat().st_size, []
    with split.open("rb") as file:
        for number in range(_ROWS):
            file.seek(max(0, size * number // _ROWS - 1))
            if number:
                file.readline()
            if line := file.readline():
                found.append(line)
    return found
