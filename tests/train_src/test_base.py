"""Where a base model comes from: a Hub that answers on this machine, with a gate and a token."""

import errno
import json
import logging
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from fake_hub import COMMIT, serving
from test_train import start
from tiny_jobs import JobMaker

import base as base_module
from base import Base, fetch_weights, locate_base
from failures import TrainingError
from folders import Folders
from hyperparameters import Hyperparameters

TOKEN = "hf_" + "secretsecretsecret"


@pytest.fixture
def hub(models: dict[str, Path], tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The Hub's address, and what it is asked. Its model has its weights twice, as Mistral 7B has."""
    folder = shutil.copytree(models["causal"], tmp_path / "hub")
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    with serving("acme/gated", folder, token=TOKEN) as (address, asked):
        yield address, asked


@pytest.fixture
def job(make_job: JobMaker, tmp_path: Path, hub: tuple[str, list[str]]) -> tuple[Path, dict[str, str]]:
    """A job whose base model is on the Hub, and its environment."""
    base = make_job(model_id="acme/gated", max_steps=1)
    (base / "input" / "data" / "model").unlink()
    return base, {"HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "", "HF_HUB_DISABLE_XET": "1"}


def test_a_gated_model_without_a_token_stops_the_job_before_torch_is_loaded(job: tuple[Path, dict[str, str]]) -> None:
    base, environment = job
    with start(base, **environment) as process:
        text = process.communicate()[0]
    assert process.returncode == 1
    reason = (base / "output" / "failure").read_text()
    assert reason.startswith(
        "acme/gated is gated: accept its licence on its Hugging Face page, then give the job a token"
    )
    assert "data checked" not in text


def test_with_a_token_small_files_come_first_and_no_log_ever_shows_it(
    job: tuple[Path, dict[str, str]], hub: tuple[str, list[str]]
) -> None:
    base, environment = job
    with start(base, **{**environment, "HF_TOKEN": TOKEN}) as process:
        text = process.communicate()[0]
    assert process.returncode == 0, text
    fetched = [line.rpartition("/")[2] for line in hub[1] if line.startswith("GET") and "/resolve/" in line]
    assert [name for name in fetched if name.endswith(".safetensors")] == ["model.safetensors"]
    assert fetched[-1] == "model.safetensors"
    assert text.index("data checked") < text.index("downloading the weights of acme/gated")
    written = [
        path.read_bytes() for part in ("model", "output", "checkpoints") for path in (base / part).rglob("*.json")
    ]
    assert TOKEN not in text
    assert not any(TOKEN.encode() in content for content in written)
    manifest = json.loads((base / "model" / "manifest.json").read_text())
    assert manifest["base"] == {"model_id": "acme/gated", "revision": COMMIT, "family": "causal"}


def test_of_weights_in_several_files_those_of_the_index_are_fetched_and_a_full_disk_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weights = {"weight_map": {"a": parts[0], "b": parts[1], "c": parts[0]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(weights))

    def full(_: str, **options: object) -> None:
        assert options["allow_patterns"] == parts
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(TrainingError, match="the disk is too small for the weights of acme/large: give the job"):
        fetch_weights(Base(tmp_path, "acme/large", COMMIT, {}, hub_id="acme/large"), COMMIT)


def test_a_model_the_hub_does_not_know_is_named(job: tuple[Path, dict[str, str]]) -> None:
    base, environment = job
    path = base / "input" / "config" / "hyperparameters.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_id": "acme/nothing"}))
    with start(base, **environment) as process:
        process.communicate()
    assert process.returncode == 1
    assert (base / "output" / "failure").read_text().startswith("acme/nothing is not on the Hugging Face Hub")


@pytest.mark.parametrize("secret", [TOKEN, json.dumps({"HF_TOKEN": TOKEN})])
def test_the_token_comes_from_secrets_manager_by_its_arn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, secret: str
) -> None:
    asked = []

    class Client:
        def get_secret_value(self, **request: str) -> dict[str, str]:
            asked.append(request["SecretId"])
            return {"SecretString": secret}

    def client(service: str, region_name: str) -> Client:
        asked.append(f"{service} {region_name}")
        return Client()

    monkeypatch.setitem(sys.modules, "boto3", types.SimpleNamespace(client=client))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    arn = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:hub-AbCdEf"
    monkeypatch.setenv("HF_TOKEN_SECRET_ARN", arn)
    with caplog.at_level(logging.DEBUG):
        assert base_module._hub_token() == TOKEN
    assert asked == ["secretsmanager eu-west-1", arn]
    assert TOKEN not in caplog.text


def test_a_secret_that_cannot_be_read_is_named_with_the_permission_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str, **__: str) -> None:
        raise PermissionError("no")

    monkeypatch.setitem(sys.modules, "boto3", types.SimpleNamespace(client=refuse))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_SECRET_ARN", "arn:aws:secretsmanager:eu-west-1:111122223333:secret:hub")
    with pytest.raises(TrainingError, match=r"secret:hub of HF_TOKEN_SECRET_ARN cannot be read .*GetSecretValue"):
        base_module._hub_token()


def test_a_model_of_a_channel_is_never_looked_for_on_the_hub(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_module, "_download", lambda *_: pytest.fail("the Hub was asked"))
    found = locate_base(Folders(make_job()), Hyperparameters(model_id="meta-llama/Llama-2-7b-hf"))
    fetch_weights(found, "")
    assert (found.folder / "config.json").is_file()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096}},
        {"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 4096},
    ],
)
def test_rows_beyond_where_a_model_changes_its_positions_are_refused(rope: dict[str, object]) -> None:
    base = Base(Path(), "acme/phi", "1", {"max_position_embeddings": 131072, **rope})
    assert (base.max_length(0), base.max_length(4096)) == (2048, 4096)
    with pytest.raises(TrainingError, match=r"acme/phi takes positions otherwise \(longrope\).*max_length to 4096"):
        base.max_length(4097)
    plain = Base(Path(), "acme/llama", "1", {"max_position_embeddings": 131072})
    assert plain.max_length(100_000) == 100_000
