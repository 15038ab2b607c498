"""The head's losses and gradients are those of plain cross entropy, however the work is cut."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import label_loss

WAYS = {"cpu": label_loss._in_tiles, "cuda": label_loss._at_once}


@pytest.fixture(params=WAYS)
def small_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either device's way, in parts that fit into a test: 4 labels, and 16 tokens of the vocabulary."""
    monkeypatch.setattr(label_loss, "_in_tiles", WAYS[request.param])
    monkeypatch.setattr(label_loss, "TILE_LABELS", 4)
    monkeypatch.setattr(label_loss, "TILE_TOKENS", 16)


def case(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = (torch.randn(11, 8) * scale).to(dtype).requires_grad_()
    weight = torch.randn(50, 8).to(dtype)
    labels = torch.randint(0, 50, (11,))
    labels[:5] = (hidden @ weight.t()).argmax(-1)[:5]  # some are right
    return hidden, weight, labels


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["usual logits", "logits far apart"])
def test_losses_and_their_gradient_equal_cross_entropy(scale: float) -> None:
    hidden, weight, labels = case(scale=scale)
    losses, correct = label_loss.label_losses(hidden, weight, labels)
    plain = hidden.detach().double().requires_grad_()
    expected = functional.cross_entropy(plain @ weight.double().t(), labels, reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(correct, (plain @ weight.double().t()).argmax(-1) == labels)
    assert correct[:5].all()
    factors = torch.rand(11)
    (losses * factors).sum().backward()
    (expected * factors).sum().backward()
    torch.testing.assert_close(hidden.grad.double(), plain.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_parts")
def test_bf16_is_as_exact_as_its_logits() -> None:
    hidden, weight, labels = case(torch.bfloat16)
    losses, _ = label_loss.label_losses(hidden, weight, labels)
    logits = (hidden.detach() @ weight.t()).float()
    exact = hidden.detach().float() @ weight.float().t()
    rounding = torch.finfo(torch.bfloat16).eps
    wanted = functional.cross_entropy(exact, labels, reduction="none")
    torch.testing.assert_close(losses, wanted, rtol=rounding, atol=rounding)
    losses.sum().backward()
    wanted = (torch.softmax(logits, -1) - functional.one_hot(labels, 50)) @ weight.float()
    assert hidden.grad.dtype == torch.bfloat16
    torch.testing.assert_close(hidden.grad.float(), wanted, rtol=0.02, atol=0.02)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("is_trained", [False, True], ids=["frozen", "trained"])
def test_without_a_gradient_the_losses_are_the_same_bits(*, is_trained: bool) -> None:
    hidden, weight, labels = case()
    weight.requires_grad_(is_trained)
    trained = label_loss.label_losses(hidden, weight, labels)
    with torch.no_grad():
        evaluated = label_loss.label_losses(hidden.detach(), weight, labels)
    assert all(torch.equal(one, other) for one, other in zip(trained, evaluated, strict=True))


@pytest.mark.usefixtures("small_parts")
def test_no_label_at_all_gives_no_loss() -> None:
    hidden, weight, labels = case()
    losses, correct = label_loss.label_losses(hidden[:0], weight, labels[:0])
    assert (losses.shape, correct.shape) == ((0,), (0,))
    assert losses.sum().item() == 0


@pytest.mark.usefixtures("small_parts")
def test_a_trained_head_gets_its_gradient_too() -> None:
    hidden, weight, labels = case()
    weight.requires_grad_()
    losses, correct = label_loss.label_losses(hidden, weight, labels)
    plain = [each.detach().double().requires_grad_() for each in (hidden, weight)]
    logits = plain[0] @ plain[1].t()
    expected = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(correct, logits.argmax(-1) == labels)
    (losses.sum() / 7).backward()
    (expected.sum() / 7).backward()
    for one, other in zip((hidden, weight), plain, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-6)


def test_a_trained_head_refuses_losses_of_unequal_share() -> None:
    hidden, weight, labels = case()
    losses, _ = label_loss.label_losses(hidden, weight.requires_grad_(), labels)
    with pytest.raises(RuntimeError, match="Expected"):
        (losses * torch.rand(11)).sum().backward()


def test_a_trained_head_is_multiplied_in_autocasts_type() -> None:
    hidden, weight, labels = case()
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = label_loss.label_losses(hidden, weight, labels)
    logits = (hidden.bfloat16() @ weight.bfloat16().t()).float()
    torch.testing.assert_close(losses, functional.cross_entropy(logits, labels, reduction="none"))
    losses.sum().backward()
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.float32, torch.float32)
