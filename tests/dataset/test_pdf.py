"""What a person reads in a PDF is what is trained on: no running titles, whole words, headings as questions, tables."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llmtuner_kit.dataset import documents, pages, preview
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.settings import PrepareSettings

WIDE, HIGH = 400, 560
Text = tuple[float, float, str, dict[str, object]]
PLAIN: dict[str, object] = {"fontsize": 10}
TITLE: dict[str, object] = {"fontsize": 18, "weight": "bold"}
SMALL: dict[str, object] = {"fontsize": 7}
BODY = """The pump of the boiler is bled once a year, before the heat-
ing season begins. Close both of the valves first. A well-
insulated pipe loses little warmth, and the con-
troller tells you when the work is done."""
WHOLE = (
    "The pump of the boiler is bled once a year, before the heating season begins. Close both of the valves first. "
    "A well-insulated pipe loses little warmth, and the controller tells you when the work is done."
)
OTHER = """Without a well-insulated boiler the controller has nothing
to do but count the hours of the night, and it counts them well."""


def pdf(*pages: list[Text], rules: tuple[tuple[float, float, float, float], ...] = ()) -> bytes:
    """Pages of texts at points from the top left; `rules` are drawn on the last page."""
    data = io.BytesIO()
    with PdfPages(data) as book:
        for number, texts in enumerate(pages, 1):
            figure = Figure(figsize=(WIDE / 72, HIGH / 72))
            for x, y, text, style in texts:
                for line in text.split("\n"):
                    figure.text(x / WIDE, 1 - y / HIGH, line, va="baseline", parse_math=False, **style)
                    y += 13
            for x1, y1, x2, y2 in rules if number == len(pages) else ():
                edge = Line2D([x1 / WIDE, x2 / WIDE], [1 - y1 / HIGH, 1 - y2 / HIGH], linewidth=0.5, color="black")
                figure.add_artist(edge)
            book.savefig(figure)
    return data.getvalue()


@pytest.fixture
def answers(tmp_path: Path) -> Callable[[bytes], dict[str, str]]:
    """The text of each section under its headings."""

    def read(data: bytes) -> dict[str, str]:
        path = tmp_path / "a.pdf"
        path.write_bytes(data)
        return {" > ".join(section.headings): section.text for section in documents.sections_of(path, "pdf", "")}

    return read


Read = Callable[[bytes], dict[str, str]]


def test_headings_ask_and_words_are_whole_again(answers: Read) -> None:
    page = [(40, 60, "1 Care of the pump", TITLE), (40, 90, BODY, PLAIN)]
    last = [(40, 60, "2 What the\n", TITLE), (40, 80, "controller does", TITLE), (40, 110, OTHER, PLAIN)]
    found = answers(pdf(page, last))
    assert found == {
        "Care of the pump": WHOLE,
        "What the controller does": OTHER.replace("\n", " "),
    }


def test_what_pages_repeat_at_their_edges_is_left_out(answers: Read) -> None:
    chapters = ["Safety", "Safety", "Care", "Care"]
    pages = [
        [
            (40, 25, f"Boiler 200 {chapter}", SMALL),
            (40, 60, f"Part {'ABCD'[n]}", TITLE),
            (40, 90, f"{OTHER} On page {n + 1} of it the lamp is {['red', 'green', 'blue', 'grey'][n]}.", PLAIN),
            (180, 540, f"Page {n + 1} of 4", SMALL),
        ]
        for n, chapter in enumerate(chapters)
    ]
    found = answers(pdf(*pages))
    assert list(found) == [f"Part {letter}" for letter in "ABCD"]
    assert not any("Boiler 200" in text or " of 4" in text for text in found.values())
    assert all(f"On page {n} of it" in text for n, text in enumerate(found.values(), 1))


def test_a_paragraph_goes_on_behind_the_end_of_its_page(answers: Read) -> None:
    lines = BODY.split("\n")
    pages = [[(40, 60, "\n".join(lines[:3]), PLAIN)], [(40, 60, lines[3], PLAIN), (40, 100, OTHER, PLAIN)]]
    (text,) = answers(pdf(*pages)).values()
    assert text == f"{WHOLE}\n\n{OTHER}".replace("nothing\n", "nothing ")


def test_a_ruled_table_and_one_of_wide_gaps_stay_tables(answers: Read) -> None:
    gaps = [
        (40, 60, "Codes of the boiler", TITLE),
        (40, 90, OTHER, PLAIN),
        *((x, 130 + 15 * row, text, PLAIN) for row, texts in enumerate([("Code", "Meaning of it"), ("E01", "no water")])
          for x, text in zip((40, 160), texts, strict=True)),
    ]  # fmt: skip
    ruled = [
        (40, 60, "Parts of the boiler", TITLE),
        (40, 90, BODY.split("\n")[0], PLAIN),
        (42, 131, "Part", PLAIN), (142, 131, "Where it is", PLAIN),
        (42, 151, "Pump", PLAIN), (142, 151, "behind the lower\nfront panel", PLAIN),
    ]  # fmt: skip
    edges = [(40, y, 300, y) for y in (120, 138, 172)] + [(x, 120, x, 172) for x in (40, 140, 300)]
    found = answers(pdf(gaps, ruled, rules=tuple(edges)))
    table = "| Code | Meaning of it |\n| --- | --- |\n| E01 | no water |"
    assert found["Codes of the boiler"].endswith(f"well.\n\n{table}")
    table = "| Part | Where it is |\n| --- | --- |\n| Pump | behind the lower front panel |"
    assert found["Parts of the boiler"].endswith(f"\n\n{table}")


def test_items_and_code_keep_their_lines(answers: Read) -> None:
    code = {"fontsize": 9, "family": "monospace"}
    page = [
        (40, 90, OTHER, PLAIN),
        (50, 130, "• the valve is closed\n• the lamp has been red\nfor a minute or more", PLAIN),
        (40, 190, "for n in range(3):\n    ring(n)", code),
    ]
    (text,) = answers(pdf(page)).values()
    assert "\n\n- the valve is closed\n- the lamp has been red for a minute or more\n\n" in text
    assert text.endswith("```\nfor n in range(3):\n    ring(n)\n```")


def test_columns_are_read_one_after_the_other_and_watermarks_are_not_read(answers: Read) -> None:
    page = [
        (100, 400, "DRAFT", {"fontsize": 60, "rotation": 50}),
        (30, 60, OTHER.replace(" the hours", "\nthe hours"), SMALL),
        (220, 60, BODY, SMALL),
    ]
    (text,) = answers(pdf(page)).values()
    assert text == f"{' '.join(OTHER.split())} {WHOLE}".replace("well. The", "well.\n\nThe")


def test_a_contents_page_teaches_nothing(answers: Read) -> None:
    contents = [(40, 60, "Contents", TITLE), (40, 90, f"1 Care {'.' * 40} 2\n2 Parts {'. ' * 20} 14", PLAIN)]
    page = [(40, 60, "Care", TITLE), (40, 90, OTHER, PLAIN)]
    assert len(answers(pdf(contents, page, page[:1]))) == 1


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_pages_on_their_side_are_read_as_the_others(answers: Read, angle: int) -> None:
    style = {**PLAIN, "rotation": angle, "rotation_mode": "anchor"}
    across, down = {90: (13, 0), 180: (0, -13), 270: (-13, 0)}[angle]
    lines = [(200 + across * n, 280 + down * n, line, style) for n, line in enumerate(BODY.split("\n"))]
    assert list(answers(pdf(lines, [(40, 60, OTHER, PLAIN)])).values()) == [f"{WHOLE}\n\n{' '.join(OTHER.split())}"]


def test_words_stay_whole_where_their_type_changes(answers: Read) -> None:
    page = [(40, 60, OTHER, PLAIN), (40, 120, "CO", PLAIN), (56, 122, "2", SMALL), (62, 120, "is a gas.", PLAIN)]
    (text,) = answers(pdf(page)).values()
    assert text.endswith("\n\nCO2 is a gas.")


def test_a_password_is_told_from_a_broken_file(answers: Read) -> None:
    key = f"<{'00' * 32}>"
    trailer = f"trailer<</Root 1 0 R/ID[<00><00>]/Encrypt<</Filter/Standard/V 1/R 2/O{key}/U{key}/P -4>>>>"
    with pytest.raises(RowError, match="protected by a password"):
        answers(f"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n{trailer}\n%%EOF".encode())
    with pytest.raises(RowError, match="not a PDF, or broken"):
        answers(b"%PDF-1.7\n" + b"x" * 900)


def test_letters_printed_twice_to_look_bold_are_read_once(answers: Read) -> None:
    assert list(answers(pdf([(40, 60, OTHER, PLAIN), (40.2, 60, OTHER, PLAIN)])).values()) == [OTHER.replace("\n", " ")]


def test_a_drawing_of_many_lines_is_no_table(answers: Read) -> None:
    edges = [(5, 5 + 4 * n, 395, 5 + 4 * n) for n in range(90)] + [(5 + 4 * n, 5, 5 + 4 * n, 365) for n in range(90)]
    assert list(answers(pdf([(40, 200, OTHER, PLAIN)], rules=tuple(edges))).values()) == [OTHER.replace("\n", " ")]


def test_the_preview_of_a_long_manual_reads_its_first_pages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        "Pump",
        "Valve",
        "Boiler",
        "Burner",
        "Pipe",
        "Fan",
        "Filter",
        "Tank",
        "Hose",
        "Gauge",
        "Fuse",
        "Lid",
        "Leg",
    ]
    manual = pdf(*([(40, 60, part, TITLE), (40, 100, f"The {part} is of brass.", PLAIN)] for part in parts))
    plain, read = pages._page, []
    monkeypatch.setattr(pages, "_page", lambda page: read.append(page.page_number) or plain(page))
    shown = preview.read("manual.pdf", manual, len(manual), PrepareSettings())
    assert read == list(range(1, preview.PAGES + 1)) != list(range(1, len(parts) + 1))
    answers = [row.row["output"] for row in shown.rows if row.row]
    assert answers == [f"The {part} is of brass." for part in parts[: preview.ROWS]]
