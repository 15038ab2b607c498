"""What preparation shows is what training does: the same ids and the same labels, token for token."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_encodings import encoding_of

import data  # the training container's own module
from dataset.conftest import distinct
from encoding import Encoder

CHAT = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "Very well, é 日本."},
        {"role": "user", "content": "And the lamp?"},
        {"role": "assistant", "content": "It shines. " * 30},
    ]
}
ROWS: list[dict[str, Any]] = [
    *distinct(3),
    {"instruction": "Sum up", "input": "a long text " * 60, "output": "short"},
    {"instruction": "Tell", "output": "word " * 200},
]


@pytest.mark.parametrize("limit", [0, 64, 512])
@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5"])
def test_masks_equal_what_the_training_container_feeds_the_model(tmp_path: Path, model: str, limit: int) -> None:
    # Short rows besides, since the container refuses a channel most of whose answers are cut.
    short = [{"instruction": f"Say {number}", "output": f"{number}."} for number in range(20)]
    rows = [*ROWS, *([CHAT] if model == "tiny-llama" else []), *short]
    encoding = encoding_of(model, limit)
    masks = {mask.number: mask for mask in encoding.masks(dict(enumerate(rows, 1)))}
    encoder = Encoder(encoding.folder, encoding.family)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    channel = data.load_channel(tmp_path, encoder, max_length=encoding.max_length, long_rows="cut")
    fed = {int(re.findall(r"\d+", row.place)[-1]): row for row in channel.rows}
    for number, mask in masks.items():
        row = fed.pop(number, None)
        if row is None:
            # The container drops rows without a trained token; preparation never lets them in.
            assert not any(mask.trained)
            continue
        assert row.ids.tolist() == list(mask.ids)
        assert row.trained.tolist() == list(mask.trained)
        assert ([] if row.source_ids is None else row.source_ids.tolist()) == list(mask.source_ids)
        assert (len(mask.pieces), len(mask.source)) == (len(mask.ids), len(mask.source_ids))
    assert fed == {}
