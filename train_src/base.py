"""The base model of a job: where its files are and what they say, before torch is loaded.

It comes from the channel `model` (staged in S3 by the kit, or the embedded one) or from the Hugging Face Hub. The token
for a gated model is read from HF_TOKEN or, through Secrets Manager, from the secret HF_TOKEN_SECRET_ARN; it is never a
hyperparameter and never printed.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from failures import TrainingError
from folders import Folders
from hyperparameters import Hyperparameters

LONGEST_DEFAULT = 2048  # tokens of a row when max_length is 0 and the model could read more


@dataclass(frozen=True)
class Base:
    """A base model in Hugging Face layout on this machine's disk."""

    folder: Path
    model_id: str
    revision: str
    config: dict[str, Any]

    @property
    def family(self) -> str:
        """`seq2seq` for encoder-decoder models, `causal` for the rest."""
        return "seq2seq" if self.config.get("is_encoder_decoder") else "causal"

    @property
    def longest_row(self) -> int:
        """Tokens the model can read."""
        text = self.config.get("text_config") or self.config
        known = [text.get(name) for name in ("max_position_embeddings", "n_positions", "max_sequence_length")]
        return min([value for value in known if value] or [LONGEST_DEFAULT])

    def max_length(self, asked: int) -> int:
        """The row length to train with. Raises TrainingError for more than the model can read."""
        is_relative = "relative_attention_num_buckets" in self.config  # T5 reads any length
        if asked > self.longest_row and not is_relative:
            raise TrainingError(f"max_length is {asked}, {self.model_id} reads at most {self.longest_row} tokens")
        return asked or min(self.longest_row, LONGEST_DEFAULT)


def locate_base(folders: Folders, settings: Hyperparameters) -> Base:
    """The job's base model, downloaded when it is not in a channel. Raises TrainingError when it cannot be had."""
    channel = folders.channel("model")
    if channel.is_dir():
        configs = sorted(channel.rglob("config.json"), key=lambda path: len(path.parts))
        if not configs:
            raise TrainingError(f"channel model has no config.json, only {_names(channel)}: it needs a model folder")
        folder = configs[0].parent
    elif settings.model_id:
        folder = _download(settings.model_id, settings.model_revision)
    else:
        raise TrainingError("no base model: give the job a channel model, or the hyperparameter model_id")
    origin = _read(folder / "base.json")
    base = Base(
        folder=folder,
        model_id=settings.model_id or origin.get("model_id", folder.name),
        revision=settings.model_revision or origin.get("revision", folder.name),
        config=_read(folder / "config.json"),
    )
    if settings.family not in ("auto", base.family):
        raise TrainingError(f"family is {settings.family}, but {base.model_id} is a {base.family} model: set auto")
    return base


def _download(model_id: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(
                model_id,
                revision=revision or None,
                token=_hub_token(),
                allow_patterns=["*.json", "*.jinja", "*.safetensors", "tokenizer.model"],
            )
        )
    except GatedRepoError as error:
        raise TrainingError(
            f"{model_id} is gated: accept its licence on its Hugging Face page, then give the job a token of that "
            "account in HF_TOKEN, or the ARN of a Secrets Manager secret in HF_TOKEN_SECRET_ARN"
        ) from error
    except RepositoryNotFoundError as error:
        raise TrainingError(
            f"{model_id} is not on the Hugging Face Hub, or is private and the job has no token for it (HF_TOKEN)"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise TrainingError(
            f"{model_id} cannot be downloaded ({error}): in a job without internet, stage the model in S3 and pass it "
            "as channel model"
        ) from error


def _hub_token() -> str | None:
    if token := os.environ.get("HF_TOKEN"):
        return token
    arn = os.environ.get("HF_TOKEN_SECRET_ARN")
    if not arn:
        return None
    import boto3

    # The region is the fourth part of an ARN.
    secret = boto3.client("secretsmanager", region_name=arn.split(":")[3]).get_secret_value(SecretId=arn)
    text = str(secret["SecretString"])
    return json.loads(text).get("HF_TOKEN") if text.startswith("{") else text


def _names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
