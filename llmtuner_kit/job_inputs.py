"""What a training job was made from, and the job that another version of the training code made from the same.

The name of a job carries the hash of the code it runs, so that changed code is another job. After an update of the kit
that alone is no reason to pay for the same training twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtuner_kit.aws import described
from llmtuner_kit.runs import Run
from llmtuner_kit.settings import TrainSettings

_NOT_TRAINED_ON = "kit_version"


def same(found: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Whether a described job has the inputs of a CreateTrainingJob request, apart from the code."""
    return (
        _hyperparameters(found, request) == _hyperparameters(request, found)
        and _machines(found) == _machines(request)
        and _output(found) == _output(request)
    )


def of_other_code(run: Run, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The newest job of the run from the same inputs, whatever code it runs; as described, or None.

    One that runs counts, and one that has completed where that was paid for: elsewhere changed code is tried for nothing.
    """
    workspace = run.workspace
    wanted = ("InProgress", "Completed") if workspace.aws.charged else ("InProgress",)
    describe = workspace.aws.client("sagemaker").describe_training_job
    for name, facts in reversed(run.noted("jobs").items()):
        found = described(describe, TrainingJobName=name) if facts["kind"] == "training" else None
        if found and found["TrainingJobStatus"] in wanted and same(found, request):
            return found
    return None


def _hyperparameters(job: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """A setting that only one version of the kit knows had its default with the other."""
    fields = TrainSettings.model_fields
    defaults = {name: str(fields[name].default) for name in other["HyperParameters"] if name in fields}
    found = defaults | dict(job["HyperParameters"])
    found.pop(_NOT_TRAINED_ON, None)
    return found


def _machines(job: Mapping[str, Any]) -> tuple[Any, ...]:
    resources = job["ResourceConfig"]
    return resources["InstanceType"], resources.get("InstanceCount", 1)


def _output(job: Mapping[str, Any]) -> tuple[str, str]:
    output = job["OutputDataConfig"]
    return output["S3OutputPath"], output.get("KmsKeyId", "")
