"""02_prepare against the local cloud: from uploads to a dataset version, and what it leaves in S3 and in the run."""

from __future__ import annotations

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from dataset.conftest import as_bytes, distinct
from llmtuner_kit import catalog, runs, uploads
from llmtuner_kit.dataset import Prepared, preparation, prepare
from llmtuner_kit.dataset import card as cards
from llmtuner_kit.errors import DataError, DiskError, NotFoundError
from llmtuner_kit.faces import views
from llmtuner_kit.settings import PrepareSettings, UploadSettings
from llmtuner_kit.workspace import Workspace


@pytest.fixture
def run(workspace: Workspace, tmp_path: Path):  # type: ignore[no-untyped-def]
    """run({"file": content}, **settings) uploads and prepares for tiny-llama."""
    runs.open_run(workspace, "demo", create=True).save("start", settings={"model_id": "tiny-llama"})
    shared = {"run_name": "demo", "user_id": workspace.user_id}

    def go(files: dict[str, Any], **settings: Any) -> Prepared:
        folder = tmp_path / "lamps"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(as_bytes(content))
        uploads.upload(workspace, UploadSettings(**shared, source=str(folder)))
        return prepare(workspace, PrepareSettings(**shared, **settings))

    return go


def objects(workspace: Workspace, prefix: str) -> dict[str, bytes]:
    client = workspace.aws.client("s3")
    listed = client.list_objects_v2(Bucket=workspace.bucket, Prefix=prefix).get("Contents", [])
    return {
        item["Key"].removeprefix(prefix): client.get_object(Bucket=workspace.bucket, Key=item["Key"])["Body"].read()
        for item in listed
    }


def test_a_version_holds_splits_report_rejected_rows_and_card(run, workspace: Workspace) -> None:  # type: ignore[no-untyped-def]
    made = run({"rows.jsonl": [*distinct(30), {"instruction": "x", "output": ""}]})
    found = objects(workspace, workspace.paths.dataset("lamps", made.version))
    assert set(found) == {
        "train.jsonl", "validation.jsonl", "test.jsonl", "rejected.jsonl", "duplicates.jsonl", "findings.jsonl",
        "report.json", "card.json",
    }  # fmt: skip
    card = json.loads(found["card.json"])
    assert card["counts"] == {"rows_in": 31, "accepted": 30, "rejected": 1, "duplicates": 0, "rows_out": 30}
    assert {name: len(found[f"{name}.jsonl"].splitlines()) for name in card["splits"]} == {
        name: split["rows"] for name, split in card["splits"].items()
    }
    noted = runs.open_run(workspace, "demo").result("prepare")
    assert noted["dataset_sha256"] == made.sha256 == card["sha256"]
    assert noted["splits"]["train"]["uri"] == f"{made.uri}train.jsonl"
    assert noted["max_length"] == 512


def test_the_same_files_and_settings_are_the_same_version_and_are_not_prepared_again(run, workspace: Workspace) -> None:  # type: ignore[no-untyped-def]
    files = {"rows.jsonl": distinct(20)}
    first = run(files)
    before = objects(workspace, workspace.paths.dataset("lamps", first.version))
    again = run(files)
    assert (again.version, again.sha256, again.reused, first.reused) == (first.version, first.sha256, True, False)
    assert again.report == first.report
    workspace.aws.client("s3").delete_object(
        Bucket=workspace.bucket, Key=workspace.paths.dataset("lamps", first.version) + "card.json"
    )
    anew = run(files)
    assert not anew.reused
    assert objects(workspace, workspace.paths.dataset("lamps", first.version)) == before


def test_one_that_comes_while_the_same_dataset_is_prepared_waits_and_finds_it_done(run, workspace: Workspace) -> None:  # type: ignore[no-untyped-def]
    """As two pipelines on the same files; they differ in their runs."""
    run({"rows.jsonl": distinct(20)})
    settings = PrepareSettings(run_name="demo", user_id=workspace.user_id, test_share=0.2)
    working, waiting = threading.Event(), threading.Event()

    def first(what: str, *_: object) -> None:
        if "reading" in what:
            working.set()
            assert waiting.wait(30)

    def second(what: str, *_: object) -> None:
        if "waiting for another" in what:
            waiting.set()

    with ThreadPoolExecutor() as pool:
        made = pool.submit(prepare, workspace, settings, first)
        assert working.wait(30)
        found = pool.submit(prepare, workspace, settings, second)
        assert (made.result().version, made.result().reused) == (found.result().version, False)
        assert found.result().reused


