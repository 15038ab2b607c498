"""What the kit promises about memory is what the training container plans by."""

from __future__ import annotations

import dataclasses

import pytest

import memory
from llmtuner_kit import catalog, fit


def shape(model: catalog.BaseModel) -> memory.Shape:
    cross = model.decoder_layers if model.family == "seq2seq" else 0
    return memory.Shape(
        hidden=model.hidden,
        feed_forward=model.intermediate,
        query=model.heads * model.head_size,
        key_value=model.kv_heads * model.head_size,
        heads=model.heads,
        layers=model.decoder_layers,
        cross_layers=cross,
        vocabulary=model.vocabulary,
        gated=True,
        tied=model.model_id.startswith(("smollm2", "tiny")),
        dropout=model.family == "seq2seq",
    )


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("model", catalog.BASE_MODELS, ids=lambda item: item.model_id)
def test_bytes_are_those_of_the_container(
    model: catalog.BaseModel, method: str, shards: int, *, checkpointing: bool
) -> None:
    how = {"method": method, "checkpointing": checkpointing, "shards": shards}
    mine = fit.training_bytes(model, rank=16, micro_tokens=2048, **how)  # type: ignore[arg-type]
    theirs = memory.estimate(shape(model), lora_r=16, micro_batch_tokens=2048, **how).total  # type: ignore[arg-type]
    # The catalogue knows the exact number of weights, the container works it out from the shape.
    assert mine == pytest.approx(theirs, rel=0.03)


@pytest.mark.parametrize("model", catalog.BASE_MODELS, ids=lambda item: item.model_id)
def test_recommended_instance_tunes_and_serves_its_model(model: catalog.BaseModel) -> None:
    instance = catalog.instance(model.instance)
    assert fit.check(model, instance, method="lora", rank=16, max_length=min(2048, model.context)).fits
    assert fit.serving_fit(model, instance).fits


def test_what_does_not_fit_names_the_smallest_that_does() -> None:
    model = catalog.base_model("llama-2-13b")
    found = fit.check(model, catalog.instance("ml.g5.8xlarge"), method="lora", rank=16, max_length=2048)
    assert not found.fits
    assert found.headroom < 0
    other = catalog.instance(found.smallest)
    assert fit.check(model, other, method="lora", rank=16, max_length=2048).fits


def test_a_model_too_large_for_one_gpu_is_spread_over_several() -> None:
    model, four = catalog.base_model("llama-2-13b"), catalog.instance("ml.g5.12xlarge")
    found = fit.check(model, four, method="lora", rank=16, max_length=2048)
    assert found.fits
    assert found.sharded
    assert found.why.endswith("weights spread over 4 GPUs")
    small = fit.check(catalog.base_model("smollm2-135m-instruct"), four, method="lora", rank=16, max_length=2048)
    assert small.fits
    assert not small.sharded


def test_four_bit_needs_bf16() -> None:
    model = catalog.base_model("smollm2-135m-instruct")
    found = fit.check(model, catalog.instance("ml.g4dn.xlarge"), method="qlora", rank=8, max_length=512)
    assert not found.fits
    assert "bf16" in found.why


def test_more_of_anything_never_needs_less_memory() -> None:
    model = catalog.base_model("llama-2-7b")
    base = {"method": "lora", "rank": 16, "micro_tokens": 1024, "checkpointing": True}
    least = fit.training_bytes(model, **base)  # type: ignore[arg-type]
    assert fit.training_bytes(model, **base | {"rank": 64}) > least  # type: ignore[arg-type]
    assert fit.training_bytes(model, **base | {"micro_tokens": 4096}) > least  # type: ignore[arg-type]
    assert fit.training_bytes(model, **base | {"checkpointing": False}) > least  # type: ignore[arg-type]
    wider = dataclasses.replace(model, hidden=model.hidden * 2)
    assert fit.training_bytes(wider, **base) > least  # type: ignore[arg-type]


def test_served_model_is_shared_by_gpus_that_divide_its_heads() -> None:
    four = catalog.instance("ml.g5.12xlarge")
    assert fit.tensor_parallel(catalog.base_model("llama-2-13b"), four) == 4
    assert fit.tensor_parallel(catalog.base_model("smollm2-135m-instruct"), four) == 3


def test_speed_grows_with_gpus_and_falls_with_recomputing() -> None:
    model = catalog.base_model("llama-2-7b")
    one = fit.tokens_per_second(model, catalog.instance("ml.g5.2xlarge"), method="lora")
    four = fit.tokens_per_second(model, catalog.instance("ml.g5.12xlarge"), method="lora")
    again = fit.tokens_per_second(model, catalog.instance("ml.g5.2xlarge"), method="lora", checkpointing=True)
    assert four[0] == pytest.approx(one[0] * 3.2)
    assert again[0] < one[0] < one[1]
