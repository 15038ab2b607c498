"""Base models that are in no catalogue: from a folder, a prefix in S3, the Hub; described once, pinned for a run."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from fake_hub import COMMIT, serving

from llmtuner_kit import (
    base_models,
    catalog,
    cleanup,
    dataset,
    endpoint_quotes,
    model_names,
    monitoring,
    runs,
    settings,
    staging,
    start,
    training,
    uploads,
)
from llmtuner_kit.archive_checks import require_checked
from llmtuner_kit.artifacts import archive_head
from llmtuner_kit.aws import object_sizes
from llmtuner_kit.errors import ConflictError, KitError, NotFoundError, SettingsError
from llmtuner_kit.workspace import Workspace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as somebody has saved it, under a name of their own."""
    found = shutil.copytree(catalog.base_model_folder("tiny-llama"), tmp_path / "Kranich Chat v2")
    (found / "base.json").unlink()
    return found


def nowhere() -> object:
    raise AssertionError("S3 was asked")


@pytest.mark.parametrize(
    ("text", "kind", "name", "revision"),
    [
        ("llama-2-7b", "catalogue", "llama-2-7b", ""),
        ("meta-llama/Llama-2-7b-hf", "catalogue", "llama-2-7b", ""),
        ("meta-llama/Llama-2-7b-hf@main", "hub", "meta-llama/Llama-2-7b-hf", "main"),
        ("acme/Model_1.5-it", "hub", "acme/Model_1.5-it", ""),
        ("s3://models-of-acme/chat/v3", "s3", "s3://models-of-acme/chat/v3/", ""),
        ("/data/model", "folder", "/data/model", ""),
    ],
)
def test_a_name_says_where_a_model_is(text: str, kind: str, name: str, revision: str) -> None:
    found = model_names.parse(text)
    assert (found.kind, found.name, found.revision) == (kind, name, revision)
    assert model_names.parse(found.text) == found


