"""T5's rows end to end give what each row gives alone, in transformers' own arithmetic."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from test_train_parts import load, rows_of
from torch import Tensor

import attention
from batches import Batch, packed_seq2seq_batch, seq2seq_batch
from model import TunedModel
from sampler import split_micro

KINDS = {
    "t5": (transformers.T5Config, transformers.T5ForConditionalGeneration),
    "mt5": (transformers.MT5Config, transformers.MT5ForConditionalGeneration),
}
TARGETS, SOURCES = [9, 150, 14], [140, 12, 7]  # past 128 tokens all distances share a bias


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, network = KINDS[request.param]
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp(request.param)
    network(
        config(
            vocab_size=384, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0,
            pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )
    ).save_pretrained(made)  # fmt: skip
    return made


def stirred(folder: Path, **settings: object) -> TunedModel:
    """A model whose adapter does something."""
    model = load(folder, **settings)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def outcome(model: TunedModel, batch: Batch) -> list[Tensor]:
    losses, _ = model.losses(batch)
    return [losses.detach(), *torch.autograd.grad(losses.sum(), model.parameters())]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_losses_and_gradients_are_those_of_a_padded_batch(folder: Path, method: str) -> None:
    rows, model = rows_of(TARGETS, SOURCES), stirred(folder, method=method)
    batch = model.batch(rows)
    assert (batch.input_ids.shape, batch.decoder_input_ids.shape) == ((1, sum(SOURCES)), (1, sum(TARGETS)))
    packed = outcome(model, batch)
    model.network.set_attn_implementation("sdpa")
    padded = outcome(model, seq2seq_batch(rows, pad_id=0, start_id=0))
    for one, other in zip(packed, padded, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


def test_a_pass_has_as_many_rows_as_fit_without_padding(folder: Path) -> None:
    rows, model = rows_of([10, 100, 10, 80], [50, 10, 40, 20]), load(folder)
    assert not model.pads
    assert split_micro(rows, range(4), 320, is_padded=False) == [[0, 1, 2, 3]]
    assert split_micro(rows, range(4), 320, is_padded=True) == [[1, 3], [2, 0]], "3 x (40 + 100) is too much"


def test_recomputed_activations_give_the_same_gradients(folder: Path) -> None:
    rows, model = rows_of(TARGETS, SOURCES), stirred(folder)
    kept = outcome(model, model.batch(rows))
    model.network.activation_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(kept, outcome(model, model.batch(rows)), strict=True):
        torch.testing.assert_close(one, other)


def test_a_row_does_not_see_its_neighbours(folder: Path) -> None:
    rows, model = rows_of(TARGETS, SOURCES), stirred(folder)
    before, _ = model.losses(model.batch(rows))
    rows[0].ids[:] = 7
    rows[2].source_ids[:] = 7
    batch = model.batch(rows)
    after, _ = model.losses(batch)
    changed = torch.stack([(before != after)[batch.owners == number].any() for number in range(3)])
    assert changed.tolist() == [True, False, True]


def test_it_generates_as_the_plain_model_does(folder: Path) -> None:
    model = load(folder)
    plain = KINDS[model.network.config.model_type][1].from_pretrained(folder).eval()
    ids = torch.from_numpy(rows_of([5, 5], [12, 12])[0].source_ids.astype(np.int64))[None]
    with model.generating() as network:
        ours = network.generate(input_ids=ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert ours.tolist() == plain.generate(input_ids=ids, max_new_tokens=8, min_new_tokens=8, do_sample=False).tolist()
    assert model.network.config._attn_implementation == attention.NAME


def test_dropout_acts_on_attention_in_training_only(folder: Path) -> None:
    model = load(folder)
    batch = model.batch(rows_of(TARGETS, SOURCES))
    for module in model.network.modules():
        if hasattr(module, "relative_attention_num_buckets"):
            module.dropout = 0.3
    one, other = (model.losses(batch)[0] for _ in range(2))
    assert not torch.equal(one, other)
    model.network.eval()
    one, other = (model.losses(batch)[0] for _ in range(2))
    assert torch.equal(one, other)


def test_a_target_ends_at_its_last_label() -> None:
    (row,) = rows_of([30], [4])
    row.trained[:10], row.trained[20:] = False, False
    batch = packed_seq2seq_batch([row, row], start_id=3)
    assert batch.decoder_input_ids.tolist() == [[3, *row.ids[:19], 3, *row.ids[:19]]]
    assert batch.positions.tolist() == [*range(10, 20), *range(30, 40)]
    assert batch.labels.tolist() == 2 * row.ids[10:20].tolist()
    assert (batch.lengths, batch.source_lengths, batch.tokens) == ((20, 20), (4, 4), 68)
