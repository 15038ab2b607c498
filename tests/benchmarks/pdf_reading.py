"""How fast PDFs are read, beside pdfplumber's words and tables of the same pages: seconds for 100 pages.

    python tests/benchmarks/pdf_reading.py [FILE.pdf ...] [--pages 40]

One process reads `--pages` pages as pdfplumber does, and as the kit does, in CPU time; then the kit prepares the whole
file by one worker a core, in real time. Without a file, a manual is made by matplotlib.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pdfplumber
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from llmtuner_kit import catalog
from llmtuner_kit.dataset import pages
from llmtuner_kit.dataset.build import build
from llmtuner_kit.dataset.chunks import Source
from llmtuner_kit.dataset.tokens import open_encoding
from llmtuner_kit.settings import PrepareSettings

MODEL = "smollm2-135m-instruct"


def write_manual(path: Path, count: int) -> None:
    """Pages of 48 lines of real words under a heading."""
    text = itertools.cycle(re.findall(r"[A-Za-z']+[,.;:?!]?", Path(argparse.__file__).read_text(encoding="utf-8")))
    with PdfPages(path) as book:
        for number in range(count):
            figure = Figure(figsize=(8.27, 11.69))
            figure.text(0.1, 0.95, f"{number + 1} The chapter on {next(text)}", fontsize=18, weight="bold")
            for line in range(48):
                said = " ".join(itertools.islice(text, 13))
                figure.text(0.1, 0.91 - 0.018 * line, said, fontsize=10, parse_math=False)
            book.savefig(figure)


def pdfplumber_pages(path: Path, count: int) -> None:
    with pdfplumber.open(path) as document:
        for page in document.pages[:count]:
            page.extract_words(use_text_flow=True)
            page.extract_tables()
            page.close()


def kit_pages(path: Path, count: int) -> None:
    with contextlib.closing(pages.Document(path)) as document:
        document.blocks(0, count)


def kit_whole(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out, work = Path(folder) / "out", Path(folder) / "work"
        out.mkdir()
        work.mkdir()
        source = Source(path.name, path, path.stat().st_size, "benchmark")
        encoding = open_encoding(catalog.base_model(MODEL), catalog.base_model_folder(MODEL), 0)
        build([source], PrepareSettings(), encoding, MODEL, out, work, lambda *_: None)


def seconds(work: Callable[[], None], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--pages", type=int, default=40)
    options = parser.parse_args()
    logging.getLogger("pdfminer").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        files = options.files or [Path(folder) / "manual.pdf"]
        if not options.files:
            write_manual(files[0], 64)
        print(f"{'':28} {'pages':>5}  pdfplumber   kit  kit, all cores   seconds for 100 pages")
        for path in files:
            count = pages.count(path)
            read = min(count, options.pages)
            theirs = seconds(lambda path=path, read=read: pdfplumber_pages(path, read), time.process_time) / read
            ours = seconds(lambda path=path, read=read: kit_pages(path, read), time.process_time) / read
            whole = seconds(lambda path=path: kit_whole(path), time.perf_counter) / count
            print(
                f"{path.name[:28]:28} {count:5} {100 * theirs:11.1f} {100 * ours:5.1f} {100 * whole:10.1f}"
                f"       {theirs / ours:.1f}x, {theirs / whole:.1f}x"
            )


if __name__ == "__main__":
    main()
