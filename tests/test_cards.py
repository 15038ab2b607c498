"""Cards: the same facts as text and as HTML, safe in Jupyter."""

from __future__ import annotations

import re

from llmtuner_kit.faces.cards import Card
from llmtuner_kit.faces.charts import Chart
from llmtuner_kit.faces.parts import Folded, Masked, Table, listed


def text_of(markup: str) -> str:
    return re.sub(r"<style>.*?</style>|<[^>]+>", "", markup)


def test_text_and_html_say_the_same() -> None:
    card = Card("Quote", [("money", "1 to 2")], [Table("Files", ("file",), [("a.csv",)])], "04_monitor")
    for part in ("Quote", "money", "1 to 2", "Files", "a.csv", "04_monitor"):
        assert part in repr(card)
        assert part in text_of(card._repr_html_())


def test_only_the_first_line_above_a_table_is_its_title() -> None:
    markup = Card("", parts=[Table("a.csv\nColumns: x\nAll are read", ("file",), [("a",)])])._repr_html_()
    assert "<caption>a.csv<div>Columns: x\nAll are read</div></caption>" in markup


def test_amounts_are_never_read_as_a_formula() -> None:
    markup = Card("Quote $1 to $2", [("money", "$0.02 to $0.09")], ["$3 and $4"])._repr_html_()
    for text in re.split(r"<[^>]+>", markup):
        assert text.count("$") <= 1


def test_what_users_wrote_is_escaped() -> None:
    markup = Card("<b>x</b>", [("k", "<script>")], [Masked("row", ["<i>", "b"], [True, False])])._repr_html_()
    assert "<script>" not in markup
    assert "<b>x</b>" not in markup
    assert "&lt;i&gt;" in markup


def test_mask_is_marked_in_text_not_by_colour_alone() -> None:
    card = Card("Mask", parts=[Masked("row 1", ["Hello ", "there"], [False, True])])
    assert "Hello [[there]]" in repr(card)
    assert "title='trained on'" in card._repr_html_()


def test_chart_has_words_beside_its_picture() -> None:
    chart = Chart("Loss", "step", {"training": [(1, 3.0), (2, 2.0)]}, "training from 3.000 to 2.000")
    markup = Card("Job", parts=[chart])._repr_html_()
    assert "alt='Loss: training from 3.000 to 2.000'" in markup
    assert "data:image/png;base64," in markup
    assert "training from 3.000 to 2.000" in repr(Card("Job", parts=[chart]))


def test_a_column_in_which_nothing_stands_is_not_shown() -> None:
    card = Card("x", parts=[Table("", ("found", "how to mend it", "count"), [("a", "", 0), ("b", "", 1)])])
    assert "how to mend it" not in repr(card)
    assert "how to mend it" not in card._repr_html_()
    assert "count" in card._repr_html_()


def test_a_long_list_folds_and_loses_no_row() -> None:
    first, more = listed("Files", ("file",), [(f"{n}.md",) for n in range(25)])
    assert [len(first.rows), more.title, len(more.parts[0].rows)] == [20, "and 5 more", 5]
    card = Card("x", parts=[first, more])
    assert "24.md" in card._repr_html_()
    assert repr(card).splitlines()[-3:] == ["19.md", "", "and 5 more: open the executed notebook for the list"]
    assert "24.md" not in repr(card)
    assert len(listed("Files", ("file",), [("a",)])) == 1


def test_in_a_log_a_cell_of_several_lines_stays_in_its_column() -> None:
    table = Table("", ("who", "answer"), [("A", "one\ntwo"), ("B", "")])
    assert repr(Card("x", parts=[table])).splitlines()[2:] == ["who  answer", "A    one", "     two", "B"]


def test_a_notebook_that_comes_next_opens_with_a_click() -> None:
    assert "<a href='04_monitor.ipynb'>04_monitor</a>" in Card("x", following="04_monitor")._repr_html_()


def test_a_sentence_in_the_first_column_is_wrapped_and_a_name_is_not() -> None:
    assert "<table class='n'>" in Card("x", parts=[Table("", ("file",), [("a.csv",)])])._repr_html_()
    assert "<table class='n'>" not in Card("x", parts=[Table("", ("question",), [("why " * 20,)])])._repr_html_()


def test_whole_numbers_have_their_thousands_apart_and_names_stay_as_they_are() -> None:
    card = Card("Rows", [("rows", 1234567), ("version", "20260101"), ("share", 0.25), ("ready", True)])
    for text in (repr(card), text_of(card._repr_html_())):
        assert "1,234,567" in text
        assert "20260101" in text
    assert "0.25" in repr(card)
    assert "True" in repr(card)


def test_a_sentence_is_a_paragraph_a_log_keeps_its_lines_and_an_address_is_a_link() -> None:
    markup = Card("x", parts=["One sentence.", "line 1\nline 2", "https://example.org/a?b=1&c=2"])._repr_html_()
    assert "<p>One sentence.</p>" in markup
    assert "<pre>line 1\nline 2</pre>" in markup
    assert "<a href='https://example.org/a?b=1&amp;c=2'" in markup


def test_folded_parts_follow_in_text_and_open_with_a_click_in_html() -> None:
    card = Card("x", parts=[Folded("Key", [Table("", ("q",), [("1",)]), "said"])])
    assert repr(card).splitlines()[-4:] == ["Key", "  q", "  1", "  said"]
    assert "<details><summary>Key</summary>" in card._repr_html_()
