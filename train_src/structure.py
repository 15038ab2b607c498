"""The base model's layers without its weights: what can be known to fail is found before gigabytes are loaded.

transformers builds the model on PyTorch's meta device, which allocates nothing, in a fraction of a second.
"""

from typing import Any

import torch
import transformers
from torch import nn

from base import Base
from failures import TrainingError
from memory import Shape
from supported import SUPPORTED

UNCOUNTED = 0.05  # share of the weights that the memory model may miss: biases, norms


def check_structure(base: Base, asked_targets: str) -> None:
    """Raises TrainingError for a model that transformers cannot build, or that is not built as its sizes say."""
    loader = transformers.AutoModelForSeq2SeqLM if base.family == "seq2seq" else transformers.AutoModelForCausalLM
    try:
        config = transformers.AutoConfig.from_pretrained(base.folder, trust_remote_code=False)
        with torch.device("meta"):
            network = loader.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(f"transformers {transformers.__version__} knows no {base.model_id}: {reason}") from error
    if not isinstance(network.get_output_embeddings(), nn.Linear):
        raise TrainingError(f"{base.model_id} cannot be trained: its output layer is no linear layer; {SUPPORTED}")
    weights, expected = sum(each.numel() for each in network.parameters()), Shape.from_config(base.config).weights
    if weights > expected * (1 + UNCOUNTED):
        raise TrainingError(
            f"{base.model_id} cannot be trained: it has {weights:,} weights, a model of its sizes and of the usual "
            f"build has {expected:,}; {SUPPORTED}"
        )
    target_modules(network, asked_targets)


def target_modules(network: Any, asked: str) -> list[str]:
    """The names of the layers that get an adapter: all linear ones but the head.

    Raises TrainingError for names the model has not.
    """
    head = network.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    if asked == "auto":
        return sorted(linear - {"lm_head"})
    names = [name.strip() for name in asked.split(",") if name.strip()]
    unknown = [name for name in names if name not in linear]
    if unknown:
        raise TrainingError(f"target_modules has {', '.join(unknown)}; the model has {', '.join(sorted(linear))}")
    return names
