"""Base models: those of the catalogue, and any other of a supported kind from the Hub, an S3 prefix or a folder.

resolve(text, s3)            what somebody has written -> the model, by its own config.json
remember(workspace, model)   keep what is known of it in the user's prefix, under its revision
of_run(run)                  the model of a run, as it was when the run began
of_job(workspace, job)       the model that a training job was started on

A model that is not in the catalogue is described once, when a run begins with it. Later notebooks, also on another
machine, read that description, so that a run stays with one revision.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtuner_kit import catalog, hub, model_folders, model_names
from llmtuner_kit.aws import ClientError, is_error
from llmtuner_kit.catalog import BaseModel
from llmtuner_kit.errors import ConflictError, NotFoundError
from llmtuner_kit.model_folders import DESCRIPTION, S3, ModelFolder, supported
from llmtuner_kit.model_names import TOKENIZER_FILES, Reference
from llmtuner_kit.runs import Run
from llmtuner_kit.workspace import Workspace

DEFAULT = "smollm2-135m-instruct"


def resolve(text: str, s3: S3) -> BaseModel:
    """The base model of a name as in `model_names`.

    Raises NotFoundError when there is none, SettingsError when it cannot be trained, with the reason.
    """
    reference = model_names.parse(text)
    if reference.kind == "catalogue":
        return catalog.base_model(reference.name)
    if reference.kind == "hub":
        return _of_hub(reference)
    return model_folders.described(reference, model_folders.open_folder(reference.name, s3))


@functools.lru_cache(maxsize=32)
def _of_hub(reference: Reference) -> BaseModel:
    """Looked up once: a form asks at each change."""
    info = hub.look_up(reference.name, reference.revision)
    model_folders.require_files(reference, info.files)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        hub.fetch(info.name, info.commit, ("config.json", supported.INDEX), folder)
        found = ModelFolder(
            info.files, lambda name: (folder / name).read_bytes(), info.commit, info.licence, info.gated
        )
        return model_folders.described(reference, found)


def revision(model: BaseModel) -> str:
    """What names the weights: the Hub's commit, or a hash of the folder, also of one that ships offline."""
    return catalog.base_model_revision(model.model_id) if model.embedded else model.revision


def remember(workspace: Workspace, model: BaseModel) -> None:
    """Keep a model's description in the user's prefix, and its small files where it comes from a folder or a prefix."""
    if model in catalog.BASE_MODELS or _read(workspace, model.model_id, model.revision):
        return
    client, prefix = workspace.aws.client("s3"), workspace.paths.base_model(model.model_id, model.revision)
    if model.source:
        found = unchanged(workspace, model)
        for name in found.small:
            client.put_object(Bucket=workspace.bucket, Key=prefix + name, Body=found.read(name))
    description = json.dumps(dataclasses.asdict(model), indent=1).encode()
    client.put_object(Bucket=workspace.bucket, Key=prefix + DESCRIPTION, Body=description)


def staged_folder(workspace: Workspace, model: BaseModel) -> ModelFolder:
    """A remembered model's files in the user's prefix, with or without its weights."""
    prefix = workspace.paths.base_model(model.model_id, model.revision)
    return model_folders.open_folder(workspace.paths.uri(prefix), lambda: workspace.aws.client("s3"))


def unchanged(workspace: Workspace, model: BaseModel) -> ModelFolder:
    """The files a model comes from. Raises ConflictError when they are not those it was described by."""
    found = model_folders.open_folder(model.source, lambda: workspace.aws.client("s3"))
    if found.revision != model.revision:
        raise ConflictError(
            f"The base model in {model.source} has changed since the run began with it.",
            fix="run 00_start and 02_prepare with a new run_name, or put the files back",
        )
    return found


def known(workspace: Workspace, model_id: str, model_revision: str) -> BaseModel:
    """The model of this name (the kit's or the Hub's) at this revision. Raises NotFoundError."""
    listed = next((model for model in catalog.BASE_MODELS if model_id in (model.model_id, model.hub_id)), None)
    if listed and (listed.embedded or listed.revision == model_revision):
        return listed
    found = _read(workspace, model_folders.short_name(model_id), model_revision) or listed
    if found is None:
        raise NotFoundError(
            f"Nothing is known of the base model {model_id} at revision {model_revision[:12]}.",
            fix="run 00_start with it as model_id",
        )
    return found


def _read(workspace: Workspace, model_id: str, model_revision: str) -> BaseModel | None:
    """The description under a revision, which never changes."""
    client = workspace.aws.client("s3")
    key = workspace.paths.base_model(model_id, model_revision) + DESCRIPTION
    try:
        return BaseModel(**json.loads(client.get_object(Bucket=workspace.bucket, Key=key)["Body"].read()))
    except ClientError as error:
        if is_error(error, "NoSuchKey", "404"):
            return None
        raise


def of_run(run: Run, asked: str = "") -> BaseModel:
    """The base model asked for, else the one the run has begun with, else the one its data was prepared for."""
    start = run.section("start") or {}
    begun = str((start.get("settings") or {}).get("model_id") or "")
    pinned = (start.get("result") or {}).get("base_model")
    if pinned and (not asked or asked == begun):
        return known(run.workspace, pinned["model_id"], pinned["revision"])
    prepared = (run.section("prepare") or {}).get("result") or {}
    return resolve(asked or begun or prepared.get("model_id") or DEFAULT, lambda: run.workspace.aws.client("s3"))


def of_job(workspace: Workspace, job: Mapping[str, Any]) -> BaseModel:
    """The base model of a described training job."""
    asked = job["HyperParameters"]
    return known(workspace, asked["model_id"], asked.get("model_revision", ""))


def tokenizer_folder(workspace: Workspace, model: BaseModel) -> Path:
    """A folder on this machine with the model's tokenizer, fetched once."""
    if model.embedded:
        return catalog.base_model_folder(model.model_id)
    name = model.model_id if model in catalog.BASE_MODELS else f"{model.model_id}-{model.revision[:12]}"
    folder = catalog.cache_folder() / "models" / name
    if (folder / "tokenizer.json").exists():
        return folder
    if model.hub_id:
        hub.fetch(model.hub_id, model.revision, TOKENIZER_FILES, folder)
        return folder
    client, prefix = workspace.aws.client("s3"), workspace.paths.base_model(model.model_id, model.revision)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        for item in client.list_objects_v2(Bucket=workspace.bucket, Prefix=prefix)["Contents"]:
            if (file := item["Key"].removeprefix(prefix)) in TOKENIZER_FILES:
                client.download_file(workspace.bucket, item["Key"], str(Path(place) / file))
        shutil.copytree(place, folder, dirs_exist_ok=True)
    return folder
