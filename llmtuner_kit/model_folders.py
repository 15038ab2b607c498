"""A base model's files, in a folder on this machine, in an S3 prefix or on the Hub, and what they say of the model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llmtuner_kit import catalog, fit, job_code, paths
from llmtuner_kit.catalog import BaseModel
from llmtuner_kit.errors import NotFoundError, SettingsError
from llmtuner_kit.model_names import Reference

DESCRIPTION = "base.json"  # the kit's own; the job takes the model's name and revision from it
# The instance type of a model is the least on which LoRA of this rank fits, with rows of this length.
_RANK, _LENGTH = 16, 2048
_LARGEST = "ml.p5en.48xlarge"

supported = job_code.module("supported")  # the rules by which the job itself goes

S3 = Callable[[], Any]
"""Makes an S3 client, where one is needed."""


@dataclass(frozen=True)
class ModelFolder:
    """The files of a model.

    Attributes:
        files: bytes of each file by its name.
        read: the content of a small one.
        revision: names this state of the files: the Hub's commit, else a hash.
        gated: a token is needed to have them.
    """

    files: Mapping[str, int]
    read: Callable[[str], bytes]
    revision: str
    licence: str = "as its owner says"
    gated: bool = False

    @property
    def small(self) -> list[str]:
        """The names of what a job needs besides the weights."""
        matches = (name for name in self.files if any(map(PurePosixPath(name).match, supported.DESCRIPTION)))
        return [name for name in matches if name != DESCRIPTION]

    @property
    def weights(self) -> list[str]:
        """The names of the weights as transformers would read them, also of those that are missing."""
        index = json.loads(self.read(supported.INDEX)) if supported.INDEX in self.files else {}
        return supported.weight_files(index)


def open_folder(source: str, s3: S3) -> ModelFolder:
    """A folder on this machine, or a prefix in S3. Raises NotFoundError where there is none."""
    return _in_s3(source, s3()) if source.startswith("s3://") else _on_disk(Path(source))


def _in_s3(uri: str, client: Any) -> ModelFolder:
    bucket, prefix = paths.split_uri(uri)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
    try:
        objects = {item["Key"].removeprefix(prefix): item for page in pages for item in page.get("Contents", [])}
    except client.exceptions.NoSuchBucket as error:
        raise NotFoundError(
            f"There is no bucket {bucket}.", fix="set model_id to a prefix that holds a model"
        ) from error
    return ModelFolder(
        {name: item["Size"] for name, item in objects.items()},
        lambda name: bytes(client.get_object(Bucket=bucket, Key=prefix + name)["Body"].read()),
        _hash((name, item["ETag"]) for name, item in objects.items() if name != DESCRIPTION),
    )


def _on_disk(folder: Path) -> ModelFolder:
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder {folder}.", fix="set model_id to a folder that holds a model")
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    found = ModelFolder(
        {name: path.stat().st_size for name, path in files.items()}, lambda name: files[name].read_bytes(), ""
    )
    # Reading all weights would take as long as sending them; who changes them changes their time.
    marks = [(name, hashlib.sha256(found.read(name)).hexdigest()) for name in found.small]
    marks += [(name, str(path.stat().st_mtime_ns)) for name, path in files.items() if name.endswith(".safetensors")]
    return dataclasses.replace(found, revision=_hash(marks))


def _hash(marks: Any) -> str:
    return hashlib.sha256(json.dumps(sorted(marks)).encode()).hexdigest()[:40]


def require_files(reference: Reference, files: Mapping[str, int]) -> None:
    """Raises NotFoundError where there is no model, SettingsError where it lacks what is needed to train it."""
    if "config.json" not in files:
        shown = f"only {', '.join(sorted(files)[:5])}" if files else "nor anything else"
        raise NotFoundError(
            f"{reference.text} holds no model: there is no config.json in it, {shown}.",
            fix="set model_id to where config.json, tokenizer.json and the weights lie side by side",
        )
    if "tokenizer.json" not in files:
        raise SettingsError(
            f"{reference.text} has no tokenizer.json.",
            fix="load its tokenizer with transformers' AutoTokenizer and save it with save_pretrained beside the model",
        )
    whole = supported.weight_files({})[0]
    if whole not in files and supported.INDEX not in files:
        raise SettingsError(
            f"{reference.text} has no {whole}, in one piece or with an index; pickled weights are not loaded.",
            fix="load the model with transformers and save it with save_pretrained, which writes safetensors",
        )


def described(reference: Reference, folder: ModelFolder) -> BaseModel:
    """The model by its own config.json. Raises SettingsError when train.py could not train it, with the reason."""
    require_files(reference, folder.files)
    config = json.loads(folder.read("config.json"))
    if reason := supported.obstacle(config):
        raise SettingsError(f"{reference.text} cannot be trained: {reason}.", valid=supported.SUPPORTED)
    if missing := sorted(set(folder.weights) - set(folder.files)):
        raise SettingsError(f"{reference.text} is not complete: {', '.join(missing[:3])} missing.", fix="copy it again")
    shape = fit.memory.Shape.from_config(config)
    size = sum(folder.files[name] for name in folder.weights)
    stored = 4 if size > 3 * shape.weights else 2
    text = config.get("text_config") or config
    head = text.get("d_kv") or text.get("head_dim") or shape.query // shape.heads
    name = PurePosixPath(reference.name).name
    is_hub = reference.kind == "hub"
    model = BaseModel(
        model_id=short_name(reference.name),
        title=reference.name if is_hub else name,
        family="seq2seq" if config.get("is_encoder_decoder") else "causal",
        hub_id=reference.name if is_hub else "",
        source="" if is_hub else reference.name,
        revision=folder.revision,
        licence=folder.licence,
        parameters=size // stored,
        decoder_layers=shape.cross_layers or shape.layers,
        hidden=shape.hidden,
        intermediate=shape.feed_forward,
        heads=shape.heads,
        kv_heads=shape.key_value // head,
        head_size=head,
        vocabulary=shape.vocabulary,
        context=supported.longest_row(config),
        tied=shape.tied,
        gated=folder.gated,
        stored_bytes=stored,
        attention=shape.attention,
    )
    return dataclasses.replace(model, instance=_instance(model))


def short_name(name: str) -> str:
    """From the end of a model's name one for jobs and S3 keys, none of the catalogue's."""
    short = paths.slug(PurePosixPath(name).name, limit=40) or "model"
    return f"{short}-own" if short in {model.model_id for model in catalog.BASE_MODELS} else short


def _instance(model: BaseModel) -> str:
    length = min(_LENGTH, model.context)
    ways = (fit.smallest_instance(model, method=method, rank=_RANK, max_length=length) for method in ("lora", "qlora"))
    return next(filter(None, ways), _LARGEST)
