"""What is computed between the large products in bf16 is what exact arithmetic gives, compiled or in PyTorch's steps.

Each test of numbers asks the functions that training calls: where the processor multiplies bf16 and gcc is there they
are compiled, elsewhere they are not, and must give the same.
"""

import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from ways import leave_out

import cpu_attention
import cpu_kernels
import cpu_layers
import label_loss
import lora_mlp

BF16 = torch.bfloat16
CLOSE = 0.006  # relative, of whole tensors: bf16 rounds by up to 0.004
PLAIN = cpu_kernels._library


@pytest.fixture(params=["as training calls it", "in PyTorch's steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "in PyTorch's steps":
        monkeypatch.setattr(cpu_kernels, "_library", lambda: None)
    return str(request.param)


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def assert_close(found: Tensor, exact: Tensor, tolerance: float = CLOSE) -> None:
    assert found.shape == exact.shape
    found, exact = found.detach(), exact.detach()
    assert float((found.double() - exact).norm()) <= tolerance * float(exact.norm()) + 1e-6


def is_compiled() -> bool:
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    return cpu_kernels.NEEDED in flags and shutil.which("gcc") is not None


def test_they_are_compiled_where_they_can_be() -> None:
    assert cpu_kernels.suits(numbers(3, 32)) == is_compiled()


@pytest.mark.parametrize(
    "tensor", [numbers(3, 30), numbers(3, 32).float(), numbers(32, 32).t()], ids=["width", "type", "strides"]
)
def test_other_tensors_go_another_way(tensor: Tensor) -> None:
    assert not cpu_kernels.suits(tensor)


def attended(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], shared: int) -> Tensor:
    """Attention by one mask over all tokens, in fp64."""
    documents = torch.tensor([0] * shared + [number for number, n in enumerate(lengths, 1) for _ in range(n)])
    places = torch.arange(len(documents))
    is_seen = (places[None] <= places[:, None]) & ((documents[None] == documents[:, None]) | (documents[None] == 0))
    group = query.shape[1] // key.shape[1]
    keys, values = (each.repeat_interleave(group, 1) for each in (key, value))
    scores = query @ keys.transpose(2, 3) * query.shape[-1] ** -0.5
    return (scores.masked_fill(~is_seen, float("-inf")).softmax(-1) @ values).transpose(1, 2)


SHAPES = [
    ([190, 33, 1, 64], 24, 9, 3, 64),
    ([32], 0, 4, 4, 32),
    ([31, 17], 7, 4, 2, 16),
    ([2, 50, 3], 51, 2, 1, 128),
    ([100, 1], 1, 6, 2, 80),
    ([1], 0, 1, 1, 16),
]


@pytest.mark.parametrize(("lengths", "shared", "heads", "key_heads", "size"), SHAPES)
def test_attention(way: str, lengths: list[int], shared: int, heads: int, key_heads: int, size: int) -> None:
    tokens = shared + sum(lengths)
    counts = (heads, key_heads, key_heads)
    inputs = [numbers(1, tokens, count, size, seed=seed).transpose(1, 2) for seed, count in enumerate(counts)]
    inputs = [each.requires_grad_() for each in inputs]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    found = cpu_attention.attend(*inputs, size**-0.5, lengths, shared)
    expected = attended(*exact, lengths, shared)
    assert_close(found, expected, 2 * CLOSE)
    change = numbers(*found.shape, seed=1)
    found.backward(change)
    expected.backward(change.double())
    for one, other in zip(inputs, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert_close(one.grad, other.grad, 3 * CLOSE)


def test_attention_gives_the_same_bits_with_any_number_of_threads(two_threads: None) -> None:
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        inputs = [numbers(1, count, 150, 64, seed=seed).requires_grad_() for seed, count in enumerate((6, 3, 3))]
        output = cpu_attention.attend(*inputs, 0.125, [60, 50, 1], 39)
        output.backward(numbers(*output.shape, seed=1))
        results.append([output, *(each.grad for each in inputs)])
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            assert one is not None
            assert other is not None
            assert torch.equal(one, other) or not is_compiled()


def test_a_document_sees_nothing_of_the_others() -> None:
    inputs = [numbers(1, 3, 90, 32, seed=seed) for seed in range(3)]
    before = cpu_attention.attend(*inputs, 0.2, [40, 50], 0)
    for each in inputs:
        each[:, :, :40] = float("nan")
    after = cpu_attention.attend(*inputs, 0.2, [40, 50], 0)
    assert torch.equal(before[:, 40:], after[:, 40:])


@pytest.mark.parametrize("shape", [(1, 7, 576), (1, 1, 16), (5, 48)])
def test_norm(way: str, shape: tuple[int, ...]) -> None:
    x, weight, change = numbers(*shape).mul(3).requires_grad_(), numbers(shape[-1], seed=1), numbers(*shape, seed=2)
    exact = x.detach().double().requires_grad_()
    found = cpu_layers._RmsNorm.apply(x, weight, 1e-5)
    expected = exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_close(found, expected)
    found.backward(change)
    expected.backward(change.double())
    assert x.grad is not None
    assert exact.grad is not None
    assert_close(x.grad, exact.grad)


@pytest.mark.parametrize("is_turned", [False, True])
def test_rotation(way: str, *, is_turned: bool) -> None:
    x = numbers(1, 3, 11, 64) if is_turned else numbers(1, 11, 3, 64).transpose(1, 2)
    angles = torch.randn(1, 1, 11, 32, generator=torch.Generator().manual_seed(1))
    cos, sin = (torch.cat([part, part], -1).to(BF16) for part in (angles.cos(), angles.sin()))
    low, high = x.double().chunk(2, -1)
    cosine, sine = (each.double()[..., :32] for each in (cos, sin))
    for direction in (1, -1):
        expected = torch.cat([low * cosine - direction * high * sine, high * cosine + direction * low * sine], -1)
        assert_close(cpu_layers._turned(x, cos, sin, direction), expected)


@pytest.mark.parametrize(("tokens", "width", "rank"), [(9, 64, 16), (1, 16, 2), (4, 1536, 8), (6, 80, 34)])
def test_feed_forward(way: str, tokens: int, width: int, rank: int) -> None:
    g, u, d_inner = (numbers(tokens, width, seed=seed) for seed in range(3))
    lows, b_gate, b_up = numbers(tokens, 2 * rank), numbers(width, rank, seed=3) / 4, numbers(width, rank, seed=4) / 4
    d_low, a_down = numbers(tokens, rank, seed=5), numbers(rank, width, seed=6) / 4
    gate = (g.double() + lows.double()[:, :rank] @ b_gate.double().t()).requires_grad_()
    up = (u.double() + lows.double()[:, rank:] @ b_up.double().t()).requires_grad_()
    inner = torch.nn.functional.silu(gate) * up
    inner.backward(d_inner.double() + d_low.double() @ a_down.double())
    arithmetic = lora_mlp._arithmetic(g, lows)
    assert arithmetic is (cpu_kernels if way == "as training calls it" and is_compiled() else lora_mlp.InSteps)
    assert_close(arithmetic.swiglu(g, u, lows, b_gate, b_up), inner.detach(), 2 * CLOSE)
    found = arithmetic.swiglu_backward(d_inner, g, u, lows, b_gate, b_up, d_low, a_down)
    for one, other in zip(found, (inner.detach(), gate.grad, up.grad), strict=True):
        assert other is not None
        assert_close(one, other, 2 * CLOSE)


def test_an_odd_rank_goes_another_way() -> None:
    assert lora_mlp._arithmetic(numbers(3, 32), numbers(3, 6)) is lora_mlp.InSteps


@pytest.mark.parametrize("labels", [1, 16, 37])
def test_head(way: str, labels: int) -> None:
    hidden, weight = numbers(labels, 64).requires_grad_(), numbers(1100, 64, seed=1) / 4
    index = torch.arange(labels) * 29
    exact = hidden.detach().double().requires_grad_()
    losses, correct = label_loss.label_losses(hidden, weight, index)
    logits = exact @ weight.double().t()
    expected = torch.nn.functional.cross_entropy(logits, index, reduction="none")
    assert_close(losses, expected.detach())
    assert torch.equal(correct, logits.argmax(-1) == index)
    losses.sum().backward()
    expected.sum().backward()
    assert hidden.grad is not None
    assert exact.grad is not None
    assert_close(hidden.grad, exact.grad, 2 * CLOSE)


@pytest.mark.parametrize("far", [-200.0, 88.0, 3e38])
def test_exponentials_of_any_size(far: float) -> None:
    tile = torch.tensor([[0.5, far], [-1.0, 2.0], [0.0, -far]]).to(BF16)
    exact = tile.float()
    exponentiate = cpu_kernels.exponentiate if is_compiled() else label_loss._exponentiate
    largest, sums = torch.tensor([0.25, float("-inf")]), torch.tensor([1.0, 0.0])
    exponentiate(tile, largest, sums)
    torch.testing.assert_close(tile, exact.exp().to(BF16), rtol=0.01, atol=1e-37)
    torch.testing.assert_close(largest, torch.maximum(exact.amax(0), torch.tensor([0.25, float("-inf")])))
    torch.testing.assert_close(sums, tile.float().sum(0) + torch.tensor([1.0, 0.0]))


# How they come to be.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a processor that multiplies bf16, and nothing known of either."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu_kernels, "_processor", lambda: f"flags : fpu {cpu_kernels.NEEDED}")
    monkeypatch.setattr(cpu_kernels, "_library", cpu_kernels.functools.cache(PLAIN.__wrapped__))
    return tmp_path / "llmtuner" / "kernels"


def compiler(folder: Path, script: str) -> Path:
    path = folder / "gcc"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo "gcc 1"\n{script}\n')
    path.chmod(0o755)
    return path


def test_without_a_compiler_the_log_says_what_that_means(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not cpu_kernels.suits(numbers(1, 16))
    assert not cpu_kernels.suits(numbers(1, 16))
    assert capsys.readouterr().out == (
        "no gcc on this machine: what lies between matrix products takes PyTorch's slower way\n"
    )


@pytest.mark.parametrize(("script", "reason"), [("echo no omp.h >&2; exit 1", "no omp.h"), ('touch "$7"', "too short")])
def test_what_cannot_be_compiled_or_loaded_is_told_and_passed_over(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: str, reason: str
) -> None:
    monkeypatch.setenv("PATH", f"{compiler(cache.parents[1], script).parent}:/usr/bin:/bin")
    assert not cpu_kernels.suits(numbers(1, 16))
    told = capsys.readouterr().out
    assert "cannot be compiled, PyTorch's slower way is taken" in told
    assert reason in told


def test_they_are_compiled_once_for_each_processor(cache: Path) -> None:
    own = str(compiler(cache.parents[1], 'echo "$7" >> "$0.calls"; echo made > "$7"'))
    first = [cpu_kernels._compiled(own, "flags : fpu"), cpu_kernels._compiled(own, "flags : fpu")]
    other = cpu_kernels._compiled(own, "flags : fpu amx_bf16")
    assert first[0] == first[1] != other
    assert {path.read_text() for path in (*first, other)} == {"made\n"}
    assert len(Path(f"{own}.calls").read_text().splitlines()) == 2
    assert sorted(cache.iterdir()) == sorted({*first, other})


@pytest.mark.parametrize("mode", [0o777, 0o500])
def test_a_cache_where_others_may_write_or_we_may_not_is_not_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    cache.mkdir(parents=True)
    cache.chmod(mode)
    access = cpu_kernels.os.access
    if mode == 0o500:  # root may write anywhere
        monkeypatch.setattr(cpu_kernels.os, "access", lambda path, how: path != cache and access(path, how))
    folder = cpu_kernels._folder()
    assert folder != cache
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_source_compiles_without_a_warning(tmp_path: Path) -> None:
    """Also on an x86 machine that could not run it."""
    if shutil.which("gcc") is None or platform.machine() != "x86_64":
        leave_out("gcc for x86 is needed")
    command: list[Any] = ["gcc", *cpu_kernels.FLAGS, "-march=cooperlake", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        [*command, "-o", tmp_path / "k.so", cpu_kernels.SOURCE, "-lm"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
