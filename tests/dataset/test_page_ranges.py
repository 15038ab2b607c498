"""A long PDF is read by all workers, and becomes what one of them would make of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset.conftest import Prepare
from dataset.test_pdf import OTHER, PLAIN, TITLE, pdf
from llmtuner_kit.dataset import documents, page_ranges, pages
from llmtuner_kit.dataset.chunks import Plan, Source
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.dataset.page_ranges import PageRange, Reader
from llmtuner_kit.settings import PrepareSettings

PARTS = ["Pump", "Valve", "Boiler", "Burner", "Pipe", "Fan", "Filter"]
METALS = ["copper", "steel", "iron", "lead", "tin", "zinc", "silver"]


@pytest.fixture(scope="module")
def manual() -> bytes:
    """Seven pages, each of which ends amid the sentence that the next begins with."""
    ends = [f"The {part} is of brass and\n" for part in PARTS]
    return pdf(*(
        [(40, 60, f"of {METALS[n]} within.", PLAIN), (40, 90, part, TITLE), (40, 110, f"{OTHER} {ends[n]}", PLAIN)]
        for n, part in enumerate(PARTS)
    ))  # fmt: skip


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manual counts as long."""
    for name, value in (("PAGES", 2), ("_SHORT", 4), ("_SMALL", 100)):
        monkeypatch.setattr(page_ranges, name, value)


def test_what_many_workers_read_is_what_one_reads(
    prepare: Prepare, manual: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"manual.pdf": manual, "short.pdf": pdf([(40, 60, "Tap", TITLE), (40, 90, "The tap is red.", PLAIN)])}
    whole = prepare(files)
    assert not list(whole.folder.parent.rglob("*.pages"))
    for name, value in (("PAGES", 2), ("_SHORT", 4), ("_SMALL", 100)):
        monkeypatch.setattr(page_ranges, name, value)
    shared = prepare(files, workers=2)
    assert len(list(shared.folder.parent.rglob("*.pages"))) == 4
    assert shared.report == whole.report
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "rejected.jsonl"):
        assert (shared.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    answers = "\n".join(row["output"] for row in shared.all_rows)
    for part, metal in zip(PARTS[:-1], METALS[1:], strict=True):
        assert f"The {part} is of brass and of {metal} within." in answers


def read(manual: bytes, folder: Path) -> Plan:
    """The plan of a manual whose ranges are read into a folder, as far as they are not there."""
    path = folder / "manual.pdf"
    path.write_bytes(manual)
    plan, reader = Plan([Source("manual.pdf", path, len(manual), "1")], PrepareSettings()), Reader()
    for part in plan.page_ranges(folder):
        Path(part.target).write_bytes(reader.read(part))
    reader.close()
    return plan


@pytest.mark.usefixtures("long")
def test_ranges_that_are_read_are_not_read_again(manual: bytes, tmp_path: Path) -> None:
    (whole,) = read(manual, tmp_path)
    (tmp_path / "000001.pages").unlink()
    again = Plan([Source("manual.pdf", tmp_path / "manual.pdf", len(manual), "1")], PrepareSettings())
    assert [Path(part.target).name for part in again.page_ranges(tmp_path)] == ["000001.pages"]
    assert [*again] == [whole]


@pytest.mark.usefixtures("long")
def test_a_page_that_cannot_be_read_is_told_as_when_one_worker_reads(manual: bytes, tmp_path: Path) -> None:
    box = manual.rindex(b"/MediaBox [ 0 0")
    (chunk,) = read(manual[:box] + b"/MediaBox [ /a /b" + manual[box + 15 :], tmp_path)
    with pytest.raises(RowError) as whole:
        documents.sections_of(Path(chunk.path), "pdf", "")
    with pytest.raises(RowError) as shared:
        documents.sections_of(Path(chunk.path), "pdf", "", ranges=chunk.ranges)
    assert len(chunk.ranges) == 4
    assert (shared.value.kind, shared.value.reason) == (whole.value.kind, whole.value.reason)
    assert shared.value.kind == "unreadable_file"


@pytest.mark.parametrize(("count", "expected"), [(4, []), (5, [(0, 2), (2, 4), (4, 0)]), (6, [(0, 2), (2, 4), (4, 0)])])
@pytest.mark.usefixtures("long")
def test_ranges_cover_a_document_and_the_last_takes_what_it_has_more_than_it_says(
    count: int, expected: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(b"x" * 1000)
    monkeypatch.setattr(pages, "count", lambda path: count)
    found: list[PageRange] = page_ranges.of_document(path, "a.pdf", tmp_path, 7)
    assert [(part.start, part.end) for part in found] == expected
    assert [part.number for part in found] == list(range(7, 7 + len(found)))
