"""Tables as offices keep them: titles above the header, merged cells, days as times, columns of every name."""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from dataset.conftest import Prepare
from llmtuner_kit.dataset import shapes, tables
from llmtuner_kit.dataset.chunks import Plan, Source
from llmtuner_kit.errors import DataError
from llmtuner_kit.settings import PrepareSettings

NAMES = ["Ticket ID", "Created", "Customer message", "Agent reply", "Status"]
CASES = [[n, datetime(2025, 1, n), f"Lamp {n} blinks", f"Press {n}.", "closed"] for n in range(1, 6)]  # noqa: DTZ001


def values(path: Path, kind: str) -> list[Any]:
    records = list(tables.open_records(path, "t", kind, "utf-8"))
    assert [record.problem for record in records] == [None] * len(records)
    return [record.value for record in records]


def sheet(path: Path, *rows: list[Any], merged: tuple[str, ...] = ()) -> Path:
    book, data = openpyxl.Workbook(), io.BytesIO()
    for cells in rows:
        book.worksheets[0].append(cells)
    for cells in merged:
        book.worksheets[0].merge_cells(cells)
    book.save(data)
    path.write_bytes(data.getvalue())
    return path


@pytest.mark.parametrize(
    ("above", "merged"),
    [
        ([], ()),
        ([["Tickets of the first quarter"], []], ("A1:E1",)),
        ([["Tickets"], ["Exported", datetime(2025, 4, 1)], []], ("A1:E1",)),  # noqa: DTZ001
        ([["Case", None, "Conversation", None, "Result"]], ("A1:B1", "C1:D1")),
        ([["Tickets"], ["Case", "", "Conversation", "", "Result"]], ("A1:E1", "A2:B2", "C2:D2")),
    ],
)
def test_titles_and_groups_above_the_header_of_a_sheet_are_passed_over(
    tmp_path: Path, above: list[list[Any]], merged: tuple[str, ...]
) -> None:
    rows = values(sheet(tmp_path / "t", *above, NAMES, *CASES, merged=merged), "xlsx")
    assert len(rows) == 5
    assert rows[0] == {
        "Ticket ID": "1",
        "Created": "2025-01-01",
        "Customer message": "Lamp 1 blinks",
        "Agent reply": "Press 1.",
        "Status": "closed",
    }


def test_what_stands_beside_a_sheets_table_and_names_said_twice_lose_nothing(tmp_path: Path) -> None:
    rows = [["ticket", "note", "note", None, "reply"], ["Lamp", "a", "b", "c", "Press", None, "by hand"]]
    when = datetime(2025, 1, 2, 9, 5)  # noqa: DTZ001
    found = values(sheet(tmp_path / "t", *rows, ["Cable", when, "b", "c", "Pull"]), "xlsx")
    assert found[0] == {
        "ticket": "Lamp",
        "note": "a",
        "note 2": "b",
        "D": "c",
        "reply": "Press",
        "F": "",
        "G": "by hand",
    }
    assert found[1]["note"] == "2025-01-02 09:05"


@pytest.mark.parametrize(
    "above",
    ["sep=;\r\n", "Report of tickets\r\n\r\n", "Report;;\r\nMarch;;\r\n", ""],
    ids=["excel", "title", "wide", "none"],
)
def test_titles_above_the_header_of_a_csv_are_passed_over(tmp_path: Path, above: str) -> None:
    path = tmp_path / "t"
    path.write_text(f"{above}id;ticket;reply\r\n1;Lamp, red;Press\r\n2;Cable;Pull\r\n", newline="")
    assert values(path, "csv") == [
        {"id": "1", "ticket": "Lamp, red", "reply": "Press"},
        {"id": "2", "ticket": "Cable", "reply": "Pull"},
    ]