def test_other_content_or_settings_are_another_version(run) -> None:  # type: ignore[no-untyped-def]
    versions = {run({"rows.jsonl": distinct(20)}).version}
    versions.add(run({"rows.jsonl": distinct(21)}).version)
    versions.add(run({"rows.jsonl": distinct(21)}, test_share=0.2).version)
    versions.add(run({"rows.jsonl": distinct(21)}, max_length=128).version)
    assert len(versions) == 4


def test_only_the_files_of_this_upload_are_prepared(run, workspace: Workspace, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run({"old.jsonl": distinct(20)})
    (tmp_path / "lamps" / "old.jsonl").unlink()
    made = run({"new.jsonl": distinct(12, 100)})
    assert [source.name for source in made.report.sources] == ["new.jsonl"]
    assert made.report.rows_in == 12


def test_masks_show_the_answer_and_only_the_answer_as_trained(run) -> None:  # type: ignore[no-untyped-def]
    made = run({"rows.jsonl": distinct(20)})
    for row, mask in zip(made.report.samples, made.masks, strict=False):
        learned = "".join(piece for piece, trained in zip(mask.pieces, mask.trained, strict=True) if trained)
        assert learned.startswith(row["output"])
        assert row["instruction"] not in learned
    assert len(made.masks) == 3


def test_without_an_upload_the_notebook_to_run_is_named(workspace: Workspace) -> None:
    runs.open_run(workspace, "demo", create=True)
    with pytest.raises(NotFoundError, match="upload"):
        prepare(workspace, PrepareSettings(run_name="demo", user_id=workspace.user_id))
    with pytest.raises(NotFoundError, match="nothing"):
        prepare(workspace, PrepareSettings(run_name="demo", user_id=workspace.user_id, dataset="nothing"))


def test_a_refused_file_leaves_what_was_done_before_as_it_is(run, workspace: Workspace) -> None:  # type: ignore[no-untyped-def]
    run({"rows.jsonl": distinct(20)})
    noted = runs.open_run(workspace, "demo").result("prepare")
    with pytest.raises(DataError, match="columns do not say"):
        run({"table.csv": "alpha,beta\nsome words here,other words there\n"})
    assert runs.open_run(workspace, "demo").result("prepare") == noted


def test_a_full_disk_is_named_with_what_to_do_and_the_next_call_goes_on(
    run,  # type: ignore[no-untyped-def]
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with monkeypatch.context() as full:
        full.setattr(catalog, "cache_folder", lambda: tmp_path / "cache")
        full.setattr(cards, "write", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        with pytest.raises(DiskError, match=rf"(?s){tmp_path}/cache/prepare/.*lamps: No space.*set LLMTUNER_CACHE"):
            run({"rows.jsonl": distinct(20)})
    assert run({"rows.jsonl": distinct(20)}).card["counts"]["accepted"] == 20


@pytest.mark.parametrize(("cache", "own"), [("/sys/llmtuner", True), ("cache", False)])  # nobody may write in /sys
def test_who_may_only_read_the_cache_prepares_in_the_own_one(
    cache: str, own: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(catalog, "cache_folder", lambda: tmp_path / cache)
    monkeypatch.setattr(catalog, "own_cache_folder", lambda: tmp_path / "own")
    assert preparation._top() == tmp_path / ("own" if own else cache) / "prepare"


def test_what_training_would_refuse_is_not_sent_there(run) -> None:  # type: ignore[no-untyped-def]
    long = [{"instruction": f"Tell {number}", "output": f"word{number} " * 900} for number in range(12)]
    refused = views.of(run({"long.jsonl": long}))
    assert refused.following.startswith("set long_rows to split or drop")
    assert "12 of 12 rows" in refused.following
    assert views.of(run({"rows.jsonl": distinct(20)}, leave_out="long*")).following == "03_train"


def test_few_rows_say_what_cannot_be_measured_with_them(run) -> None:  # type: ignore[no-untyped-def]
    card = repr(views.of(run({"rows.jsonl": distinct(1)})))
    assert "no validation rows" in card
    assert "no test rows" in card
    assert "no test rows" not in repr(views.of(run({"rows.jsonl": distinct(20)})))
