"""A person in JupyterLab: opens a notebook, fills its form by the labels, sees the answer beside it, runs it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import lab_server
import pytest
from lab_server import BROWSER
from playwright.sync_api import Locator, Page, expect, sync_playwright

from llmtuner_kit import dataset, monitoring, runs, settings, start, uploads
from llmtuner_kit.faces import report
from llmtuner_kit.faces.cards import Card
from llmtuner_kit.faces.parts import Table
from llmtuner_kit.faces.pipelines import Pipeline
from llmtuner_kit.workspace import Workspace

ROWS = [{"instruction": f"What is {n} plus {n}?", "output": f"It is {n + n}."} for n in range(40)]

if BROWSER is None and not os.environ.get("CI"):
    pytest.skip("no Chromium on this machine: install the package chromium to run this test", allow_module_level=True)


@pytest.fixture
def prepared(workspace: Workspace, tmp_path: Path) -> Workspace:
    """A run up to the step before 03_train."""
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    common = {"run_name": "by-hand", "user_id": workspace.user_id}
    start.begin(settings.StartSettings(**common, model_id="tiny-llama"))
    uploads.upload(workspace, settings.UploadSettings(**common, source=str(file)))
    dataset.prepare(workspace, settings.PrepareSettings(**common))
    return workspace


@pytest.fixture
def lab(prepared: Workspace, tmp_path: Path) -> Iterator[str]:
    """A JupyterLab server on a copy of the notebooks; its address."""
    # The notebooks run untouched: the newest run of the login name is the prepared one.
    with lab_server.running(tmp_path, without="samples", LOGNAME=prepared.user_id) as url:
        yield url


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of a headless browser that keeps to itself."""
    assert BROWSER, "CI needs Chromium: .ci/run installs it"
    quiet = [
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=[*quiet, *sandbox])
        made = browser.new_page(viewport={"width": 1400, "height": 1600})
        yield made
        browser.close()


def menu(page: Page, *names: str) -> None:
    """Choose an entry of JupyterLab's menus by its words."""
    page.get_by_role("menuitem", name=names[0], exact=True).click()
    for name in names[1:]:
        page.get_by_role("menuitem", name=name).first.click()


def open_form(page: Page, lab: str, name: str) -> Locator:
    """Open a notebook and run it down to its form; the notebook's panel."""
    page.goto(f"{lab}/lab/tree/{name}.ipynb?reset")
    expect(page.get_by_text("| Idle").first).to_be_visible(timeout=90_000)
    notebook = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    form_cell = notebook.locator(".jp-CodeCell").nth(1)
    form_cell.scroll_into_view_if_needed()
    form_cell.locator(".cm-content").click()
    menu(page, "Run", "Run All Above Selected Cell")
    menu(page, "Run", "Run Selected Cell")
    return notebook


def keep_picture(page: Page, name: str) -> None:
    """A picture for a person to look at, where SCREENSHOTS names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_preparation_form_shows_at_once_what_a_template_makes_of_the_rows(lab: str, page: Page) -> None:
    notebook = open_form(page, lab, "02_prepare")
    expect(notebook.get_by_text("What is 1 plus 1?").first).to_be_visible(timeout=60_000)
    notebook.get_by_text("Word the rows anew with templates").click()
    page.get_by_label("Output template").fill("The sum: {output}")
    page.get_by_label("Output template").press("Tab")
    expect(notebook.get_by_text("The sum: It is 2.").first).to_be_visible(timeout=30_000)
    keep_picture(page, "02_prepare")
    page.get_by_label("Output template").fill("{reply}")
    page.get_by_label("Output template").press("Tab")
    expect(notebook.get_by_text("instruction, output").first).to_be_visible(timeout=30_000)  # the columns there are


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_form_is_filled_by_its_labels_and_the_job_starts(lab: str, page: Page, prepared: Workspace) -> None:
    notebook = open_form(page, lab, "03_train")
    expect(page.get_by_label("Learning rate")).to_be_visible(timeout=60_000)
    notebook.get_by_text("Adapter and batches").click()
    steps = page.get_by_label("Max steps")
    steps.fill("2")
    page.get_by_label("Learning rate").fill("0.003")
    page.get_by_label("Base model").select_option("tiny-llama")
    page.get_by_label("Evaluation samples").fill("0")
    page.get_by_label("Evaluation samples").press("Tab")
    expect(notebook.get_by_text("$").first).to_be_visible()  # the quote beside the form
    for number in (2, 3):
        cell = notebook.locator(".jp-CodeCell").nth(number)
        cell.scroll_into_view_if_needed()
        cell.locator(".cm-content").click()
        menu(page, "Run", "Run Selected Cell")
        expect(cell.locator(".jp-InputPrompt").first).to_have_text(re.compile(r"\[\d+\]:"), timeout=90_000)
    keep_picture(page, "03_train")
    result = runs.open_run(prepared, "by-hand").result("train")
    expect(notebook.locator(".jp-CodeCell").nth(3).get_by_text(result["job_name"]).first).to_be_visible()
    assert result["model_id"] == "tiny-llama"
    assert result["hyperparameters"]["max_steps"] == "2"
    assert result["hyperparameters"]["learning_rate"] == "0.003"
    watch = settings.MonitorSettings(run_name="by-hand", user_id=prepared.user_id, poll_seconds=0.3)
    *_, last = monitoring.watch(prepared, watch)
    assert last.status == "Completed", last.failure_reason


def test_a_report_follows_a_dark_screen_and_fits_a_narrow_one(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where pipelines keep what they have done
    wide = Table("Wide", ("what",) * 9, [("training-job-0123",) * 9])
    monkeypatch.setattr(report, "cards", lambda _: [Card("Demo", parts=[wide])])
    pipeline = Pipeline("demo", "demo", ())
    pipeline.folder.mkdir(parents=True)
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(report.write(pipeline).resolve().as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    ink = "getComputedStyle(document.body).color"
    light = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    assert (light, page.evaluate(ink)) == ("rgb(0, 0, 0)", "rgb(255, 255, 255)")
    keep_picture(page, "report")
