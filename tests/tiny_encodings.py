"""The encodings of base models that ship offline."""

from __future__ import annotations

from llmtuner_kit import catalog
from llmtuner_kit.dataset.tokens import Encoding, open_encoding


def encoding_of(model_id: str, max_length: int = 0) -> Encoding:
    return open_encoding(catalog.base_model(model_id), catalog.base_model_folder(model_id), max_length)
