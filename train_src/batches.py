"""Rows -> the tensors of one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data import Row

LEAST_SHARED = 8  # tokens; a shorter prefix costs more in bookkeeping than it saves
LEAST_SPARED = 0.1  # of a pass on a GPU, where the attention's copies cost about half of that


@dataclass(frozen=True)
class Batch:
    """One forward pass.

    Causal: `input_ids` and `position_ids` are (1, tokens): `shared` tokens that all rows begin with, then the rest of
    each row, end to end; `lengths` are the lengths of these rests. Seq2seq: `input_ids` and `attention_mask` are (rows,
    longest source), `decoder_input_ids` is (rows, longest target); packed, sources and targets are end to end as well,
    (1, tokens) each, `source_lengths` and `lengths` long. `positions` index the flattened output where something is
    predicted, `labels` is what, and `owners` is which row (0 to rows - 1) it belongs to. `tokens` counts real tokens,
    padding not.
    """

    input_ids: Tensor
    positions: Tensor
    labels: Tensor
    owners: Tensor
    rows: int
    tokens: int
    position_ids: Tensor | None = None
    lengths: tuple[int, ...] = ()
    source_lengths: tuple[int, ...] = ()
    shared: int = 0
    attention_mask: Tensor | None = None
    decoder_input_ids: Tensor | None = None

    def model_inputs(self, device: torch.device) -> dict[str, Tensor | list[int]]:
        """Keyword arguments for the model. The copies to a GPU do not wait for what it is doing."""
        inputs: dict[str, Tensor | list[int]] = {"input_ids": self.input_ids.to(device, non_blocking=True)}
        for name in ("position_ids", "attention_mask", "decoder_input_ids"):
            value = getattr(self, name)
            if value is not None:
                inputs[name] = value.to(device, non_blocking=True)
        return inputs


def causal_batch(rows: Sequence[Row], *, share: bool = False, least_spared: float = 0.0) -> Batch:
    """Rows end to end. The token at p is predicted from p - 1, so a row's first token is never a label.

    Nothing is computed that no loss depends on: a row ends before its last label. With `share`, what all rows begin
    with is computed once for all of them, where that spares more than `least_spared` of the tokens; causal attention
    makes that the same numbers.
    """
    labelled = [np.flatnonzero(row.trained[1:]) for row in rows]  # where the label is predicted
    ends = _ends(labelled)
    shared = _common_prefix([row.ids[:end] for row, end in zip(rows, ends, strict=True)]) if share else 0
    if shared * (len(rows) - 1) <= least_spared * sum(ends):
        shared = 0
    lengths = [end - shared for end in ends]
    starts = shared + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    positions = [
        np.where(places < shared, places, places - shared + start)
        for places, start in zip(labelled, starts, strict=True)
    ]
    ids = [rows[0].ids[:shared], *(row.ids[shared:end] for row, end in zip(rows, ends, strict=True))]
    places_in_row = [np.arange(shared), *(np.arange(shared, end) for end in ends)]
    labels = np.concatenate([row.ids[places + 1] for row, places in zip(rows, labelled, strict=True)])
    return Batch(
        input_ids=_sequence(ids),
        position_ids=torch.from_numpy(np.concatenate(places_in_row))[None],
        positions=torch.from_numpy(np.concatenate(positions)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        owners=_owners(labelled),
        rows=len(rows),
        tokens=sum(map(len, rows)),
        lengths=tuple(lengths),
        shared=shared,
    )


def _common_prefix(rows: Sequence[np.ndarray]) -> int:
    """How many tokens all rows begin with; each keeps one of its own. 0 where sharing them gains nothing."""
    if len(rows) < 2:
        return 0
    length = min(map(len, rows)) - 1
    first = rows[0][:length]
    same = np.logical_and.reduce([row[:length] == first for row in rows[1:]])
    common = length if same.all() else int(same.argmin())
    return common if common >= LEAST_SHARED else 0


def seq2seq_batch(rows: Sequence[Row], *, pad_id: int, start_id: int) -> Batch:
    """Sources and targets side by side, padded on the right to the longest of this pass."""
    sources = [row.source_ids for row in rows if row.source_ids is not None]
    input_ids = np.full((len(rows), max(map(len, sources))), pad_id, np.int64)
    mask = np.zeros(input_ids.shape, np.int64)
    targets = np.full((len(rows), max(len(row.ids) for row in rows)), pad_id, np.int64)
    trained = np.zeros(targets.shape, bool)
    for index, (row, source) in enumerate(zip(rows, sources, strict=True)):
        input_ids[index, : len(source)] = source
        mask[index, : len(source)] = 1
        targets[index, : len(row.ids)] = row.ids
        trained[index, : len(row.ids)] = row.trained
    decoder_input_ids = np.concatenate([np.full((len(rows), 1), start_id, np.int64), targets[:, :-1]], axis=1)
    labelled = np.flatnonzero(trained)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(mask),
        decoder_input_ids=torch.from_numpy(decoder_input_ids),
        positions=torch.from_numpy(labelled),
        labels=torch.from_numpy(targets.reshape(-1)[labelled]),
        owners=torch.from_numpy(labelled // targets.shape[1]),
        rows=len(rows),
        tokens=sum(map(len, rows)),
    )


def packed_seq2seq_batch(rows: Sequence[Row], *, start_id: int) -> Batch:
    """Sources end to end and targets end to end; a target ends at its last label, after which no loss depends on it."""
    sources = [row.source_ids for row in rows if row.source_ids is not None]
    labelled = [np.flatnonzero(row.trained) for row in rows]
    lengths = _ends(labelled)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    targets = [part for row, length in zip(rows, lengths, strict=True) for part in ([start_id], row.ids[: length - 1])]
    labels = [row.ids[places] for row, places in zip(rows, labelled, strict=True)]
    positions = [places + start for places, start in zip(labelled, starts, strict=True)]
    return Batch(
        input_ids=_sequence(sources),
        decoder_input_ids=_sequence(targets),
        positions=torch.from_numpy(np.concatenate(positions)),
        labels=torch.from_numpy(np.concatenate(labels).astype(np.int64)),
        owners=_owners(labelled),
        rows=len(rows),
        tokens=sum(map(len, rows)),
        lengths=tuple(lengths),
        source_lengths=tuple(map(len, sources)),
    )


def _ends(labelled: Sequence[np.ndarray]) -> list[int]:
    """How far each row is computed: up to its last label."""
    return [int(places[-1]) + 1 if len(places) else 1 for places in labelled]


def _owners(labelled: Sequence[np.ndarray]) -> Tensor:
    """The number of the row, for each label."""
    return torch.from_numpy(np.repeat(np.arange(len(labelled)), [len(places) for places in labelled]))


def _sequence(parts: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
    """(1, tokens) of the parts end to end."""
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))[None]
