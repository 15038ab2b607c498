"""Every kind of decoder that is let through trains rows end to end as transformers computes each row alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from test_train_parts import load, rows_of

from supported import check_config

SHAPE = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "attention_dropout": 0.0,
}  # fmt: skip
SETTINGS: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},  # shorter than the rows
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 16},  # caps its scores and its logits
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 16},
    "phi3": {},
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.1},
    "olmo2": {},
    "smollm3": {},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_rows_end_to_end_have_the_losses_they_have_alone(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SHAPE, **SETTINGS[kind])
    network = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in network.parameters():  # scores large enough for a cap or a window to show
            if parameter.dim() == 2:
                parameter.mul_(6)
    network.save_pretrained(tmp_path)
    check_config(kind, network.config.to_dict())
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rows = rows_of([40, 9, 31])
    model = load(tmp_path)
    model.network.eval()
    batch = model.batch(rows)
    assert batch.input_ids.shape[0] == 1
    losses, _ = model.losses(batch)
    for number, row in enumerate(rows):
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        labels = ids.masked_fill(~torch.from_numpy(row.trained)[None], -100)
        expected = float(reference(input_ids=ids, labels=labels).loss.detach())
        assert float(losses[batch.owners == number].detach().mean()) == pytest.approx(expected, rel=1e-4)
