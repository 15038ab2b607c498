"""Every kind of file, plain, compressed and in archives, gives the same rows; broken ones keep their bytes."""

from __future__ import annotations

import csv
import gzip
import io
import json

import docx
import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from matplotlib.figure import Figure
from packed import tar, zip_of

from dataset.conftest import Prepare, as_bytes, distinct
from llmtuner_kit.dataset import kinds, readers
from llmtuner_kit.dataset.rejected import original

ROWS = [
    {"ticket": f"Lamp {n} of room {n * 7} blinks", "reply": f"Open the app, choose room {n * 7}, press {n}."}
    for n in range(5)
]
SECTION = "The lamp at the window shone for many hours through the evening, until the morning came at last. " * 2


def table(delimiter: str = ",", rows: list[dict[str, str]] | None = None) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["ticket", "reply"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows or ROWS)
    return text.getvalue()


def word() -> bytes:
    document, data = docx.Document(), io.BytesIO()
    for title in ("Lamps", "Cables"):
        document.add_heading(title, 1)
        document.add_paragraph(f"{title}: {SECTION}")
    document.save(data)
    return data.getvalue()


def spreadsheet() -> bytes:
    book, data = openpyxl.Workbook(), io.BytesIO()
    for sheet, part in ((book.active, ROWS[:3]), (book.create_sheet("later"), ROWS[3:])):
        assert sheet is not None
        for cells in [["ticket", "reply"], *(list(row.values()) for row in part)]:
            sheet.append(cells)
    book.save(data)
    return data.getvalue()


def parquet() -> bytes:
    data = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), data)
    return data.getvalue()


def page() -> bytes:
    figure, data = Figure(), io.BytesIO()
    figure.text(0.1, 0.5, "\n".join(SECTION[start : start + 60] for start in range(0, 180, 60)))
    figure.savefig(data, format="pdf")
    return data.getvalue()


FILES: dict[str, tuple[bytes, int]] = {
    ".jsonl": (as_bytes(ROWS), 5),
    ".json": (json.dumps(ROWS, indent=1).encode(), 5),
    ".csv": (table().encode(), 5),
    ".tsv": (table("\t").encode(), 5),
    ".xlsx": (spreadsheet(), 5),
    ".parquet": (parquet(), 5),
    ".txt": (f"{SECTION}\n\n{SECTION}".encode(), 1),
    ".md": (f"# Lamps\n{SECTION}\n\n# Cables\n{SECTION[::-1]}".encode(), 2),
    ".rst": (f"Lamps\n=====\n{SECTION}\n\nCables\n======\n{SECTION[::-1]}".encode(), 2),
    ".html": (f"<h1>Lamps</h1><p>{SECTION}</p><h1>Cables</h1><p>{SECTION[::-1]}</p>".encode(), 2),
    ".docx": (word(), 2),
    ".pdf": (page(), 1),
}


def test_the_table_of_this_test_has_every_kind() -> None:
    assert {kinds.KINDS[suffix] for suffix in FILES} == set(kinds.KINDS.values())


def packed(name: str, data: bytes, how: str) -> tuple[str, bytes]:
    if how == "tar.zst":
        return f"{how}/all.{how}", zstandard.compress(tar({name: data}))
    if how == "zip":
        return f"{how}/all.{how}", zip_of({name: data})
    return f"{how}/{name}.{how}", gzip.compress(data) if how == "gz" else zstandard.compress(data)


def test_every_kind_is_read_plain_compressed_and_in_archives(prepare: Prepare) -> None:
    files = {}
    for suffix, (data, _) in FILES.items():
        files[f"plain{suffix}"] = data
        for how in ("gz", "zst", "zip", "tar.zst"):
            name, content = packed(f"f{suffix}", data, how)
            files[f"{suffix[1:]}-{name}"] = content
    built = prepare(files, passage_tokens=4096)
    assert built.rejected == []
    found: dict[str, list[int]] = {}
    for source in built.report.sources:
        found.setdefault(source.kind, []).append(source.rows)
    assert found == {kinds.KINDS[suffix]: [rows] * 5 for suffix, (_, rows) in FILES.items()}


def test_a_sheet_is_read_whatever_stands_on_the_sheets_before_it(prepare: Prepare) -> None:
    book, data = openpyxl.Workbook(), io.BytesIO()
    counts, tickets = book.worksheets[0], book.create_sheet("Tickets")
    for cells in [["month", "count"], *(["May", str(n)] for n in range(300))]:
        counts.append(cells)
    for cells in [["ticket", "reply"], *(list(row.values()) for row in ROWS)]:
        tickets.append(cells)
    book.save(data)
    built = prepare({"book.xlsx": data.getvalue()}, validation_share=0, test_share=0)
    assert (built.report.accepted, built.report.rejected) == (5, 300)


@pytest.mark.parametrize(
    ("charset", "word"),
    [("utf-8", "é"), ("utf-8-sig", "é"), ("utf-16", "é"), ("utf-16-le", "e"), ("utf-16-be", "e"), ("utf-32", "é"),
     ("cp1252", "é"), ("cp1251", "лампа светит в окне"), ("shift_jis", "ランプの設定を変える"), ("gb18030", "灯在窗边亮着很久"),
     ("euc_kr", "램프가 창가에 켜져"), ("cp1253", "η λάμπα στο παράθυρο")],
)  # fmt: skip
def test_common_encodings_of_tables_are_told(prepare: Prepare, charset: str, word: str) -> None:
    rows = [{"ticket": f"{row['ticket']} {word}", "reply": f"{row['reply']} {word}"} for row in ROWS]
    built = prepare({"t.csv": table(rows=rows).encode(charset)}, near_duplicates="keep")
    assert {row["instruction"] for row in built.all_rows} == {row["ticket"] for row in rows}


@pytest.mark.parametrize("charset", ["utf-8", "cp1252", "shift_jis"])
def test_rejected_table_rows_keep_their_bytes(prepare: Prepare, charset: str) -> None:
    bad = "too,many,fields é".encode("cp1252") if charset != "shift_jis" else "too,many,設定".encode(charset)
    rows = [
        {"ticket": f"{n} ランプの設定を変える" if charset == "shift_jis" else f"{n} é", "reply": f"reply number {n}"}
        for n in range(40)
    ]
    built = prepare({"t.csv": table(rows=rows).encode(charset) + bad + b"\r\n"}, near_duplicates="keep")
    (rejected,) = built.rejected
    with original(rejected, built.folder) as kept:
        assert kept.read() == bad


def test_a_row_over_the_limit_is_rejected_and_the_next_is_read(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = distinct(6)
    large = json.dumps({"instruction": "x", "output": "y" * (readers.LARGEST_ROW + 5)}).encode()
    built = prepare({"f.jsonl": as_bytes(rows[:3]) + large + b"\n" + as_bytes(rows[3:])})
    assert [item["kind"] for item in built.rejected] == ["too_large"]
    assert built.report.accepted == 6
