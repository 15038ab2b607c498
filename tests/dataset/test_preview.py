"""The first rows beside the form: proposals are shown and never used, templates show what they make, nothing is written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import openpyxl
import pytest
from packed import zip_of

from dataset.conftest import as_bytes, distinct
from llmtuner_kit import runs, uploads
from llmtuner_kit.dataset import preview
from llmtuner_kit.dataset.sources import Stored
from llmtuner_kit.errors import DataError, NotFoundError
from llmtuner_kit.faces.forms import Form
from llmtuner_kit.faces.preparation import _first_rows, first_rows
from llmtuner_kit.settings import PrepareSettings, UploadSettings
from llmtuner_kit.workspace import Workspace

TABLE = b"id,customer wrote,we said\n1,Where is my parcel,It is on its way\n2,Is it lost,No it is not\n"
TICKETS = b"product,ticket,reply\nHub,It blinks,Press it for long\n"


def test_a_mapping_that_is_not_known_is_proposed_with_the_columns_there_are() -> None:
    seen = preview.read("t.csv", TABLE, len(TABLE), PrepareSettings())
    assert seen.columns == ("id", "customer wrote", "we said")
    assert seen.proposed is not None
    assert (seen.proposed.instruction, seen.proposed.output) == ("customer wrote", "we said")
    assert seen.rows == ()
    assert "columns do not say" in seen.problem
    told = preview.read(
        "t.csv", TABLE, len(TABLE), PrepareSettings(instruction_column="customer wrote", output_column="we said")
    )
    assert told.rows[0].row == {"instruction": "Where is my parcel", "input": "", "output": "It is on its way"}
    assert told.mapping == "columns: customer wrote -> instruction, we said -> output"


def test_a_number_is_never_proposed_as_what_is_asked_and_columns_are_told_once() -> None:
    data = b"Ticket Nr.;Frage des Kunden;Antwort (Agent);;\n1;Wo ist es?;Hier.;;\n"
    seen = preview.read("t.csv", data, len(data), PrepareSettings())
    assert seen.proposed is not None
    assert (seen.proposed.instruction, seen.proposed.output) == ("Frage des Kunden", "Antwort (Agent)")
    shown = repr(_first_rows(preview.Previewed("t", (seen,), 0, (), offer=preview.offer(PrepareSettings(), [seen]))))
    assert shown.count("Frage des Kunden") == 2  # among the columns, and in the proposal


def test_a_template_shows_what_it_makes_and_a_wrong_one_what_it_could_name() -> None:
    asked = PrepareSettings(instruction_template="About the {product}: {ticket}")
    (row,) = preview.read("t.csv", TICKETS, len(TICKETS), asked).rows
    assert row.row == {"instruction": "About the Hub: It blinks", "input": "", "output": "Press it for long"}
    wrong = preview.read("t.csv", TICKETS, len(TICKETS), PrepareSettings(instruction_template="{prodct}"))
    assert "{prodct}" in wrong.problem
    assert wrong.columns == ("product", "ticket", "reply")


def exported(parent: str, role: str, *parts: object) -> dict[str, object]:
    return {"parent": parent, "message": {"author": {"role": role}, "content": {"parts": parts}}}


def test_an_exported_chat_is_read_along_the_branch_it_ended_with() -> None:
    tree = {
        "root": {"parent": None, "message": None},
        "hidden": exported("root", "system", ""),
        "asked": exported("hidden", "user", "Why does it blink?"),
        "given up": exported("asked", "assistant", "I do not know."),
        "answered": exported("asked", "assistant", "It looks", " for the Hub."),
    }
    picture = tree | {"asked": exported("hidden", "user", {"content_type": "image_asset_pointer"})}
    turning = tree | {"asked": exported("answered", "user", "Why?")}
    chats = [{"title": "t", "mapping": item, "current_node": "answered"} for item in (tree, picture, turning)]
    chats.append({"title": "t", "mapping": tree, "current_node": "nowhere"})
    data = json.dumps(chats).encode()
    seen = preview.read("conversations.json", data, len(data), PrepareSettings())
    assert seen.mapping == "chat-export: mapping -> messages"
    first, second, third = seen.rows
    assert first.row == {
        "messages": [
            {"role": "user", "content": "Why does it blink?"},
            {"role": "assistant", "content": "It looks for the Hub."},
        ]
    }
    assert "'image_asset_pointer'; only text can be trained" in second.reason
    assert third.row  # a chat that goes round in a circle ends
    nowhere = json.dumps(chats[3:]).encode()
    (row,) = preview.read("conversations.json", nowhere, len(nowhere), PrepareSettings()).rows
    assert row.reason == "'mapping' is empty"


def test_of_an_exported_chat_only_what_was_said_is_kept() -> None:
    def said(parent: str, role: str, content: dict[str, object], **more: object) -> dict[str, object]:
        return {"parent": parent, "message": {"author": {"role": role}, "content": content, **more}}

    def text(*parts: str) -> dict[str, object]:
        return {"content_type": "text", "parts": list(parts)}

    tree = {
        "a": said("", "user", {"content_type": "user_editable_context", "user_profile": "Sam"}),
        "b": said("a", "user", text("Why does it blink?"), recipient="all"),
        "c": said("b", "assistant", {"content_type": "thoughts", "thoughts": []}),
        "d": said("c", "assistant", text("Let me look.")),
        "e": said("d", "assistant", {"content_type": "code", "text": "look()"}, recipient="python"),
        "f": said("e", "tool", {"content_type": "execution_output", "text": "hub"}),
        "g": said("f", "user", text("hidden"), metadata={"is_visually_hidden_from_conversation": True}),
        "h": said("g", "assistant", text("It looks for the Hub \ue200cite\ue202turn0search1\ue201. See【4†manual】.")),
    }
    data = json.dumps([{"mapping": tree, "current_node": "h"}]).encode()
    (row,) = preview.read("conversations.json", data, len(data), PrepareSettings()).rows
    assert row.row == {
        "messages": [
            {"role": "user", "content": "Why does it blink?"},
            {"role": "assistant", "content": "Let me look.\n\nIt looks for the Hub. See."},
        ]
    }


@pytest.mark.parametrize(
    ("paragraphs", "asked"), [(3, "Explain: Reset the hub"), (200, "Continue the following text:")]
)
def test_the_title_of_a_short_page_asks_and_a_long_text_under_one_is_continued(paragraphs: int, asked: str) -> None:
    page = f"<h1>Reset the hub</h1>{'<p>Press its button for ten seconds, until the lamp is blue.</p>' * paragraphs}".encode()
    first, *_ = preview.read("a.html", page, len(page), PrepareSettings()).rows
    assert first.row
    assert first.row["instruction"] == asked


def workbook(**sheets: list[list[str]]) -> bytes:
    book, data = openpyxl.Workbook(), io.BytesIO()
    book.remove(book.worksheets[0])
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for cells in rows:
            sheet.append(cells)
    book.save(data)
    return data.getvalue()


FAQ = [["question", "answer"], *([f"What is {n}?", f"It is {n}."] for n in range(9))]
MAILS = [["customer", "agent"], *([f"Where is {n}?", f"At {n}."] for n in range(9))]


def test_every_sheet_of_a_spreadsheet_is_shown_with_its_first_rows_and_what_becomes_of_them() -> None:
    data = workbook(FAQ=FAQ, Counts=[["month", "count"], ["May", "7"]], Mails=MAILS, Notes=[["only a title"]])
    seen = preview.read("book.xlsx", data, len(data), PrepareSettings())
    assert list(seen.sheets.values()) == ["FAQ", "Counts", "Mails", "Notes"]
    assert [row.source for row in seen.rows] == ["book.xlsx"] * 3 + ["book.xlsx/Counts"] + ["book.xlsx/Mails"] * 3
    assert seen.mapping == (
        "question-answer: question -> instruction, answer -> output; columns: customer -> instruction, agent -> output"
    )
    shown = repr(_first_rows(preview.Previewed("t", (seen,), 0, (), offer=preview.offer(PrepareSettings(), [seen]))))
    assert "All 4 sheets are read: FAQ, Counts, Mails, Notes. No rows below a header: Notes." in shown
    assert "Counts  2    rejected: fields 'month', 'count'" in shown
    assert "Mails   2    Where is 0?" in shown
    alone = preview.read("one.xlsx", workbook(FAQ=FAQ), 1, PrepareSettings())
    assert "sheet" not in repr(_first_rows(preview.Previewed("t", (alone,), 0, ())))


def test_a_spreadsheet_is_opened_once_however_often_the_settings_change(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, load = [], openpyxl.load_workbook
    monkeypatch.setattr(openpyxl, "load_workbook", lambda *args, **named: opened.append(1) or load(*args, **named))
    data = workbook(Once=FAQ)
    for template in ("", "Asked: {question}", "{nothing}"):
        seen = preview.read("once.xlsx", data, len(data), PrepareSettings(instruction_template=template))
    assert "{nothing}" in seen.problem
    assert len(opened) == 1


def test_a_sheet_needs_a_change_only_where_no_other_says_what_is_asked() -> None:
    data = workbook(Counts=[["month", "count"]] + [["May", str(n)] for n in range(300)], Mails=MAILS)
    seen = preview.read("book.xlsx", data, len(data), PrepareSettings())
    assert [row.row is None for row in seen.rows] == [True] * 3 + [False] * 3
    data = workbook(Counts=[["month", "count"], ["May", "7"]], Years=[["year", "sum"], ["1999", "8"]])
    seen = preview.read("book.xlsx", data, len(data), PrepareSettings())
    shown = repr(_first_rows(preview.Previewed("t", (seen,), 0, (), offer=preview.offer(PrepareSettings(), [seen]))))
    assert "the columns do not say" in shown
    assert "All 2 sheets are read: Counts, Years." in shown
    assert seen.columns == ("month", "count", "year", "sum")


def test_files_in_an_archive_are_shown_each_with_its_own_rows() -> None:
    data = zip_of({"a.jsonl": as_bytes(distinct(9)), "b.csv": TICKETS})
    seen = preview.read("all.zip", data, len(data), PrepareSettings())
    shown = repr(_first_rows(preview.Previewed("t", (seen,), 0, (), offer=preview.offer(PrepareSettings(), [seen]))))
    assert "a.jsonl  3    Tell about" in shown
    assert "b.csv    2    It blinks" in shown


def test_the_beginning_of_a_file_is_read_up_to_its_last_whole_line() -> None:
    data = as_bytes(distinct(10))
    seen = preview.read("a.jsonl", data[:-20], len(data), PrepareSettings())
    assert len(seen.rows) == preview.ROWS
    assert all(row.row for row in seen.rows)


@pytest.mark.parametrize(
    "name", ["a.json", "a.xlsx", "a.parquet", "a.pdf", "a.docx", "a.zip", "a.csv.gz", "a.md", "a.html"]
)
def test_broken_files_are_shown_as_what_they_are(name: str) -> None:
    seen = preview.read(name, b"\x00\xffnothing of the kind", 21, PrepareSettings())
    assert seen.problem or all(row.reason or row.row for row in seen.rows)


@pytest.fixture
def uploaded(workspace: Workspace, tmp_path: Path) -> PrepareSettings:
    """Settings of a run with two uploaded files and a README."""
    runs.open_run(workspace, "demo", create=True).save("start", settings={"model_id": "tiny-llama"})
    folder = tmp_path / "lamps"
    folder.mkdir()
    (folder / "t.csv").write_bytes(TABLE)
    (folder / "rows.jsonl").write_bytes(as_bytes(distinct(8)))
    (folder / "README.md").write_text("What this folder is about.")
    shared = {"run_name": "demo", "user_id": workspace.user_id, "bucket": workspace.bucket}
    uploads.upload(workspace, UploadSettings(**shared, source=str(folder)))
    return PrepareSettings(**shared)


def test_the_preview_reads_the_upload_and_leaves_the_run_as_it_was(
    workspace: Workspace, uploaded: PrepareSettings
) -> None:
    before = runs.open_run(workspace, "demo").document
    seen = preview.Preview(workspace).look(uploaded)
    assert [file.name for file in seen.files] == ["rows.jsonl", "t.csv"]
    assert seen.left_out == (("README.md", "leave_out names 'readme*'"),)
    assert runs.open_run(workspace, "demo").document == before
    kept = preview.Preview(workspace).look(uploaded.model_copy(update={"leave_out": "t.csv"}))
    assert [file.name for file in kept.files] == ["README.md", "rows.jsonl"]


def test_a_folder_of_pages_hides_no_table_behind_it() -> None:
    def shown(*names: str) -> list[str]:
        return [item.name for item in preview.first_of_each([Stored(name, name, 1, "") for name in names])]

    pages = [f"faq/{number}.md" for number in range(9)]
    assert shown("chat.jsonl", *pages, "z.xlsx") == ["chat.jsonl", *pages[:4], "z.xlsx"]
    folders = [f"{number}/a.md" for number in range(9)]
    assert shown(*folders, "z.csv") == [*folders[:5], "z.csv"]
    assert shown(*pages) == pages[: preview.FILES]
    one = preview.read("t.csv", TICKETS, len(TICKETS), PrepareSettings())
    assert "and 1 more file" in (text := repr(_first_rows(preview.Previewed("t", (one,), 1, ()))))
    assert "files" not in text


def test_the_form_shows_the_preview_and_follows_it(workspace: Workspace, uploaded: PrepareSettings) -> None:
    form = Form("prepare", **uploaded.model_dump()).beside(first_rows())
    shown = form._beside.value
    assert "customer wrote" in shown
    assert "output_column = &#x27;we said&#x27;; used only when you set it" in shown
    assert "t.csv: needs a change" in form._verdict.value
    form._controls["instruction_column"].value = "customer wrote"
    form._controls["output_column"].value = "we said"
    assert "Where is my parcel" not in shown
    # Told columns count for every file, so the other one is now what needs a change.
    assert "Where is my parcel" in form._beside.value
    assert form.settings().output_column == "we said"


def test_a_proposed_mapping_is_taken_with_a_click(workspace: Workspace, uploaded: PrepareSettings) -> None:
    form = Form("prepare", **uploaded.model_dump() | {"leave_out": "*.jsonl, *.md"}).beside(first_rows())
    assert form._taken.description == "Set Instruction column and Output column as proposed"
    assert form._taken.tooltip == "Set Instruction column to customer wrote, Output column to we said"
    form._taken.click()
    assert "Where is my parcel" in form._beside.value
    assert (form.settings().instruction_column, form.settings().output_column) == ("customer wrote", "we said")


def test_files_that_name_their_columns_differently_are_read_together(workspace: Workspace, tmp_path: Path) -> None:
    runs.open_run(workspace, "demo", create=True).save("start", settings={"model_id": "tiny-llama"})
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "anfragen.csv").write_text("Anfrage;Antwort\nWo ist es?;Hier ist es.\n")
    (folder / "t.csv").write_bytes(TABLE)
    shared = {"run_name": "demo", "user_id": workspace.user_id, "bucket": workspace.bucket}
    uploads.upload(workspace, UploadSettings(**shared, source=str(folder)))
    form = Form("prepare", **shared, instruction_column="Anfrage", output_column="Antwort").beside(first_rows())
    assert "t.csv: needs a change" in form._verdict.value
    form._taken.click()
    assert form.settings().instruction_column == "Anfrage, customer wrote"
    assert form.settings().output_column == "Antwort, we said"
    assert "Run the next cell" in form._verdict.value
    assert "Where is my parcel" in form._beside.value
    assert "Hier ist es." in form._beside.value


def test_a_file_that_lacks_what_a_template_names_is_shown_as_it_would_be_rejected(
    workspace: Workspace, uploaded: PrepareSettings
) -> None:
    asked = {"instruction_template": "{customer wrote}?", "output_template": "{we said}."}
    rows, table = preview.Preview(workspace).look(uploaded.model_copy(update=asked)).files
    assert table.rows[0].row == {"instruction": "Where is my parcel?", "input": "", "output": "It is on its way."}
    assert (rows.problem, rows.rows[0].row) == ("", None)
    assert (
        "rows.jsonl has no {customer wrote}, {we said} (named in instruction_template, output_template)"
        in rows.rows[0].reason
    )
    nowhere = preview.Preview(workspace).look(uploaded.model_copy(update={"instruction_template": "{wrote}"}))
    assert all("{wrote}" in file.problem for file in nowhere.files)


def test_an_s3_prefix_is_a_source_of_its_own(workspace: Workspace, uploaded: PrepareSettings) -> None:
    prefix = workspace.paths.uri(workspace.paths.uploads("lamps"))
    seen = preview.Preview(workspace).look(uploaded.model_copy(update={"source": prefix}))
    assert [file.name for file in seen.files] == ["rows.jsonl", "t.csv"]
    assert seen.dataset == "lamps"
    single = preview.Preview(workspace).look(uploaded.model_copy(update={"source": f"{prefix}t.csv"}))
    assert [file.name for file in single.files] == ["t.csv"]
    with pytest.raises(NotFoundError, match="no bucket"):
        preview.Preview(workspace).look(uploaded.model_copy(update={"source": "s3://no-such-bucket-here/x/"}))
    with pytest.raises(NotFoundError, match="no files"):
        preview.Preview(workspace).look(uploaded.model_copy(update={"source": f"{prefix}nothing/"}))
    with pytest.raises(DataError, match="leave_out"):
        preview.Preview(workspace).look(uploaded.model_copy(update={"leave_out": "*"}))
