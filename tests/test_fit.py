"""What the kit promises about memory is what the training container plans by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmtuner_kit import catalog, fit, job_code

PUBLISHED = [model for model in catalog.BASE_MODELS if model.hub_id]


@pytest.mark.parametrize("model", PUBLISHED, ids=lambda item: item.model_id)
def test_a_catalogue_entry_has_the_shape_of_its_weights(model: catalog.BaseModel) -> None:
    shape = fit.job(model, catalog.instance(model.instance), method="lora", rank=16).shape
    assert shape.weights == pytest.approx(model.parameters, rel=1e-4)


def test_memory_is_planned_by_the_file_that_jobs_are_given() -> None:
    assert Path(fit.memory.__file__) == job_code.folder() / "memory.py"


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


def test_memory_that_is_taken_for_speed_does_not_look_as_if_the_job_hardly_fitted() -> None:
    model, instance = catalog.base_model("llama-2-7b"), catalog.instance("ml.g5.2xlarge")
    found = fit.check(model, instance, method="qlora", rank=16, max_length=512)
    assert found.needed_gb > 0.95 * found.available_gb  # the largest passes that fit
    assert found.least_gb < 8
    assert found.headroom > 0.5
    assert f"for speed; {found.least_gb:.1f} GB would do" in found.why
    other = fit.check(catalog.base_model("tiny-llama"), instance, method="lora", rank=16, max_length=512)
    assert "would do" not in other.why


def test_a_machine_whose_own_memory_cannot_hold_the_weights_is_refused_with_one_that_can() -> None:
    model = catalog.base_model("llama-2-7b")
    found = fit.check(model, catalog.instance("ml.g5.xlarge"), method="lora", rank=16, max_length=2048)
    assert found.needed_gb < found.available_gb
    assert not found.fits
    assert "16.5 GB of the machine's own memory" in found.why
    assert found.smallest == "ml.g5.2xlarge"
    # In 4 bits they are put together on the GPU, and 13B on this GPU are not.
    small = fit.check(model, catalog.instance("ml.g5.xlarge"), method="qlora", rank=16, max_length=2048)
    assert small.fits
    assert small.smallest == "ml.g5.xlarge"
    large = catalog.base_model("llama-2-13b")
    assert not fit.check(large, catalog.instance("ml.g5.xlarge"), method="qlora", rank=16, max_length=2048).fits


def test_dropout_before_the_adapter_is_in_the_plan_as_in_the_jobs_own() -> None:
    model, instance = catalog.base_model("llama-2-7b"), catalog.instance("ml.g6e.2xlarge")
    without, with_it = (
        fit.check(model, instance, method="lora", rank=16, max_length=2048, dropout=share) for share in (0.0, 0.1)
    )
    assert (without.checkpointing, with_it.checkpointing) == (False, True) or with_it.needed_gb > without.needed_gb


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


def test_spread_weights_are_waited_for_in_every_pass_and_token() -> None:
    model, four = catalog.base_model("llama-2-13b"), catalog.instance("ml.g5.12xlarge")
    whole = fit.tokens_per_second(model, four, method="lora")
    small, large = (
        fit.tokens_per_second(model, four, method="lora", spread_pass_tokens=count) for count in (1024, 16384)
    )
    for end in (0, 1):
        assert small[end] < large[end] < whole[end]
        # 4 bytes a weight for each pass, at 3 to 12 GB/s.
        waited = 4 * model.parameters / (3e9, 12e9)[end]
        assert 1024 * 3.2 / small[end] - 1024 * 3.2 / whole[end] == pytest.approx(waited)
    nvlink = catalog.instance("ml.p4d.24xlarge")
    assert fit.reading_seconds(model, nvlink, spread=True) < fit.reading_seconds(model, four, spread=True)
    assert fit.reading_seconds(model, four) < fit.reading_seconds(model, four, spread=True)


def test_a_served_model_has_room_for_the_keys_and_values_of_its_longest_request() -> None:
    model, instance = catalog.base_model("llama-2-7b"), catalog.instance("ml.g5.2xlarge")
    long, short = (fit.serving_fit(replace(model, context=length), instance).needed_gb for length in (4096, 2048))
    # Each token leaves a key and a value of two bytes a number in every layer.
    assert (long - short) * 1e9 == pytest.approx(2 * 2 * 32 * 4096 * 2048)


@pytest.mark.parametrize(("heads", "kv_heads", "gpus"), [(32, 32, 8), (32, 4, 8), (12, 6, 6), (9, 3, 3), (7, 7, 7)])
def test_a_served_model_is_shared_by_as_many_gpus_as_divide_its_heads(heads: int, kv_heads: int, gpus: int) -> None:
    model = replace(catalog.base_model("llama-2-7b"), heads=heads, kv_heads=kv_heads)
    assert fit.tensor_parallel(model, catalog.instance("ml.g5.48xlarge")) == gpus
