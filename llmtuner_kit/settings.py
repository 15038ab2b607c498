"""One pydantic model per notebook: the single source of fields, defaults, limits and help.

The parameters cell of a notebook, its form, the headless runner and the run record all take
their fields from here. `load("train", {...})` checks everything at once and raises one SettingsError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from llmtuner_kit import catalog, model_names, paths
from llmtuner_kit.errors import SettingsError
from llmtuner_kit.run_settings import Instance, Label, Model, NetworkSettings, RunSettings, Text
from llmtuner_kit.setting_problems import no_setting, problems


class StartSettings(RunSettings):
    """00_start: check the environment, open or create a run."""

    run_name: Label = Field("", description="name of the run to create or resume; empty: a new name from today's date")
    model_id: Model = Field(
        "smollm2-135m-instruct",
        description="base model to tune: one of the list, a Hub name, an s3:// prefix or a folder",
    )

    @field_validator("model_id")
    @classmethod
    def _named(cls, value: str) -> str:
        return model_names.parse(value).text


class UploadSettings(RunSettings):
    """01_upload: files into the user's own prefix."""

    source: str = Field("", description="a file or a folder on this machine")
    dataset: Label = Field("", description="name of the dataset; empty: the name of the file or folder")

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        return str(Path(value).expanduser()) if value else value


class PrepareSettings(NetworkSettings):
    """02_prepare: files into instruction data, with a report on every row."""

    source: str = Field(
        "", description="S3 prefix to prepare where it lies, such as s3://bucket/folder/; empty: what 01_upload brought"
    )
    dataset: Label = Field("", description="name of the dataset; empty: the uploaded one, or the end of source")
    leave_out: str = Field(
        "README*, LICENSE*, CHANGELOG*",
        description="file names not to prepare, with * for anything and commas between them",
    )
    shape: Literal[
        "auto",
        "instruction",
        "prompt-completion",
        "messages",
        "conversations",
        "chat-export",
        "question-answer",
        "columns",
        "text",
        "documentation",
    ] = Field("auto", description="how to read rows; auto: recognise it and say so")
    instruction_column: str = Field(
        "", description="column or key with the question or task; where files differ, several with commas between"
    )
    input_column: str = Field("", description="column or key with the text that the question is about, or several")
    output_column: str = Field(
        "", description="column or key with the answer to learn, or several; of a WhatsApp chat the name of who answers"
    )
    instruction_template: Text = Field("", description="instruction of every row, {column} for what the row has there")
    input_template: Text = Field("", description="input of every row, made from columns in the same way")
    output_template: Text = Field("", description="answer of every row, made from columns in the same way")
    system_template: Text = Field("", description="system message before every row; empty: the data's own")
    max_length: int = Field(
        0, ge=0, le=131072, description="longest row in tokens; 0: the model's own limit, at most 2048"
    )
    passage_tokens: int = Field(
        256, ge=32, le=8192, description="length of the passages plain text is cut into, in tokens"
    )
    long_rows: Literal["split", "cut", "drop", "stop"] = Field(
        "cut",
        description="rows over the limit; split: into several, cut: without their end, drop: left out, stop: refused",
    )
    splits_from: Literal["content", "file-names"] = Field(
        "content", description="content: dealt by what rows say; file-names: as your train, validation and test files"
    )
    validation_share: float = Field(0.1, ge=0, le=0.5, description="share of rows used to watch training")
    test_share: float = Field(0.1, ge=0, le=0.5, description="share of rows kept back for base against tuned")
    stratify: bool = Field(False, description="divide each file on its own, so that every split has rows of all")
    near_duplicates: Literal["drop", "keep"] = Field(
        "drop", description="what to do with rows that are almost the same"
    )
    mask_personal_data: bool = Field(
        False, description="replace emails, phone and card numbers and keys by placeholders"
    )
    show_rows: str = Field("1-3", description="rows of the training split to show token by token, such as 1-3, 17")
    compute: Literal["here", "processing-job"] = Field(
        "here",
        description="here: on this machine; processing-job: as a SageMaker Processing job on one machine, for large data",
    )
    instance_type: str = Field(
        "ml.m5.2xlarge",
        description="the one machine of the processing job; duplicates are looked for among all rows",
        json_schema_extra={"choices": "processing_instances"},
    )
    max_runtime_minutes: int = Field(120, ge=1, le=7200, description="hard limit of the processing job")
    budget_usd: float = Field(
        0.0, ge=0, description="most you will pay for the processing job in USD; needed where jobs are charged"
    )
    role_arn: str = Field("", description="IAM role that the job runs as; empty: the account's role llmtuner-execution")

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        if value:
            bucket, _ = paths.split_uri(value)
            if not bucket:
                raise ValueError(f"{value!r} names no bucket; valid: s3://bucket/folder/")
        return value

    @field_validator("show_rows")
    @classmethod
    def _rows(cls, value: str) -> str:
        row_numbers(value)
        return value

    @field_validator("instance_type")
    @classmethod
    def _instance(cls, value: str) -> str:
        return catalog.processing_instance(value).instance_type