@pytest.mark.parametrize("text", ["llama-9", "a/b/c", "acme/model@", "s3://Bad_Bucket/x", "model folder"])
def test_what_is_no_name_is_refused_with_the_ways_to_name_one(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        model_names.parse(text)
    assert "s3" in str(caught.value)


def test_a_folder_describes_its_model_as_the_catalogue_does(folder: Path) -> None:
    listed, found = catalog.base_model("tiny-llama"), base_models.resolve(str(folder), nowhere)
    for name in ("family", "decoder_layers", "hidden", "intermediate", "heads", "kv_heads", "head_size", "context"):
        assert getattr(found, name) == getattr(listed, name), name
    assert (found.model_id, found.title, found.source) == ("kranich-chat-v2", folder.name, str(folder))
    assert found.parameters == pytest.approx((folder / "model.safetensors").stat().st_size / 2, rel=0.02)
    assert found.instance == "ml.g5.xlarge"
    same = shutil.copytree(folder, folder.parent / "tiny-llama")
    assert base_models.resolve(str(same), nowhere).model_id == "tiny-llama-own"


def test_a_t5_in_a_folder_is_an_encoder_decoder(tmp_path: Path) -> None:
    found = base_models.resolve(str(shutil.copytree(catalog.base_model_folder("tiny-t5"), tmp_path / "t5")), nowhere)
    assert (found.family, found.decoder_layers, found.head_size) == ("seq2seq", 2, 16)


def test_a_folder_that_cannot_be_trained_says_why(folder: Path) -> None:
    def refused() -> str:
        with pytest.raises(KitError) as caught:
            base_models.resolve(str(folder), nowhere)
        return str(caught.value)

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_local_experts": 8}))
    assert "with 8 experts in each layer" in refused()
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_kranich.KranichForCausalLM"}}
    (folder / "config.json").write_text(json.dumps(config | code | {"model_type": "kranich"}))
    assert "brings code of its own (auto_map), which is not run: take the model as converted" in refused()
    (folder / "config.json").write_text(json.dumps(config | code))
    assert base_models.resolve(str(folder), nowhere).title == folder.name
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").rename(folder / "spiece.model")
    assert "has no tokenizer.json" in refused()
    (folder / "spiece.model").rename(folder / "tokenizer.json")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickled weights are not loaded" in refused()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "pytorch_model.bin").rename(folder / "model-1.safetensors")
    assert "model-2.safetensors missing" in refused()
    (folder / "config.json").unlink()
    assert "there is no config.json in it" in refused()
    shutil.rmtree(folder)
    assert "There is no folder" in refused()


def begun(workspace: Workspace, model_id: str, tmp_path: Path) -> runs.Run:
    """A run that has begun with a model and has prepared data."""
    file = tmp_path / "sums.jsonl"
    rows = [{"instruction": f"What is {n} plus {n}?", "output": f"It is {n + n}, of course."} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"run_name": "sums", "user_id": workspace.user_id}
    start.begin(settings.StartSettings(**common, model_id=model_id))
    uploads.upload(workspace, settings.UploadSettings(**common, source=str(file)))
    dataset.prepare(workspace, settings.PrepareSettings(**common))
    return runs.open_run(workspace, "sums")


def wanted(workspace: Workspace) -> settings.TrainSettings:
    return settings.TrainSettings(run_name="sums", user_id=workspace.user_id, max_steps=2, evaluation_samples=1)


def completed(workspace: Workspace) -> monitoring.Snapshot:
    watch = settings.MonitorSettings(run_name="sums", user_id=workspace.user_id, poll_seconds=0.2)
    *_, last = monitoring.watch(workspace, watch)
    assert last.status == "Completed", last.failure_reason
    return last


@pytest.mark.slow
def test_a_model_of_ones_own_is_trained_checked_and_quoted_for_serving(
    workspace: Workspace, folder: Path, tmp_path: Path
) -> None:
    run = begun(workspace, str(folder), tmp_path)
    model = base_models.of_run(run)
    job = training.start(workspace, wanted(workspace))
    assert job.request["HyperParameters"]["model_id"] == "kranich-chat-v2"
    assert job.request["HyperParameters"]["model_revision"] == model.revision
    completed(workspace)
    described = training.require_own_job(workspace, job.job_name)
    manifest = require_checked(workspace, described, archive_head(workspace, job.job_name))
    assert manifest["base"] == {"model_id": "kranich-chat-v2", "revision": model.revision, "family": "causal"}
    # The folder is needed no more.
    shutil.rmtree(folder)
    asked = settings.DeploySettings(run_name="sums", user_id=workspace.user_id)
    assert endpoint_quotes.quote(workspace, asked).model == model
    ended = cleanup.clean_up(workspace, settings.CleanupSettings(run_name="sums", user_id=workspace.user_id))
    assert [item for item in ended.kept if item.startswith("base model kranich-chat-v2: 7 objects")]


def test_a_prefix_is_copied_as_it_was_when_the_run_began(workspace: Workspace, folder: Path, tmp_path: Path) -> None:
    client = workspace.aws.client("s3")
    for path in folder.iterdir():
        client.upload_file(str(path), workspace.bucket, f"shared/models/v3/{path.name}")
    source = f"s3://{workspace.bucket}/shared/models/v3/"
    run = begun(workspace, source.rstrip("/"), tmp_path)
    model = base_models.of_run(run)
    assert (model.model_id, model.source) == ("v3", source)
    told: list[tuple[str, int, int, int]] = []
    here = threading.get_ident()
    uri = staging.stage_model(workspace, model, lambda *seen: told.append((*seen, threading.get_ident())))
    prefix = uri.removeprefix(f"s3://{workspace.bucket}/")
    size = (folder / "model.safetensors").stat().st_size
    assert told == [("v3", 0, size, here), ("v3", size, size, here)]
    staged = object_sizes(client, workspace.bucket, prefix)
    assert {name.removeprefix(prefix) for name in staged} == {path.name for path in folder.iterdir()} | {"base.json"}
    assert staged[f"{prefix}model.safetensors"] == (folder / "model.safetensors").stat().st_size
    client.put_object(Bucket=workspace.bucket, Key="shared/models/v3/model.safetensors", Body=b"others")
    assert base_models.of_run(run) == model  # what it was described by stays
    # Nor is its source asked for again, or anything copied.
    assert staging.stage_model(workspace, model, lambda *_: pytest.fail("copied")).endswith(prefix)
    client.delete_object(Bucket=workspace.bucket, Key=f"{prefix}model.safetensors")
    with pytest.raises(ConflictError, match="has changed since the run began"):
        staging.stage_model(workspace, model)
    with pytest.raises(NotFoundError, match="holds no model"):
        base_models.resolve(f"s3://{workspace.bucket}/shared/none/", lambda: client)
    with pytest.raises(NotFoundError, match="There is no bucket"):
        base_models.resolve("s3://no-bucket-of-this-name/model/", lambda: client)


def test_a_folder_s_weights_are_sent_once_with_progress(workspace: Workspace, folder: Path, tmp_path: Path) -> None:
    model = base_models.of_run(begun(workspace, str(folder), tmp_path))
    told: list[tuple[str, int, int]] = []
    for _ in range(2):
        staging.stage_model(workspace, model, lambda *seen: told.append(seen))
    size = (folder / "model.safetensors").stat().st_size
    assert told == [(folder.name, 0, size), (folder.name, size, size)]


def test_what_is_being_copied_in_s3_can_be_interrupted_and_names_its_errors() -> None:
    class Client:
        """Copies in parts, each of which it tells of."""

        parts = 0

        def copy(self, source: dict[str, str], bucket: str, key: str, **options: Callable[[int], None]) -> None:
            if source["Key"] == "gone":
                raise FileNotFoundError(source["Key"])
            for self.parts in range(10**6):
                options["Callback"](10)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    client = Client()
    with pytest.raises(KeyboardInterrupt):
        staging._copy(client, {"a": {"Key": "x"}, "b": {"Key": "y"}}, "bucket", interrupt)
    assert client.parts < 10**6 - 1
    with pytest.raises(FileNotFoundError, match="gone"):
        staging._copy(client, {"a": {"Key": "gone"}}, "bucket", lambda _: None)


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A Hub that has the folder as acme/Kranich-7B, and what it is asked."""
    with serving("acme/Kranich-7B", folder) as (address, asked):
        told(monkeypatch, address, tmp_path)
        yield asked
    base_models._of_hub.cache_clear()


def told(monkeypatch: pytest.MonkeyPatch, address: str, tmp_path: Path) -> None:
    """Send the Hub's client to an address; it reads its environment but once."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("LLMTUNER_CACHE", str(tmp_path / "cache"))


def test_a_model_of_the_hub_is_looked_up_once_and_pinned_to_its_commit(
    workspace: Workspace,
    hub: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = begun(workspace, "acme/Kranich-7B", tmp_path)
    assert "Fetching" not in capfd.readouterr().err
    # From here on the Hub is not asked again.
    told(monkeypatch, "http://127.0.0.1:9", tmp_path)
    base_models._of_hub.cache_clear()
    model = base_models.of_run(run)
    assert (model.hub_id, model.revision, model.licence) == ("acme/Kranich-7B", COMMIT, "apache-2.0")
    asked = wanted(workspace)
    plan = training.make_plan(workspace, asked, run, training.quote(workspace, asked, run))
    request = training.training_job_request(plan)
    assert (plan.model_uri, request["Environment"]["HF_ENDPOINT"]) == ("", "http://127.0.0.1:9")
    values = request["HyperParameters"]
    assert (values["model_id"], values["model_revision"]) == ("acme/Kranich-7B", COMMIT)
    assert base_models.of_job(workspace, {"HyperParameters": values}) == model
    with pytest.raises(NotFoundError, match="The Hub cannot be asked for acme/other"):
        base_models.resolve("acme/other", nowhere)


@pytest.mark.slow
def test_a_job_fetches_its_model_from_the_hub_at_the_commit_that_was_looked_up(
    workspace: Workspace, hub: list[str], tmp_path: Path
) -> None:
    begun(workspace, "acme/Kranich-7B", tmp_path)
    before = len(hub)
    job = training.start(workspace, wanted(workspace))
    assert completed(workspace).model_uri == job.model_uri
    fetched = {line.rpartition("/")[2] for line in hub[before:] if f"/resolve/{COMMIT}/" in line}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= fetched


def test_what_the_hub_does_not_have_or_keeps_behind_a_gate_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving("acme/gated", folder, token="hf_" + "x" * 12) as (address, _):
        told(monkeypatch, address, tmp_path)
        with pytest.raises(KitError, match=r"acme/gated is gated on the Hub.\nNext: accept its licence at"):
            base_models.resolve("acme/gated", nowhere)
        with pytest.raises(NotFoundError, match="acme/other is not on the Hub, or is private"):
            base_models.resolve("acme/other", nowhere)


def test_a_job_whose_model_nobody_described_is_told(workspace: Workspace) -> None:
    job = {"HyperParameters": {"model_id": "acme/lost", "model_revision": "abc"}}
    with pytest.raises(NotFoundError, match=r"Nothing is known of the base model acme/lost at revision abc"):
        base_models.of_job(workspace, job)
