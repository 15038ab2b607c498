"""The fast arithmetic gives what the plain one gives, and batches hold what they should."""

import dataclasses
import importlib.util
import itertools
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
import transformers
from tiny_jobs import ROWS
from torch.nn import functional
from transformers.activations import NewGELUActivation

import attention
import cpu_attention
import launch
import lora_mlp
import replacements
import requirements
from base import Base
from batches import causal_batch
from data import Row, load_channel
from encoding import Encoder
from failures import TrainingError, write_failure
from folders import Folders
from hyperparameters import Hyperparameters
from loading import load_model
from metrics import line
from model import TunedModel
from sampler import iterate_steps, plan_epoch, share_of, split_micro
from schedule import count_steps


def rows_of(lengths: list[int], sources: list[int] | None = None) -> list[Row]:
    generator = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray:
        return generator.integers(5, 300, length).astype(np.int32)

    rows = []
    for number, length in enumerate(lengths):
        trained = np.arange(length) >= (0 if sources else length // 2)
        rows.append(Row(ids(length), trained, ids(sources[number]) if sources else None, f"row {number}"))
    return rows


def load(folder: Path, **settings: object) -> TunedModel:
    import json

    config = json.loads((folder / "config.json").read_text())
    return load_model(Base(folder, "tiny", "1", config), Hyperparameters(precision="fp32", **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("lengths", [[7], [5, 30, 1, 12], [400, 20]])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_packed_attention_equals_attention_over_each_document_alone(lengths: list[int], key_heads: int) -> None:
    torch.manual_seed(0)
    total = sum(lengths)
    shapes = [(1, 4, total, 8), (1, key_heads, total, 8), (1, key_heads, total, 8)]
    packed = [torch.randn(shape, requires_grad=True) for shape in shapes]
    alone = [tensor.detach().clone().requires_grad_() for tensor in packed]
    attention.set_documents(lengths)
    ours, _ = attention.packed_attention(torch.nn.Identity(), *packed, None)
    parts = zip(*(tensor.split(lengths, 2) for tensor in alone), strict=True)
    theirs = torch.cat(
        [functional.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True) for part in parts], 2
    ).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    for one, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    attention.set_documents(())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [9, 150])
@pytest.mark.parametrize("lengths", [[5, 130, 1], [40, 40]])
@pytest.mark.parametrize("device", ["cpu, weights kept", "cpu, weights computed again", "gpu"])
def test_a_shared_prefix_gives_what_each_document_gives_with_a_prefix_of_its_own(
    monkeypatch: pytest.MonkeyPatch, shared: int, dtype: torch.dtype, lengths: list[int], device: str
) -> None:
    monkeypatch.setattr(cpu_attention, "BLOCK", 64)
    monkeypatch.setattr(cpu_attention, "MOST_KEPT", 1000 if device == "cpu, weights kept" else 0)
    torch.manual_seed(0)
    total = shared + sum(lengths)
    shapes = [(1, 4, total, 8), (1, 2, total, 8), (1, 2, total, 8)]
    packed = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    exact = [tensor.detach().double().requires_grad_() for tensor in packed]
    attention.set_documents(lengths, shared)
    if device != "gpu":
        ours, _ = attention.packed_attention(torch.nn.Identity(), *packed, None)
    else:  # the same kernels' counterparts on a processor
        ours = attention.on_gpu(*packed, lengths, shared, 8**-0.5)
    attention.set_documents(())
    outputs = []
    for number, documents in enumerate(zip(*(each[:, :, shared:].split(lengths, 2) for each in exact), strict=True)):
        whole = [torch.cat([each[:, :, :shared], own], 2) for each, own in zip(exact, documents, strict=True)]
        output = functional.scaled_dot_product_attention(*whole, is_causal=True, enable_gqa=True)
        outputs.append(output if number == 0 else output[:, :, shared:])
    theirs = torch.cat(outputs, 2).transpose(1, 2)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(ours.double(), theirs, **tolerance)
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (theirs * weights.double()).sum().backward()
    for one, other in zip(packed, exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, **tolerance)


def test_packed_attention_refuses_what_it_does_not_do() -> None:
    tensor = torch.randn(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match="sliding_window"):
        attention.packed_attention(torch.nn.Identity(), tensor, tensor, tensor, None, sliding_window=2)


@pytest.mark.parametrize("key_heads", [2, 4])
def test_documents_go_through_one_varlen_launch_where_the_gpu_has_it(
    monkeypatch: pytest.MonkeyPatch, key_heads: int
) -> None:
    """The kernel is PyTorch's and needs a GPU; a plain one stands in for it and shows what it is handed."""

    def varlen(q, k, v, ends, ends_k, longest, longest_k, *, scale, window_size, enable_gqa):  # type: ignore[no-untyped-def]
        assert torch.equal(ends, ends_k)
        assert (longest, longest_k, window_size, enable_gqa) == (30, 30, (-1, 0), key_heads != 4)
        sizes = ends.diff().tolist()
        parts = zip(*(tensor.transpose(0, 1).split(sizes, 1) for tensor in (q, k, v)), strict=True)
        outputs = [
            functional.scaled_dot_product_attention(*part, is_causal=True, scale=scale, enable_gqa=enable_gqa)
            for part in parts
        ]
        return torch.cat(outputs, 1).transpose(0, 1)

    torch.manual_seed(0)
    tensors = [torch.randn(1, heads, 43, 8) for heads in (4, key_heads, key_heads)]
    attention.set_documents([5, 30, 8])
    expected, _ = attention.packed_attention(torch.nn.Identity(), *tensors, None)
    monkeypatch.setattr(attention, "_has_flash", lambda _: True)
    monkeypatch.setattr(attention, "varlen_attention", lambda: varlen)
    found = attention.on_gpu(*tensors, [5, 30, 8], 0, 8**-0.5)
    torch.testing.assert_close(found, expected)
    attention.set_documents(())


def test_this_pytorch_has_the_varlen_kernel_the_gpu_path_is_written_for() -> None:
    assert attention.varlen_attention() is not None


def test_ligers_kernels_are_used_on_a_gpu_that_has_them_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def patch(rope: bool, cross_entropy: bool, fused_linear_cross_entropy: bool, rms_norm: bool, model: object) -> None:
        asked.append({"rope": rope, "rms_norm": rms_norm, "head": cross_entropy or fused_linear_cross_entropy})

    network = SimpleNamespace(config=SimpleNamespace(model_type="llama"))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(replacements.importlib.util, "find_spec", lambda _: None)
    assert not replacements.apply_liger(network, gpu)
    monkeypatch.setattr(replacements.importlib.util, "find_spec", lambda _: object())
    liger = SimpleNamespace(MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": patch})
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", SimpleNamespace(monkey_patch=liger))
    assert not replacements.apply_liger(network, cpu)
    assert replacements.apply_liger(network, gpu)
    assert asked == [{"rope": True, "rms_norm": True, "head": False}]
    assert not replacements.apply_liger(SimpleNamespace(config=SimpleNamespace(model_type="unheard-of")), gpu)


def test_pytorchs_own_gelu_takes_the_place_of_the_one_in_eight_operations(models: dict[str, Path]) -> None:
    model = load(models["seq2seq"])
    act = model.network.encoder.block[0].layer[1].DenseReluDense.act
    assert type(act) is torch.nn.GELU
    assert not any(isinstance(each, NewGELUActivation) for each in model.network.modules())
    x = torch.linspace(-6, 6, 1001)
    torch.testing.assert_close(act(x), NewGELUActivation()(x), rtol=1e-5, atol=1e-6)


def test_the_fused_feed_forward_block_equals_the_block_step_by_step(models: dict[str, Path]) -> None:
    model = load(models["causal"])
    block = model.network.model.layers[0].mlp
    torch.manual_seed(0)
    parameters = [parameter for name, parameter in block.named_parameters() if "lora" in name]
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 5, 64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    fused, plain = block(x), type(block).forward(block, y)
    assert fused.grad_fn.name() == "_LoraSwiGluBackward"
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(fused)
    ours = torch.autograd.grad((fused * weights).sum(), [x, *parameters])
    theirs = torch.autograd.grad((plain * weights).sum(), [y, *parameters])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    with model.base():
        torch.testing.assert_close(block(x), type(block).forward(block, x))


def test_a_block_of_the_same_names_that_computes_something_else_is_left_alone(models: dict[str, Path]) -> None:
    config = transformers.AutoConfig.from_pretrained(models["causal"], hidden_act="gelu")
    network = transformers.LlamaForCausalLM(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = peft.get_peft_model(network, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert lora_mlp.fuse(module) == 0


@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_a_batchs_losses_equal_transformers_losses_row_by_row(models: dict[str, Path], family: str) -> None:
    lengths, sources = [9, 31, 14], [5, 12, 7]
    rows = rows_of(lengths, sources if family == "seq2seq" else None)
    model = load(models[family])
    model.network.eval()
    batch = model.batch(rows)
    losses, _ = model.losses(batch)
    loader = transformers.AutoModelForSeq2SeqLM if family == "seq2seq" else transformers.AutoModelForCausalLM
    reference = loader.from_pretrained(models[family], dtype=torch.float32).eval()
    for number, row in enumerate(rows):
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        labels = ids.masked_fill(~torch.from_numpy(row.trained)[None], -100)
        inputs = {"input_ids": ids}
        if row.source_ids is not None:
            inputs = {"input_ids": torch.from_numpy(row.source_ids.astype(np.int64))[None]}
        expected = float(reference(**inputs, labels=labels).loss.detach())
        own = losses[batch.owners == number]
        assert len(own) == row.labels
        assert float(own.detach().mean()) == pytest.approx(expected, rel=1e-4)


def test_a_step_has_the_same_gradient_however_it_is_cut_into_passes(models: dict[str, Path]) -> None:
    rows = rows_of([9, 31, 14, 22])
    gradients = []
    for size in (1000, 30):
        model = load(models["causal"])
        for part in split_micro(rows, range(4), size, is_padded=False):
            losses, _ = model.losses(model.batch([rows[number] for number in part]))
            losses.sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("common", [8, 20, 33])
def test_what_all_rows_begin_with_is_computed_once_and_changes_neither_losses_nor_gradients(
    models: dict[str, Path], common: int
) -> None:
    rows = rows_of([60, 35, 90])  # the second one is trained from token 17 on
    rows = [dataclasses.replace(row, ids=np.concatenate([rows[2].ids[:common], row.ids[common:]])) for row in rows]
    model = load(models["causal"])
    torch.manual_seed(1)
    for name, parameter in model.named_parameters().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    found = []
    for share in (True, False):
        batch = causal_batch(rows, share=share)
        assert batch.shared == (common if share else 0)
        assert batch.input_ids.shape[1] == sum(map(len, rows)) - 3 - 2 * batch.shared, "nothing is computed twice"
        losses, _ = model.losses(batch)
        gradients = torch.autograd.grad(losses.sum(), model.parameters())
        found.append((losses.detach(), batch.labels, batch.owners, *gradients))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert model.batch(rows).shared == common
    spared = 2 * common / (sum(map(len, rows)) - 3)
    assert causal_batch(rows, share=True, least_spared=spared - 0.01).shared == common
    assert causal_batch(rows, share=True, least_spared=spared + 0.01).shared == 0


def test_tokens_that_no_loss_depends_on_are_not_computed() -> None:
    (row,) = rows_of([30])
    row.trained[20:] = False
    batch = causal_batch([row])
    assert batch.input_ids.tolist() == [row.ids[:19].tolist()]
    assert batch.labels.tolist() == row.ids[15:20].tolist()
    assert batch.positions.tolist() == list(range(14, 19))


def test_an_epoch_has_every_row_once_in_an_order_the_seed_decides() -> None:
    rows = rows_of([int(n) for n in np.random.default_rng(1).integers(5, 60, 50)])
    steps = plan_epoch(rows, batch_tokens=200, seed=1, epoch=0)
    assert sorted(number for step in steps for number in step) == list(range(50))
    assert steps == plan_epoch(rows, batch_tokens=200, seed=1, epoch=0)
    assert steps != plan_epoch(rows, batch_tokens=200, seed=1, epoch=1)
    assert steps != plan_epoch(rows, batch_tokens=200, seed=2, epoch=0)
    tokens = [sum(len(rows[number]) for number in step) for step in steps]
    assert max(tokens[:-1]) <= 200
    assert all(has + len(rows[after[0]]) > 200 for has, after in zip(tokens[:-1], steps[1:], strict=True))


@pytest.mark.parametrize("skip", [0, 1, 9, 10, 11, 25])
def test_steps_go_on_where_a_job_stopped_also_in_a_later_epoch(skip: int) -> None:
    rows = rows_of([50] * 20)  # two a step, ten steps an epoch
    whole, rest = (iterate_steps(rows, batch_tokens=100, seed=1, skip=skip) for skip in (0, skip))
    assert [next(rest) for _ in range(12)] == [next(whole) for _ in range(skip + 12)][skip:]


@pytest.mark.parametrize(
    ("epochs", "steps", "trained"),
    [(0.1, 1, 2), (0.001, 1, 1), (0.5, 3, 12), (1.0, 6, 24), (1.1, 7, 26), (2.5, 15, 60)],
)
def test_a_part_of_an_epoch_is_that_part_of_its_rows(epochs: float, steps: int, trained: int) -> None:
    rows = rows_of([50] * 24)  # four a step
    settings = Hyperparameters(epochs=epochs, batch_tokens=200, seed=1)
    planned = list(iterate_steps(rows, batch_tokens=200, seed=1, epochs=epochs))
    assert (count_steps(rows, settings), len(planned), sum(map(len, planned))) == (steps, steps, trained)
    endless = iterate_steps(rows, batch_tokens=200, seed=1)
    numbers = [number for step in itertools.islice(endless, steps) for number in step]
    assert [number for step in planned for number in step] == numbers[:trained]


def test_a_part_of_an_epoch_that_is_one_step_has_its_part_of_the_rows() -> None:
    rows = rows_of([10] * 24)  # all in one step of an epoch
    (step,) = iterate_steps(rows, batch_tokens=4096, seed=1, epochs=0.1)
    assert len(step) == 2
    assert count_steps(rows, Hyperparameters(epochs=0.1, max_steps=9)) == 9


@pytest.mark.parametrize("count", range(1, 40))
def test_a_small_remainder_joins_the_last_step_and_loses_no_row(count: int) -> None:
    rows = rows_of([10] * count)
    steps = plan_epoch(rows, batch_tokens=50, seed=3, epoch=0)
    assert sorted(number for step in steps for number in step) == list(range(count))
    assert len(steps) == 1 or min(map(len, steps)) >= 3


def test_processes_share_the_rows_of_a_step_without_loss_and_evenly() -> None:
    rows = rows_of([50, 10, 10, 10, 10, 10])
    shares = [share_of(rows, range(6), rank, 2) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(6))
    assert [sum(len(rows[number]) for number in share) for share in shares] == [50, 50]


def test_rows_that_are_cut_or_left_out_are_counted(models: dict[str, Path], tmp_path: Path) -> None:
    import json

    rows = [*ROWS[:6], {"instruction": "word " * 200, "output": "never seen"}]
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    channel = load_channel(folder, Encoder(models["causal"]), max_length=100, long_rows="cut")
    assert (len(channel.rows), channel.cut, channel.dropped) == (6, 0, 1)
    assert channel.stop_ids == {2}


def test_values_arrive_as_strings_and_leave_as_numbers() -> None:
    settings = Hyperparameters.from_strings({"epochs": "2.5", "lora_r": "8", "method": '"dora"'})
    assert (settings.epochs, settings.lora_r, settings.method) == (2.5, 8, "dora")
    with pytest.raises(TrainingError, match=r"lora_r is 0, it must be from 1 to 1024; max_steps is 1.5"):
        Hyperparameters.from_strings({"lora_r": "0", "max_steps": "1.5"})


def test_metric_lines_are_plain_numbers() -> None:
    assert line(step=3, train_loss=0.123456789, rate=2e-7) == "metric step=3 train_loss=0.12346 rate=2e-07"


def test_the_reason_comes_first_in_the_failure_file(tmp_path: Path) -> None:
    write_failure(tmp_path / "output" / "failure", "short", "long " * 1000)
    assert (tmp_path / "output" / "failure").read_text().startswith("short\n\nlong")


def test_a_reason_that_cannot_be_written_is_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "output").write_text("no folder")
    write_failure(tmp_path / "output" / "failure", "the disk is full")
    assert capsys.readouterr().err.startswith("failed: the disk is full (")


def test_requirements_that_are_met_cost_no_pip_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("torch>=2.0  # comment\n\nnumpy\n")
    monkeypatch.setattr(requirements.subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    assert requirements.install_missing(path) == []


def test_requirements_that_cannot_be_installed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("torch>=99\n")
    done = requirements.subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(requirements.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(TrainingError, match="the container lacks torch>=99 and pip cannot install it"):
        requirements.install_missing(path)


def test_a_gpu_job_installs_what_it_needs_and_goes_on_without_what_only_speeds_it_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def pip(command: list[str], **_: object) -> object:
        asked.append(command[-1])
        return requirements.subprocess.CompletedProcess(command, int("liger" in command[-1]))

    monkeypatch.setattr(requirements, "_is_met", lambda _: False)
    monkeypatch.setattr(requirements.subprocess, "run", pip)
    requirements.install_for_gpus("qlora")
    assert asked == [requirements.FOUR_BIT, requirements.KERNELS]
    assert "going on without faster norms: the container lacks liger-kernel" in capsys.readouterr().out
    monkeypatch.setattr(requirements, "KERNELS", "anything")
    requirements.install_for_gpus("lora")
    assert asked[2:] == ["anything"]


@pytest.mark.parametrize(("method", "offered"), [("lora", False), ("full", False), ("qlora", True)])
def test_only_a_job_in_four_bits_lets_peft_load_bitsandbytes(
    monkeypatch: pytest.MonkeyPatch, method: str, offered: bool
) -> None:
    monkeypatch.setattr(sys, "modules", {name: item for name, item in sys.modules.items() if name != "bitsandbytes"})
    requirements.pass_over_four_bit(method)
    assert (importlib.util.find_spec("bitsandbytes") is not None) == offered  # how peft asks


def test_each_host_starts_its_own_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("LLMTUNER_PROCESSES", "2")
    config = tmp_path / "input" / "config"
    config.mkdir(parents=True)
    resources = {"current_host": "algo-2", "hosts": ["algo-1", "algo-2"], "network_interface_name": "lo"}
    (config / "resourceconfig.json").write_text(json.dumps(resources))
    environments = launch.worker_environments(Folders(tmp_path))
    assert [each["RANK"] for each in environments] == ["2", "3"]
    assert {each["WORLD_SIZE"] for each in environments} == {"4"}
    assert environments[0]["MASTER_ADDR"] == "algo-1"
    assert environments[0]["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("LLMTUNER_PROCESSES", "1")
    (config / "resourceconfig.json").unlink()
    assert launch.worker_environments(Folders(tmp_path)) == []