def test_a_column_of_single_texts_is_no_title(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("text\nred lamp\nblue lamp\n")
    assert values(path, "csv") == [{"text": "red lamp"}, {"text": "blue lamp"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"Nr": "1", "Anfrage": "Wo ist es denn?", "Antwort": "Es ist auf dem Weg.", "Bearbeiter": "M. Weiß"}, ("Anfrage", "Antwort")),
        ({"Case": "7", "Reply by": "Ann", "Reply text": "It is on its way.", "Mail of customer": "Where?"}, ("Mail of customer", "Reply text")),
        ({"id": "1", "Klant": "Waar is het?"}, None),
    ],
)  # fmt: skip
def test_the_columns_proposed_are_those_that_hold_the_texts(
    row: dict[str, str], expected: tuple[str, str] | None
) -> None:
    found = shapes.propose([row])
    assert (found and (found.instruction, found.output)) == expected


GERMAN = b"Anfrage,Antwort\nWo ist es?,Hier.\n"
ENGLISH = b"ticket,reply\nWhere is it?,Here.\n"
NAMED = {"instruction_column": "Anfrage", "output_column": "Antwort"}


def mappings(folder: Path, *files: bytes, **settings: str) -> list[str]:
    sources = []
    for number, data in enumerate(files):
        path = folder / f"{number}.csv"
        path.write_bytes(data)
        sources.append(Source(path.name, path, len(data), ""))
    return [chunk.told.describe() if chunk.told else "" for chunk in Plan(sources, PrepareSettings(**settings))]


def test_beside_a_file_that_has_the_named_columns_others_may_say_what_they_are(tmp_path: Path) -> None:
    told = "columns: Anfrage -> instruction, Antwort -> output"
    assert mappings(tmp_path, ENGLISH, GERMAN, **NAMED) == ["", told]
    with pytest.raises(DataError, match=r"0\.csv has no column 'Anfrage'"):
        mappings(tmp_path, ENGLISH, ENGLISH, **NAMED)
    with pytest.raises(DataError, match=r"1\.csv has no column 'Anfrage'"):
        mappings(tmp_path, GERMAN, b"klant,dienst\nWaar?,Hier.\n", **NAMED)


BOTH = {"instruction_column": "Anfrage, Vraag", "output_column": "Antwort,antwoord"}


def test_of_several_columns_the_first_that_a_row_has_is_read() -> None:
    told = shapes.told(PrepareSettings(**BOTH))
    assert told is not None
    rows = {
        ("Anfrage", "Vraag", "Antwort"): "columns: Anfrage -> instruction, Antwort -> output",
        ("VRAAG", "Antwoord"): "columns: VRAAG -> instruction, Antwoord -> output",
        ("Anfrage, Vraag", "Antwort"): "columns: Anfrage, Vraag -> instruction, Antwort -> output",
    }
    assert {keys: shapes.of_row(told, keys).describe() for keys in rows} == rows


def test_files_and_sheets_with_columns_of_different_names_become_one_dataset(prepare: Prepare) -> None:
    book = openpyxl.Workbook()
    book.active.append(["Anfrage", "Antwort"])
    book.active.append(["Wo ist das Paket geblieben?", "Es ist unterwegs zu Ihnen."])
    sheet = book.create_sheet("NL")
    sheet.append(["Vraag", "Antwoord"])
    sheet.append(["Waar is mijn pakje gebleven?", "Het is naar u onderweg."])
    book.create_sheet("Prices").append(["Article", "Price"])
    book["Prices"].append(["Hub", 9.99])
    file = io.BytesIO()
    book.save(file)
    whole = {"validation_share": 0, "test_share": 0}
    built = prepare({"book.xlsx": file.getvalue(), "t.csv": GERMAN}, **BOTH, **whole)
    assert (built.report.accepted, built.report.rejected) == (3, 1)
    (asked,) = (source.mapping for source in built.report.sources if source.name == "book.xlsx")
    asked_of = [row["instruction"] for row in built.report.samples]
    assert asked_of[:2] == ["Wo ist das Paket geblieben?", "Wo ist es?"]  # one of each file first
    told = "columns: Anfrage -> instruction, Antwort -> output; columns: Vraag -> instruction, Antwoord -> output"
    assert asked == told
    with pytest.raises(DataError, match="several with commas between"):
        prepare({"t.csv": b"klant,dienst\nWaar?,Hier.\n"}, **BOTH)
