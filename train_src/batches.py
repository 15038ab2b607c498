"""Rows -> the tensors of one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data import Row


@dataclass(frozen=True)
class Batch:
    """One forward pass.

    Causal: `input_ids` and `position_ids` are (1, tokens), rows end to end, positions starting at 0 in each; `lengths`
    are the rows' lengths. Seq2seq: `input_ids` and `attention_mask` are (rows, longest source), `decoder_input_ids` is
    (rows, longest target). `positions` index the flattened output where something is predicted, `labels` is what, and
    `owners` is which row (0 to rows - 1) it belongs to. `tokens` counts real tokens, padding not.
    """

    input_ids: Tensor
    positions: Tensor
    labels: Tensor
    owners: Tensor
    rows: int
    tokens: int
    position_ids: Tensor | None = None
    lengths: tuple[int, ...] = ()
    attention_mask: Tensor | None = None
    decoder_input_ids: Tensor | None = None

    def model_inputs(self, device: torch.device) -> dict[str, Tensor | list[int]]:
        """Keyword arguments for the model."""
        inputs: dict[str, Tensor | list[int]] = {"input_ids": self.input_ids.to(device)}
        for name in ("position_ids", "attention_mask", "decoder_input_ids"):
            value = getattr(self, name)
            if value is not None:
                inputs[name] = value.to(device)
        return inputs


def causal_batch(rows: Sequence[Row]) -> Batch:
    """Rows end to end. The token at p is predicted from p - 1, so a row's first token is never a label."""
    ids = np.concatenate([row.ids for row in rows])
    trained = np.concatenate([np.concatenate([[False], row.trained[1:]]) for row in rows])
    lengths = [len(row.ids) for row in rows]
    labelled = np.flatnonzero(trained)
    return Batch(
        input_ids=torch.from_numpy(ids.astype(np.int64))[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        positions=torch.from_numpy(labelled - 1),
        labels=torch.from_numpy(ids[labelled].astype(np.int64)),
        owners=torch.from_numpy(np.repeat(np.arange(len(rows)), lengths)[labelled]),
        rows=len(rows),
        tokens=len(ids),
        lengths=tuple(lengths),
    )


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
