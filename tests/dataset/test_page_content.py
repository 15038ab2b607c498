"""Pages read at once are what pdfminer reads one object after the other, and what is not is left to it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pdfplumber
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from pdfminer.pdfinterp import PDFContentParser
from pdfminer.pdftypes import PDFStream
from pdfminer.psparser import PSEOF, PSException
from pdfplumber.page import Page

from llmtuner_kit.dataset import page_content
from llmtuner_kit.dataset.light_page import LightPage

PIECES = [
    b"BT", b"ET", b"/F1 9 Tf", b"1 0 0 -1 3.50 .5 Tm", b"-.25", b"+7", b"-0", b"5.", b"12", b"Td", b"T*", b"'", b'"', b"f*",
    b"(plain)", b"(a\\(b\\)\\\\)", b"(\\101\\n\\r\n)", b"(\\q\\\n)", b"(nested (parens))", b"(\\7)", b"(\\53x)", b"(\\377)",
    b"<0041 4\n2>", b"<>", b"<4>", b"<G>", b"[(A) -120 <42> 3.5]", b"[[1] 2]", b"<</MCID 0/Lang (en)>>", b"<</A null /B<</C[1]>>>>",
    b"/Na#20me", b"/", b"/P", b"BDC", b"EMC", b"true", b"false", b"null", b"% a comment\n", b"\0", b"\r\n", b"\t", b"  ",
    b"]", b">>", b"[", b"<<", b"<<1>>", b"{", b"}", b"-", b".", b"--5", b"1-2", b"1.2.3", b"4a", b"*", b"(open", b"BI /W 1 ID x EI",
    b"\xe9", b"/\xe9", b"(\xe9)", b"T\xe9",
]  # fmt: skip


def by_pdfminer(content: bytes) -> list[Any] | None:
    parser = PDFContentParser([PDFStream({}, content)])
    found = []
    try:
        while True:
            found.append(parser.nextobject()[1])
    except PSEOF:
        return found
    except (PSException, ValueError, AssertionError, TypeError):
        return None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=12), st.sampled_from([b" ", b"", b"\n"]))
@example([b"<00 4", b"1>"], b"\n")
@example([b"BT", b"/F1 9 Tf", b"<0041>", b"Tj", b"ET"], b" ")
def test_objects_are_what_pdfminer_reads_or_left_to_it(pieces: list[bytes], between: bytes) -> None:
    content = between.join(pieces)
    found = page_content.objects(content)
    assert found is None or repr(found) == repr(by_pdfminer(content))


@pytest.mark.parametrize(
    "content",
    [
        b"BT /F1 9 Tf 1 0 0 1 72.5 -.5 Tm (a\\(b\\101) Tj [(A) -120 <42 43>] TJ T* (x) ' ET",
        b"/P <</MCID 0 /A null>> BDC 0 0 1 rg 1 2 3 4 re f* EMC Q",
    ],
)
def test_what_pages_are_made_of_is_read_at_once(content: bytes) -> None:
    found = page_content.objects(content)
    assert found
    assert repr(found) == repr(by_pdfminer(content))


def drawn() -> bytes:
    data = io.BytesIO()
    with PdfPages(data) as book:
        for turn in (0, 30, 90):
            figure = Figure(figsize=(4, 3))
            figure.text(0.2, 0.5, "Valves (both) and a pump\\", rotation=turn, weight="bold")
            axes = figure.add_subplot()
            axes.plot([1, 3, 2])
            book.savefig(figure)
    return data.getvalue()


def test_a_light_page_has_the_letters_and_lines_of_a_page(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(drawn().replace(b"/MediaBox [ 0 0 ", b"/MediaBox [ 9 7 "))
    with pdfplumber.open(path) as whole, pdfplumber.open(path) as again:
        for page, other in zip(whole.pages, again.pages, strict=True):
            light = LightPage(again, other.page_obj, other.page_number)
            assert len(page.chars) == len(light.chars) > 20
            for one, two in zip(page.chars, light.chars, strict=True):
                # The place in all pages one below the other is of no use.
                assert two.items() - {("doctop", two["doctop"])} <= one.items()
            plain = Page(again, other.page_obj, other.page_number)
            assert [(edge["x0"], edge["top"]) for edge in light.edges] == [(e["x0"], e["top"]) for e in plain.edges]
            assert light.edges
