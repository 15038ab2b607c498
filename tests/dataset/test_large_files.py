"""Large documents come in stretches that fit into memory, or are refused with what to do; nothing is lost between them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataset.conftest import Prepare
from llmtuner_kit.dataset import chunks, documents
from llmtuner_kit.dataset.chunks import Chunk, Plan, Source
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.settings import PrepareSettings

# Ġ and ਊ have the byte of a line feed inside, on one side or the other.
PARAGRAPHS = [f"Paragraph {n} of Ġdańsk ਊ\nhas two lines." for n in range(400)]


def planned(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> list[Chunk]:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 512)
    monkeypatch.setattr(chunks, "LONGEST_RANGE", 2048)
    path.write_bytes(content)
    return list(Plan([Source(path.name, path, len(content), "x")], PrepareSettings()))


def texts(path: Path, found: list[Chunk]) -> list[str]:
    return [
        section.text
        for chunk in found
        for section in documents.sections_of(path, "text", chunk.encoding, chunk.start, chunk.end)
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "gb18030"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_stretches_of_any_encoding_hold_whole_paragraphs_and_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, end: str
) -> None:
    text = "\n\n".join(PARAGRAPHS) + "\n"
    marked = "\ufeff" if encoding == "utf-16-be" else ""
    content = (marked + text).replace("\n", end).encode(encoding)
    path = tmp_path / "long.txt"
    found = planned(path, content, monkeypatch)
    assert len(found) > 10
    assert max(chunk.end - chunk.start for chunk in found) < 1024
    paragraphs = "\n\n".join(part.strip("\n") for part in texts(path, found)).split("\n\n")
    if encoding == "gb18030":  # guessed among older encodings from the text: what matters here is that nothing is lost
        assert len(paragraphs) == len(PARAGRAPHS)
    else:
        assert paragraphs == PARAGRAPHS
    assert [chunk.first_row for chunk in found] == sorted({chunk.first_row for chunk in found})


def test_a_text_without_blank_lines_is_cut_between_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"Line {n} of a log." for n in range(2000)]
    path = tmp_path / "log.txt"
    found = planned(path, "\n".join(lines).encode(), monkeypatch)
    assert max(chunk.end - chunk.start for chunk in found) < 2048 + 64
    assert "".join(texts(path, found)).split("\n") == lines


@pytest.mark.parametrize("kind", ["html", "markdown", "rst"])
def test_a_document_too_large_to_be_read_at_once_is_refused_before_it_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 65 << 20)
    with pytest.raises(RowError, match=r"65 MiB in one document, .*: cut the file into several"):
        documents.sections_of(path, kind, "utf-8")


def test_the_refusal_is_on_the_report_and_other_files_are_prepared(prepare: Prepare) -> None:
    row = {"instruction": "What is this lamp?", "output": "It is a blue lamp."}
    built = prepare({"page.html": b"<p>long page</p>" * (1 << 20) + b"<p>end</p>", "rows.jsonl": [row]})
    (refused,) = built.rejected
    assert refused["kind"] == "too_large"
    assert "cut the file into several" in refused["reason"]
    assert len(built.all_rows) == 1


def test_a_bad_byte_in_a_long_text_costs_its_stretch_and_not_the_file(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4096)
    words = [f"{word} number {n} " * 12 for n in range(60) for word in ("Lämpchen", "Bulb", "Switch")]
    content = "\n\n".join(words).encode() + b"\n\nbroken \xff here\n"
    built = prepare({"long.txt": content})
    (refused,) = built.rejected
    assert refused["kind"] == "wrong_encoding"
    assert len(str(refused)) < 3 * 4096
    assert len(built.all_rows) > 5
