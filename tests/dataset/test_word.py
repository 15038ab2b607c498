"""Word documents: lists keep bullets and numbers, tables stay tables, headings are told by their style or by being bold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import docx
import pytest

from llmtuner_kit.dataset import documents


def read(path: Path, document: docx.document.Document) -> dict[str, str]:
    document.save(str(path))
    return {" > ".join(part.headings): part.text for part in documents.sections_of(path, "docx", "")}


def xml_of(text: str) -> Any:
    return docx.oxml.parse_xml(re.sub(r"^<[\w:]+", rf"\g<0> {docx.oxml.ns.nsdecls('w')}", text))


def test_lists_and_tables_are_written_as_markdown(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_heading("Returns", 1)
    document.add_paragraph("Do this:")
    for text in ("Open the box.", "Take the label out."):
        document.add_paragraph(text, style="List Number")
    document.add_paragraph("on its left side", style="List Bullet 2")
    document.add_paragraph("Send it.", style="List Number")
    document.add_paragraph("be polite", style="List Bullet")
    table = document.add_table(3, 2)
    for row, texts in enumerate([("Thing", "Days"), ("Lamp", "30"), ("No sealed bags.", "")]):
        for column, text in enumerate(texts):
            table.cell(row, column).text = text
    table.cell(2, 0).merge(table.cell(2, 1))
    document.add_heading("Other", 1)
    document.add_paragraph("Ask us.", style="List Number")
    assert read(tmp_path / "a.docx", document) == {
        "Returns": "Do this:\n\n1. Open the box.\n2. Take the label out.\n\n- on its left side\n\n3. Send it.\n\n- be polite\n\n"
        "| Thing | Days |\n| --- | --- |\n| Lamp | 30 |\n| No sealed bags. |  |",
        "Other": "1. Ask us.",
    }


def test_a_style_based_on_a_heading_and_a_short_bold_line_are_headings(tmp_path: Path) -> None:
    document = docx.Document()
    own = document.styles.add_style("Our chapter", docx.enum.style.WD_STYLE_TYPE.PARAGRAPH)
    own.base_style = document.styles["Heading 2"]
    document.add_heading("Manual", 0)
    document.add_paragraph("Night", style="Our chapter")
    document.add_paragraph("It glows.")
    document.add_paragraph().add_run("On weekends").bold = True
    document.add_paragraph().add_run("Never open it.").bold = True
    found = read(tmp_path / "a.docx", document)
    assert found == {"Manual > Night": "It glows.", "Manual > Night > On weekends": "Never open it."}


def test_text_in_content_controls_tracked_insertions_and_boxes_is_read(tmp_path: Path) -> None:
    document = docx.Document()
    paragraph = document.add_paragraph("We pay ")
    for xml in (
        "<w:ins w:id='1'><w:r><w:t>all of </w:t></w:r><w:smartTag><w:r><w:t>the </w:t></w:r></w:smartTag></w:ins>",
        "<w:del w:id='2'><w:r><w:delText>tax and </w:delText></w:r></w:del>",
        "<w:sdt><w:sdtContent><w:r><w:t>postage.</w:t></w:r></w:sdtContent></w:sdt>",
        "<w:r><w:pict><w:txbxContent><w:p><w:r><w:t>Boxed</w:t></w:r></w:p></w:txbxContent></w:pict></w:r>",
    ):
        paragraph._p.append(xml_of(xml))
    contents = "<w:sdtPr><w:docPartObj><w:docPartGallery w:val='Table of Contents'/></w:docPartObj></w:sdtPr>"
    for properties, text in (("", "Held"), (contents, "Night 3"), ("<w:sdtPr/>", "Held too")):
        held = f"<w:sdt>{properties}<w:sdtContent><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:sdtContent></w:sdt>"
        paragraph._p.addprevious(xml_of(held))
    assert read(tmp_path / "a.docx", document) == {"": "Held\n\nHeld too\n\nWe pay all of the postage.\n\nBoxed"}


@pytest.mark.parametrize("text", ["", "   "])
def test_a_document_without_text_has_no_sections(tmp_path: Path, text: str) -> None:
    document = docx.Document()
    document.add_paragraph(text)
    document.add_table(2, 2)
    assert read(tmp_path / "a.docx", document) == {}
