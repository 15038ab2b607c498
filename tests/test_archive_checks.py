"""An archive is paid for only when it is the one the job has checked: planted faults are refused before an endpoint."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from packed import tar

from llmtuner_kit import archive_checks, artifacts
from llmtuner_kit.errors import IntegrityError
from llmtuner_kit.workspace import Workspace

FILES = {
    name: f"content of {name}".encode()
    for name in (
        "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja",
        "parity.json", "model.safetensors", "adapter/adapter_model.safetensors", "code/inference.py", "code/serve.py",
    )
}  # fmt: skip
MANIFEST: dict[str, Any] = {
    "format": 1,
    "base": {"model_id": "tiny-llama", "revision": "abc", "family": "causal"},
    "dataset_sha256": "d" * 64,
    "parity": {"mean_difference": 0.01, "largest_difference": 0.1},
    "files": {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in sorted(FILES.items())
    },
}
JOB: dict[str, Any] = {
    "TrainingJobName": "demo-1",
    "HyperParameters": {
        "model_id": "tiny-llama",
        "model_revision": "abc",
        "family": "causal",
        "dataset_sha256": "d" * 64,
    },
}


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def stored(workspace: Workspace, archive: dict[str, bytes], record: dict[str, Any] | None = MANIFEST) -> None:
    """What a finished job leaves in S3."""
    client = workspace.aws.client("s3")
    beside = {"evaluation.json": b"{}", **({"manifest.json": as_json(record)} if record else {})}
    for key, files in (
        (workspace.paths.model_archive("demo-1"), archive),
        (workspace.paths.output_archive("demo-1"), beside),
    ):
        client.put_object(Bucket=workspace.bucket, Key=key, Body=tar(files, "w:gz"))


def checked(workspace: Workspace, *, ended: timedelta = timedelta()) -> dict[str, Any]:
    """The check of a job that ended so much later than now."""
    key = workspace.paths.model_archive("demo-1")
    head = workspace.aws.client("s3").head_object(Bucket=workspace.bucket, Key=key)
    return archive_checks.require_checked(workspace, JOB | {"TrainingEndTime": datetime.now(UTC) + ended}, head)


AN_HOUR_AGO = timedelta(hours=-1)


def test_the_record_beside_an_untouched_archive_is_enough(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(workspace, {"weights": b"would be gigabytes"})
    monkeypatch.setattr(artifacts, "verify", lambda _: pytest.fail("the archive was fetched"))
    assert checked(workspace) == MANIFEST


def test_an_archive_written_again_is_read_whole_and_served_when_it_is_the_same(workspace: Workspace) -> None:
    stored(workspace, FILES | {"manifest.json": as_json(MANIFEST)})
    assert checked(workspace, ended=AN_HOUR_AGO) == MANIFEST
    stored(workspace, FILES | {"manifest.json": as_json(MANIFEST)}, record=None)
    assert checked(workspace) == MANIFEST


def test_a_file_changed_after_the_job_is_named(workspace: Workspace) -> None:
    stored(workspace, FILES | {"generation_config.json": b"wrong eos", "manifest.json": as_json(MANIFEST)})
    with pytest.raises(IntegrityError, match=r"generation_config\.json has other bytes"):
        checked(workspace, ended=AN_HOUR_AGO)


def test_an_archive_made_new_with_a_manifest_of_its_own_is_refused(workspace: Workspace) -> None:
    files = FILES | {"model.safetensors": b"merged in fp16"}
    manifest = copy.deepcopy(MANIFEST)
    manifest["files"]["model.safetensors"]["sha256"] = hashlib.sha256(files["model.safetensors"]).hexdigest()
    stored(workspace, files | {"manifest.json": as_json(manifest)})
    with pytest.raises(IntegrityError, match=r"was changed at .* after the job ended"):
        checked(workspace, ended=AN_HOUR_AGO)


def test_an_archive_that_was_never_finished_is_refused(workspace: Workspace) -> None:
    stored(workspace, FILES, record=None)
    with pytest.raises(IntegrityError, match=r"no manifest\.json"):
        checked(workspace)


def without(*names: str) -> Callable[[dict[str, Any]], None]:
    def spoil(manifest: dict[str, Any]) -> None:
        for name in names:
            manifest["files"].pop(name)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda m: m.update(format=2), "its format is 2"),
        (lambda m: m["base"].update(model_id="llama-2-7b"), "its base is llama-2-7b"),
        (lambda m: m["base"].update(revision="other"), "its base is tiny-llama at other"),
        (lambda m: m["base"].update(family="seq2seq"), "holds a seq2seq model"),
        (lambda m: m.update(dataset_sha256="e" * 64), "another dataset"),
        (lambda m: m.pop("parity"), "never compared"),
        (without("chat_template.jinja"), r"chat_template\.jinja is missing"),
        (without("tokenizer_config.json"), r"tokenizer_config\.json is missing"),
        (without("generation_config.json"), r"generation_config\.json is missing"),
        (without("parity.json"), r"parity\.json is missing"),
        (without("code/inference.py"), r"code/inference\.py is missing"),
        (without("model.safetensors"), "no weights"),
    ],
)
def test_a_planted_fault_in_the_record_is_found(spoil: Callable[[dict[str, Any]], None], text: str) -> None:
    manifest = copy.deepcopy(MANIFEST)
    assert archive_checks.problems(manifest, JOB) == []
    spoil(manifest)
    (found,) = archive_checks.problems(manifest, JOB)
    assert re.search(text, found)


def test_a_job_whose_record_has_a_fault_is_refused(workspace: Workspace) -> None:
    stored(workspace, FILES, record=MANIFEST | {"dataset_sha256": "e" * 64})
    with pytest.raises(IntegrityError, match="another dataset"):
        checked(workspace)
