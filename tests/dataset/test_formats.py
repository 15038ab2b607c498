"""Every kind of file, plain, compressed and in archives, gives the same rows; broken ones keep their bytes."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from matplotlib.figure import Figure

from dataset.conftest import Prepare, as_bytes, distinct
from llmtuner_kit.dataset import json_files, json_text, kinds, readers

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
    file = io.BytesIO()
    if how == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, data)
    elif how == "tar.zst":
        with tarfile.open(fileobj=file, mode="w") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    if how == "tar.zst":
        return f"{how}/all.{how}", zstandard.compress(file.getvalue())
    if how == "zip":
        return f"{how}/all.{how}", file.getvalue()
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


def elements(tmp_path: Path, text: str | bytes) -> list[tuple[Any, bytes, str]]:
    path = tmp_path / "f.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [
        (record.value, record.raw, record.problem[0] if record.problem else "")
        for record in json_files.read_json(path, "f.json")
    ]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"a": [1, {"b": "]}, {"}]},\n\t12345, "x\\n\u00e9", null, -1.5e3]', " [ ] ", "[1]", '\ufeff[{"a": "é"}]',
    ],
)  # fmt: skip
def test_a_list_is_read_element_by_element_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, text: str
) -> None:
    monkeypatch.setattr(json_text, "_BLOCK", block)
    found = elements(tmp_path, text)
    assert [value for value, _, _ in found] == json.loads(text.lstrip("\ufeff"))
    for value, raw, problem in found:
        assert not problem
        assert raw.decode() in text
        assert json.loads(raw) == value


def test_what_stands_before_a_mistake_in_a_list_is_kept_and_the_rest_keeps_its_bytes(tmp_path: Path) -> None:
    good, broken = '{"a":  1}', '{"a": oops}, {"a": 3}]'
    assert elements(tmp_path, f"[{good}, {broken}") == [
        ({"a": 1}, good.encode(), ""),
        (None, broken.encode(), "malformed_json"),
    ]
    assert [problem for *_, problem in elements(tmp_path, f"[{good}")] == ["", "malformed_json"]
    assert [problem for *_, problem in elements(tmp_path, b'["caf\xff", 1]')] == ["wrong_encoding", ""]


def test_an_object_around_a_list_gives_its_rows_as_they_are_written(tmp_path: Path) -> None:
    text = '{"version": {"n": [1]}, "data" : [ {"a":  1}, {"a": 2} ], "end": "x"}'
    assert [raw for _, raw, _ in elements(tmp_path, text)] == [b'{"a":  1}', b'{"a": 2}']
    single = '{"messages": [{"role": "user", "content": "a"}]}'
    assert [raw for _, raw, _ in elements(tmp_path, single)] == [single.encode()]


@pytest.mark.parametrize("charset", ["utf-8", "cp1252", "shift_jis"])
def test_rejected_table_rows_keep_their_bytes(prepare: Prepare, charset: str) -> None:
    bad = "too,many,fields é".encode("cp1252") if charset != "shift_jis" else "too,many,設定".encode(charset)
    rows = [
        {"ticket": f"{n} ランプの設定を変える" if charset == "shift_jis" else f"{n} é", "reply": f"reply number {n}"}
        for n in range(40)
    ]
    built = prepare({"t.csv": table(rows=rows).encode(charset) + bad + b"\r\n"}, near_duplicates="keep")
    (rejected,) = built.rejected
    kept = (
        base64.b64decode(rejected["original_base64"])
        if "original_base64" in rejected
        else rejected["original"].encode()
    )
    assert kept == bad


def test_a_row_over_the_limit_is_rejected_and_the_next_is_read(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = distinct(6)
    large = json.dumps({"instruction": "x", "output": "y" * (readers.LARGEST_ROW + 5)}).encode()
    built = prepare({"f.jsonl": as_bytes(rows[:3]) + large + b"\n" + as_bytes(rows[3:])})
    assert [item["kind"] for item in built.rejected] == ["too_large"]
    assert built.report.accepted == 6
