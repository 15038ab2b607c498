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

import disk
import supported
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
    hub_id: str = ""  # where its weights still have to be fetched from

    @property
    def family(self) -> str:
        """`seq2seq` for encoder-decoder models, `causal` for the rest."""
        return "seq2seq" if self.config.get("is_encoder_decoder") else "causal"

    @property
    def longest_row(self) -> int:
        """Tokens the model can read."""
        return supported.longest_row(self.config)

    def longest_prompt(self, max_length: int) -> int:
        """Tokens of prompt and answer (seq2seq: of each) that the tuned model can be asked for."""
        return max(self.longest_row, max_length) if self.family == "seq2seq" else self.longest_row

    def max_length(self, asked: int) -> int:
        """The row length to train with. Raises TrainingError for more than the model can read."""
        is_relative = "relative_attention_num_buckets" in self.config  # T5 reads any length
        if asked > self.longest_row and not is_relative:
            raise TrainingError(f"max_length is {asked}, {self.model_id} reads at most {self.longest_row} tokens")
        alike = self._longest_alike
        if alike and asked > alike:
            raise TrainingError(
                f"max_length is {asked}, but {self.model_id} takes positions otherwise (longrope) in texts of more than "
                f"{alike} tokens, and short rows beside a longer one would be trained as they are never read: set "
                f"max_length to {alike} at most"
            )
        return asked or min(self.longest_row, LONGEST_DEFAULT, alike or LONGEST_DEFAULT)

    @property
    def _longest_alike(self) -> int | None:
        """Tokens up to which a text's length does not change how its beginning is read; None when it never does."""
        rope = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type")) not in ("longrope", "su"):  # as Phi-3's first configurations call it
            return None
        first = self.config.get("original_max_position_embeddings")
        return int(rope.get("original_max_position_embeddings") or first or self.longest_row)


def locate_base(folders: Folders, settings: Hyperparameters) -> Base:
    """The job's base model. Raises TrainingError when it cannot be had.

    From the Hub come the small files only, with which data and memory can be checked; `fetch_weights` gets the rest.
    """
    channel, hub_id = folders.channel("model"), ""
    if channel.is_dir():
        configs = sorted(channel.rglob("config.json"), key=lambda path: len(path.parts))
        if not configs:
            raise TrainingError(f"channel model has no config.json, only {_names(channel)}: it needs a model folder")
        folder = configs[0].parent
    elif settings.model_id:
        hub_id = settings.model_id
        folder = _download(hub_id, settings.model_revision, supported.DESCRIPTION)
    else:
        raise TrainingError("no base model: give the job a channel model, or the hyperparameter model_id")
    origin = _read(folder / "base.json")
    base = Base(
        folder=folder,
        model_id=settings.model_id or origin.get("model_id", folder.name),
        revision=settings.model_revision or origin.get("revision", folder.name),
        config=_read(folder / "config.json"),
        hub_id=hub_id,
    )
    if settings.family not in ("auto", base.family):
        raise TrainingError(f"family is {settings.family}, but {base.model_id} is a {base.family} model: set auto")
    if reason := supported.obstacle(base.config):
        raise TrainingError(f"{base.model_id} cannot be trained: {reason}; {supported.SUPPORTED}")
    return base


def fetch_weights(base: Base, asked_revision: str) -> None:
    """Download the weights of a base model of the Hub; others have them already."""
    if base.hub_id:
        print(f"downloading the weights of {base.hub_id}", flush=True)
        weights = supported.weight_files(_read(base.folder / supported.INDEX))
        _download(base.hub_id, asked_revision, tuple(weights))
        if not any(base.folder.glob("*.safetensors")):
            raise TrainingError(
                f"{base.hub_id} has no .safetensors file at revision {asked_revision or 'main'}: choose a revision "
                "that has them; pickled weights are not loaded"
            )


def _download(model_id: str, revision: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(
                model_id,
                revision=revision or None,
                token=_hub_token(),
                allow_patterns=list(patterns),
            )
        )
    except GatedRepoError as error:
        raise TrainingError(
            f"{model_id} is gated: accept its licence on its Hugging Face page, then give the job a token of that "
            "account in HF_TOKEN, or the ARN of a Secrets Manager secret in HF_TOKEN_SECRET_ARN"
        ) from error
    except RepositoryNotFoundError as error:
        raise TrainingError(
            f"{model_id} is not on the Hugging Face Hub, or is private and the job has no token for it (HF_TOKEN, or "
            "the ARN of a Secrets Manager secret in HF_TOKEN_SECRET_ARN)"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if disk.is_full(error):
            raise TrainingError(f"the disk is too small for the weights of {model_id}: {disk.LARGER}") from error
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
    try:
        import boto3

        # The region is the fourth part of an ARN.
        secret = boto3.client("secretsmanager", region_name=arn.split(":")[3]).get_secret_value(SecretId=arn)
        text = str(secret["SecretString"])
    except Exception as error:
        raise TrainingError(
            f"the secret {arn} of HF_TOKEN_SECRET_ARN cannot be read ({type(error).__name__}): let the job's role do "
            "secretsmanager:GetSecretValue on it, in the region the ARN names"
        ) from error
    return json.loads(text).get("HF_TOKEN") if text.startswith("{") else text


def _names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{path.name} of the base model is damaged ({error}): stage the model again") from error
