"""The picture of the README, from the real notebooks: `.venv/bin/python tests/notebooks/picture.py`.

Photographs JupyterLab on the newest run of the local cloud that LLMTUNER_HOME names: the form of 03_train with its
quote, the end of 04_monitor, and the blind reading of 07_invoke with one vote and its key. The run must have been
trained and its endpoint must be in service; run 06_deploy again after `make demo`, which cleans up behind itself.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import lab_server
from lab_server import BROWSER
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / ".github" / "journey.png"
SHARPNESS, GAP, MOST_BYTES = 1.5, 18, 400_000


def opened(browser: Browser, url: str, name: str, width: int) -> tuple[Page, list[Locator]]:
    """A notebook in a window of its own, and its code cells; the first two have run."""
    page = browser.new_page(viewport={"width": width, "height": 5000}, device_scale_factor=SHARPNESS)
    page.goto(f"{url}/lab/tree/{name}.ipynb?reset")
    expect(page.get_by_text("| Idle").first).to_be_visible(timeout=90_000)
    if page.locator("#jp-left-stack").is_visible():
        page.keyboard.press("Control+b")  # the folder's listing only takes room
    cells = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell").all()
    for cell in cells[:2]:
        execute(page, cell)
    return page, cells


def execute(page: Page, cell: Locator) -> None:
    cell.scroll_into_view_if_needed()
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    expect(cell.locator(".jp-InputPrompt").first).to_have_text(re.compile(r"\[\d+\]:"), timeout=600_000)


def photograph(page: Page, shown: Locator, bottom: Locator | None = None) -> Image.Image:
    """What is shown, down to the bottom of another part of it where one is given."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(600)  # widgets redraw after their cell has ended
    image = Image.open(io.BytesIO(shown.screenshot()))
    above, below = shown.bounding_box(), bottom.bounding_box() if bottom else None
    if above and below:
        end = (below["y"] + below["height"] - above["y"]) * SHARPNESS
        image = image.crop((0, 0, image.width, min(image.height, round(end))))
    return image.convert("RGB")


def form(browser: Browser, url: str) -> Image.Image:
    page, cells = opened(browser, url, "03_train", 1360)
    page.get_by_label("Base model").select_option("llama-2-7b")
    page.get_by_label("Instance type").select_option("ml.g5.2xlarge")
    expect(page.get_by_text("llama-2-7b with lora")).to_be_visible()
    return photograph(page, cells[1].locator(".jp-OutputArea-output").first, page.get_by_text("Adapter and batches"))


def monitor(browser: Browser, url: str) -> Image.Image:
    page, cells = opened(browser, url, "04_monitor", 680)
    execute(page, cells[2])
    return photograph(page, cells[2].locator(".lt"), cells[2].locator(".lt img").last)


def reading(browser: Browser, url: str) -> Image.Image:
    page, cells = opened(browser, url, "07_invoke", 680)
    page.get_by_text("How answers are made").click()
    tokens = page.get_by_label("Max new tokens")
    tokens.fill("90")
    tokens.press("Tab")
    execute(page, cells[2])
    execute(page, cells[3])
    vote = page.get_by_role("button", name="B is better").first
    vote.click()
    read = photograph(page, cells[3].locator(".jp-OutputArea-output").first, vote)
    key = page.locator("details:visible").first
    key.locator("summary").click()
    return stacked(read, photograph(page, key))


def stacked(above: Image.Image, below: Image.Image) -> Image.Image:
    page = Image.new("RGB", (max(above.width, below.width), above.height + GAP + below.height), "white")
    page.paste(above, (0, 0))
    page.paste(below, (0, above.height + GAP))
    return page


def composed(top: Image.Image, left: Image.Image, right: Image.Image) -> Image.Image:
    """The form above, watching and reading below it, each with a title."""
    titles = ("03_train: the quote follows the form", "04_monitor: live", "07_invoke: which one was trained?")
    width = max(top.width, left.width + GAP + right.width)
    lower, head = max(left.height, right.height), round(26 * SHARPNESS)
    page = Image.new("RGB", (width, top.height + lower + 2 * head + GAP), "white")
    ink = ImageDraw.Draw(page)
    second = head + top.height + GAP
    places = ((0, 0), (0, second), (left.width + GAP, second))
    for title, (x, y), part in zip(titles, places, (top, left, right), strict=True):
        ink.rectangle((x, y, width if part is not left else left.width, y + head - 6), fill="#eef2f7")
        ink.text((x + 8, y + 4), title, fill="#333", font_size=14 * SHARPNESS)
        page.paste(part, (x, y + head))
    return page


def main() -> None:
    assert BROWSER, "install Chromium first"
    with TemporaryDirectory() as folder, lab_server.running(Path(folder)) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = composed(form(browser, url), monitor(browser, url), reading(browser, url))
        browser.close()
    page.quantize(256, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    size = PICTURE.stat().st_size
    assert size <= MOST_BYTES, f"{size} bytes are too many for a README"
    print(f"{PICTURE}: {page.width} x {page.height}, {size:,} bytes")


if __name__ == "__main__":
    main()
