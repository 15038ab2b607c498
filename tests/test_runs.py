"""Run records: found by name, newest first, never losing another writer's section."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import llmtuner_kit
from llmtuner_kit.errors import NotFoundError
from llmtuner_kit.runs import list_runs, open_run
from llmtuner_kit.workspace import Workspace


def test_saved_section_is_found_by_another_reader(workspace: Workspace) -> None:
    run = open_run(workspace, "first", create=True)
    run.save("upload", settings={"source": "x"}, result={"uri": "s3://b/k"})
    again = open_run(workspace, "first")
    assert again.result("upload") == {"uri": "s3://b/k"}
    assert again.section("upload")["settings"] == {"source": "x"}  # type: ignore[index]
    assert again.document["kit_version"] == llmtuner_kit.__version__


def test_saving_settings_keeps_the_result_and_the_other_way_round(workspace: Workspace) -> None:
    run = open_run(workspace, "parts", create=True)
    run.save("train", settings={"epochs": 1})
    run.save("train", result={"job_name": "j"})
    assert open_run(workspace, "parts").section("train")["settings"] == {"epochs": 1}  # type: ignore[index]


def test_writers_at_the_same_time_lose_nothing(workspace: Workspace) -> None:
    open_run(workspace, "busy", create=True)
    writers = [open_run(workspace, "busy") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: writers[n].save(f"step-{n}", result={"n": n}), range(8)))
    found = open_run(workspace, "busy")
    assert [found.result(f"step-{n}")["n"] for n in range(8)] == list(range(8))


def test_empty_name_means_the_newest_run(workspace: Workspace) -> None:
    with pytest.raises(NotFoundError, match="no run yet"):
        open_run(workspace)
    open_run(workspace, "old", create=True)
    open_run(workspace, "new", create=True).save("upload", result={"n": 1})
    newest = list_runs(workspace)[0].name
    assert open_run(workspace).name == newest
    assert {run.name for run in list_runs(workspace)} == {"old", "new"}


def test_missing_run_lists_the_runs_there_are(workspace: Workspace) -> None:
    open_run(workspace, "here", create=True)
    with pytest.raises(NotFoundError, match="here"):
        open_run(workspace, "gone")


def test_a_misspelt_name_is_answered_with_the_run_that_is_likely_meant(workspace: Workspace) -> None:
    open_run(workspace, "support-tickets", create=True)
    with pytest.raises(NotFoundError) as caught:
        open_run(workspace, "suport-tickets")
    assert caught.value.fix.startswith("set run_name to 'support-tickets', or, to begin a new run, run 00_start")
    with pytest.raises(NotFoundError) as caught:
        open_run(workspace, "another")
    assert caught.value.fix == "run 00_start with run_name 'another'"


def test_missing_result_names_the_notebook(workspace: Workspace) -> None:
    with pytest.raises(NotFoundError, match="02_prepare"):
        open_run(workspace, "empty", create=True).result("prepare")
