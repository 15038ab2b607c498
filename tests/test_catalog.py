"""The catalogue: shapes that add up, look-ups that help."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtuner_kit import catalog, paths
from llmtuner_kit.errors import SettingsError


def weights(model: catalog.BaseModel) -> int:
    """Parameter count from the shape: attention, gated feed-forward, embeddings (head untied unless small)."""
    attention = 2 * model.hidden * model.head_size * (model.heads + model.kv_heads)
    layer = attention + 3 * model.hidden * model.intermediate
    embeddings = model.vocabulary * model.hidden
    if model.family == "seq2seq":
        return model.decoder_layers * (2 * layer + attention) + 2 * embeddings
    return model.decoder_layers * layer + embeddings


@pytest.mark.parametrize("model", [m for m in catalog.BASE_MODELS if m.hub_id], ids=lambda m: m.model_id)
def test_published_parameter_counts_follow_from_the_shapes(model: catalog.BaseModel) -> None:
    tied = weights(model)
    untied = tied + model.vocabulary * model.hidden
    assert min(abs(n - model.parameters) for n in (tied, untied)) / model.parameters < 0.01


def test_names_are_unique_and_safe_as_key_segments() -> None:
    names = [model.model_id for model in catalog.BASE_MODELS]
    assert len(set(names)) == len(names)
    for model in catalog.BASE_MODELS:
        slug = paths.slug(model.model_id)
        assert slug.replace("-", "") == model.model_id.replace(".", "").replace("-", "")
        assert catalog.instance(model.instance).gpus >= 1


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(SettingsError, match="set model_id to 'llama-2-7b'"):
        catalog.base_model("llama-2-7")
    with pytest.raises(SettingsError, match=r"set instance_type to 'ml.g5.2xlarge'"):
        catalog.instance("g5.2xlarge")


def test_hub_models_have_no_folder_on_this_machine() -> None:
    with pytest.raises(SettingsError, match="Hub"):
        catalog.base_model_folder("llama-2-7b")


def test_embedded_model_is_a_complete_folder_with_a_revision() -> None:
    folder = catalog.base_model_folder("tiny-llama")
    assert {"base.json", "config.json", "model.safetensors", "tokenizer.json"} <= {
        item.name for item in folder.iterdir()
    }
    assert catalog.base_model_revision("tiny-llama")
    assert catalog.base_model_revision("llama-2-7b") == catalog.base_model("llama-2-7b").revision


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMTUNER_CACHE", str(tmp_path / "a"))
    assert catalog.cache_folder() == tmp_path / "a"
    monkeypatch.delenv("LLMTUNER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert catalog.cache_folder() == tmp_path / "b" / "llmtuner"
