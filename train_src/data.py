"""Channels of JSON lines -> encoded rows. Data that cannot teach anything stops the job here, before a model is loaded."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conversations import RowError
from encoding import EncodedRow, Encoder
from failures import TrainingError

SHOWN_ROWS = 3


@dataclass(frozen=True)
class Row:
    """One encoded row. `ids` are the sequence (causal) or the decoder's target (seq2seq)."""

    ids: np.ndarray
    trained: np.ndarray
    source_ids: np.ndarray | None
    place: str

    def __len__(self) -> int:
        return len(self.ids) + (0 if self.source_ids is None else len(self.source_ids))

    @property
    def labels(self) -> int:
        """How many tokens of the row the loss is computed on. A sequence's first token has nothing before it."""
        return int(self.trained.sum() if self.source_ids is not None else self.trained[1:].sum())


@dataclass(frozen=True)
class Channel:
    """The rows of one input channel, with what had to be done to fit them into the model."""

    rows: list[Row]
    cut: int = 0
    dropped: int = 0
    stop_ids: frozenset[int] = frozenset()  # control tokens that end an answer

    @property
    def tokens(self) -> int:
        """Tokens of all rows, prompts and answers."""
        return sum(map(len, self.rows))

    @property
    def labels(self) -> int:
        """Tokens that the loss is computed on."""
        return sum(row.labels for row in self.rows)


def fingerprint(rows: Sequence[Row]) -> str:
    """Hex digest of what the model sees of the rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        source = np.empty(0, np.int32) if row.source_ids is None else row.source_ids
        for part in (np.array([len(row.ids), len(source)], np.int64), row.ids, row.trained, source):
            digest.update(part.tobytes())
    return digest.hexdigest()


def read_rows(folder: Path) -> tuple[list[Any], list[str]]:
    """The rows of every .jsonl file under the folder, and the file and line each stands at."""
    rows: list[Any] = []
    places: list[str] = []
    for path in sorted(folder.rglob("*.jsonl")):
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    rows.append(json.loads(line.decode()))
                except (ValueError, RecursionError) as error:
                    kind = "UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
                    rows.append(RowError(f"not {kind}: {error}"))
                places.append(f"{path.name} line {number}")
    return rows, places


def load_channel(folder: Path, encoder: Encoder, *, max_length: int, long_rows: str) -> Channel:
    """Read and encode one channel. Raises TrainingError when its rows cannot be trained on, naming the first ones."""
    rows, places = read_rows(folder)
    if not rows:
        raise TrainingError(f"channel {folder.name} has no row: it needs .jsonl files with one JSON object a line")
    encoded = list(encoder.encode(rows))
    bad = [(place, result) for place, result in zip(places, encoded, strict=True) if isinstance(result, RowError)]
    if bad:
        _stop(f"{len(bad)} of {len(rows)} rows of channel {folder.name} are not usable", bad)
    good = [result for result in encoded if isinstance(result, EncodedRow)]
    untrained = [(place, "no token") for place, row in zip(places, good, strict=True) if not any(row.trained)]
    if untrained:
        _stop(f"{len(untrained)} of {len(rows)} rows of channel {folder.name} have no token to train on", untrained)
    kept, cut, dropped = _fit(good, places, max_length, long_rows, folder.name)
    endings = {row.ids[max(i for i, trained in enumerate(row.trained) if trained)] for row in good}
    return Channel(kept, cut, dropped, frozenset(endings & encoder.special_ids))


def _fit(
    rows: list[EncodedRow], places: list[str], max_length: int, long_rows: str, name: str
) -> tuple[list[Row], int, int]:
    """Apply `long_rows` to the rows that are longer than `max_length`."""
    kept: list[Row] = []
    cut_answers = cut = dropped = 0
    for row, place in zip(rows, places, strict=True):
        short = row.cut(max_length)
        if short is not row:
            if long_rows == "stop":
                raise TrainingError(
                    f"{place} of channel {name} has {len(row)} tokens, max_length is {max_length}: raise max_length, "
                    "or set long_rows to cut or drop"
                )
            cut_answers += sum(short.trained) < sum(row.trained)
        source = None if short.source_ids is None else np.asarray(short.source_ids, np.int32)
        fitted = Row(np.asarray(short.ids, np.int32), np.asarray(short.trained, bool), source, place)
        if short is not row and (long_rows == "drop" or not fitted.labels):
            dropped += 1
            continue
        cut += short is not row
        kept.append(fitted)
    if cut_answers * 2 > len(rows) or not kept:
        longest = max(map(len, rows))
        raise TrainingError(
            f"max_length {max_length} cuts the answer of {cut_answers} of {len(rows)} rows of channel {name}: "
            f"raise max_length (the longest row has {longest} tokens) or shorten the rows"
        )
    return kept, cut, dropped


def _stop(what: str, examples: Sequence[tuple[str, object]]) -> None:
    shown = "; ".join(f"{place}: {reason}" for place, reason in examples[:SHOWN_ROWS])
    more = f"; and {len(examples) - SHOWN_ROWS} more" if len(examples) > SHOWN_ROWS else ""
    raise TrainingError(f"{what}. {shown}{more}")