def row_numbers(text: str, most: int = 20) -> list[int]:
    """`1-3, 17` -> [1, 2, 3, 17]; at most `most` of them. Raises ValueError for anything else."""
    found: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([1-9]\d{0,8})(?:\s*-\s*([1-9]\d{0,8}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first >= most:
            raise ValueError(f"{part!r} names no rows; valid: numbers and short ranges, such as 1-3, 17")
        found += range(first, last + 1)
    if len(found) > most:
        raise ValueError(f"{len(found)} rows are too many to show; valid: at most {most}")
    return found


class TrainSettings(NetworkSettings):
    """03_train: quote, then a LoRA training job."""

    model_id: Model = Field("", description="base model to tune; empty: the one chosen in 00_start")
    method: Literal["lora", "rslora", "dora", "qlora", "full"] = Field(
        "lora",
        description="lora: a small adapter; rslora, dora: kinds of it; qlora: in less memory, GPU only; full: all weights",
    )
    epochs: float = Field(
        1.0,
        ge=0.001,
        le=100,
        description="passes over the training rows; more: learnt better, too many: learnt by heart",
    )
    max_steps: int = Field(0, ge=0, description="stop after this many steps; 0: by epochs")
    learning_rate: float = Field(
        2e-4,
        gt=0,
        le=0.1,
        description="how far a step moves the weights; too high: the loss jumps, too low: it hardly falls",
    )
    lora_r: int = Field(
        16, ge=1, le=512, description="size of the adapter (its rank); larger learns more and takes more memory"
    )
    lora_alpha: int = Field(32, ge=1, le=2048, description="how much the adapter counts; usually twice its rank")
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the adapter left out at random in each step, against learning by heart"
    )
    max_length: int = Field(0, ge=0, le=131072, description="longest row in tokens (pieces of words); 0: as prepared")
    batch_tokens: int = Field(4096, ge=64, le=4194304, description="tokens that a step learns from; fewer: more steps")
    seed: int = Field(
        42,
        ge=0,
        le=2**31 - 1,
        description="any number; the same one gives the same order of rows and the same training",
    )
    evaluation_samples: int = Field(
        3,
        ge=0,
        le=50,
        description="held-out prompts answered by base and tuned in the job, unless GPUs share the weights",
    )
    instance_type: Instance = Field("", description="machine on SageMaker; empty: the one that suits the base model")
    instance_count: int = Field(1, ge=1, le=16, description="how many of these machines train together")
    spot: bool = Field(False, description="managed spot: cheaper, may be interrupted, resumes from its checkpoint")
    max_runtime_minutes: int = Field(0, ge=0, le=40320, description="hard limit; 0: from the quote or the budget")
    budget_usd: float = Field(
        0.0, ge=0, description="most you will pay for this job in USD; needed where jobs are charged"
    )
    role_arn: str = Field("", description="IAM role that it runs as; empty: the account's role llmtuner-execution")
    kms_key_id: str = Field("", description="KMS key of the model archive; empty: the bucket's own encryption")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.method == "full" and self.lora_dropout:
            raise ValueError("lora_dropout belongs to an adapter; with method full set lora_dropout to 0")
        return self


class MonitorSettings(RunSettings):
    """04_monitor: watch a training job."""

    job_name: str = Field("", description="name of the training job; empty: the one this run started")
    poll_seconds: float = Field(2.0, ge=0.2, le=300, description="seconds between two looks at the job")
    log_lines: int = Field(15, ge=0, le=200, description="log lines to show")
    stop: bool = Field(False, description="stop the job; what it has saved is kept")


class DownloadSettings(RunSettings):
    """05_download: a presigned link and a verified local copy."""

    job_name: str = Field("", description="name of the training job; empty: the one this run started")
    link_minutes: int = Field(60, ge=1, le=720, description="how many minutes the download link works")
    folder: str = Field("downloads", description="folder on this machine for the archive; empty: link only")
    unpack: bool = Field(True, description="unpack the archive and check every file against its manifest")


class DeploySettings(NetworkSettings):
    """06_deploy: a real-time endpoint with autoscaling."""

    job_name: str = Field("", description="training job whose model to deploy; empty: the one of this run")
    endpoint_name: str = Field("", description="name of the endpoint; empty: from the job's name")
    instance_type: Instance = Field("", description="machine on SageMaker; empty: the one that suits the base model")
    min_instances: int = Field(1, ge=1, le=64, description="fewest instances")
    max_instances: int = Field(1, ge=1, le=64, description="most instances; above the fewest: autoscaling")
    invocations_per_instance: int = Field(
        60, ge=1, description="invocations a minute and instance that autoscaling aims at"
    )
    time_to_live_minutes: int = Field(
        120, ge=5, le=43200, description="after this time `llmtuner guard --delete` deletes it; nothing does by itself"
    )
    budget_usd: float = Field(
        0.0, ge=0, description="most you will pay for its time to live in USD; needed where endpoints are charged"
    )
    role_arn: str = Field("", description="IAM role that it runs as; empty: the account's role llmtuner-execution")
    kms_key_id: str = Field(
        "", description="KMS key of the endpoint's volume; a GPU instance's own disks have their hardware's"
    )

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.max_instances < self.min_instances:
            raise ValueError(f"max_instances ({self.max_instances}) is below min_instances ({self.min_instances})")
        return self


class InvokeSettings(RunSettings):
    """07_invoke: prompts to the endpoint, base against tuned."""

    endpoint_name: str = Field("", description="name of the endpoint to ask; empty: the one this run deployed")
    prompt: Text = Field("", description="what to ask; empty: a held-out row of the dataset")
    compare: int = Field(6, ge=0, le=50, description="held-out prompts to answer with base and tuned side by side")
    max_new_tokens: int = Field(160, ge=1, le=4096, description="longest answer in tokens")
    temperature: float = Field(
        0.0, ge=0, le=2, description="0: always the likeliest token; higher: more varied answers"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the likeliest tokens up to this share; 1: from all")
    stream: bool = Field(True, description="show the answer while it is written")


class CleanupSettings(RunSettings):
    """08_cleanup: receipt, and delete what still costs money."""

    delete_endpoint: bool = Field(
        True, description="delete the endpoint of this run, its configuration and model entry"
    )
    stop_job: bool = Field(True, description="stop the jobs of this run that are still running")
    delete_checkpoints: bool = Field(True, description="delete the checkpoints of jobs that have written their model")
    delete_uploads: bool = Field(False, description="delete all files that this run has uploaded")
    delete_model: bool = Field(False, description="delete the tuned model archive of this run")


STEPS: dict[str, type[RunSettings]] = {
    "start": StartSettings,
    "upload": UploadSettings,
    "prepare": PrepareSettings,
    "train": TrainSettings,
    "monitor": MonitorSettings,
    "download": DownloadSettings,
    "deploy": DeploySettings,
    "invoke": InvokeSettings,
    "cleanup": CleanupSettings,
}


def notebook_of(step: str) -> str:
    """The notebook that is the face of a step: `train` -> `03_train`."""
    return f"{list(STEPS).index(step):02d}_{step}"


def load(step: str, values: Mapping[str, Any]) -> RunSettings:
    """Check values against the settings of a step; raises one SettingsError that lists every problem."""
    model = STEPS.get(step)
    if model is None:
        raise SettingsError(f"There is no step {step!r}.", valid=", ".join(STEPS))
    try:
        return model(**values)
    except ValidationError as error:
        raise SettingsError.of(
            problems(error, model),
            fix="change the fields in the form, or pass them with -p NAME VALUE in a headless run",
        ) from None


def unknown_names(step: str, names: Sequence[str]) -> SettingsError:
    """The error for names that are no settings of a step, each with the one that may have been meant."""
    fields = STEPS[step].model_fields
    return SettingsError.of(
        [f"{name}: {no_setting(name, fields)}" for name in names],
        fix=f"the settings of {notebook_of(step)} are {', '.join(fields)}",
    )


def values_of(field: FieldInfo) -> list[Any]:
    """The values that can be chosen for a field; empty where it is written in freely."""
    if get_origin(field.annotation) is Literal:
        return list(get_args(field.annotation))
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    offered: dict[str, list[Any]] = {
        "models": [model.model_id for model in catalog.BASE_MODELS],
        "instances": [item.instance_type for item in catalog.INSTANCES],
        "processing_instances": [item.instance_type for item in catalog.PROCESSING_INSTANCES],
    }
    return offered.get(str(extra.get("choices")), [])
