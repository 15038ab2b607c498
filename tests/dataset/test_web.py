"""Of a saved web page its own text is trained on: not menus, banners and votes; lists and tables stay what they are."""

from __future__ import annotations

import pytest

from llmtuner_kit.dataset import web
from llmtuner_kit.dataset.defects import RowError

ARTICLE = """<h1>Reset the hub</h1><div class="article-meta">Updated 3 months ago</div>
<p>The hub forgets its rooms, but the app keeps them for thirty days.</p>
<h2>How is it done?</h2><ol><li>Open <i>Settings</i>.</li><li><p>Press the button:</p><ul><li>ten seconds</li></ul></li></ol>"""
AROUND = """<!doctype html><title>Reset the hub | Lamps &amp; Co</title><a class="skip-link" href="#m">Skip to content</a>
<div id="onetrust-banner-sdk"><p>We use cookies to improve your experience.</p><button>Accept all</button></div>
<header><a href="/">Lamps</a> <a href="/help">Help</a></header>
<div class="left"><h3>Categories</h3><ul><li><a href="/a">Rooms</a></li><li><a href="/b">Error codes</a></li></ul></div>
<ol class="breadcrumb"><li><a href="/">Home</a></li><li>Reset the hub</li></ol>
{0}<div class="article-votes">Was this article helpful? <button>Yes</button></div>
<aside><h3>Related articles</h3><p><a href="/1">Pair a lamp</a> <a href="/2">Name a room</a></p></aside>
<div class="footer"><p>© Lamps &amp; Co, all rights reserved</p></div>"""


def read(page: str) -> dict[str, str]:
    return {" > ".join(section.headings): section.text for section in web.sections(page)}


@pytest.mark.parametrize(
    "inside", ["<main id=m>{0}</main>", "<article><header>{0}</header></article>", "<div>{0}</div>"]
)
def test_only_the_article_of_a_help_page_is_read(inside: str) -> None:
    assert read(AROUND.format(inside.format(ARTICLE))) == {
        "Reset the hub": "The hub forgets its rooms, but the app keeps them for thirty days.",
        "Reset the hub > How is it done?": "1. Open Settings.\n2. Press the button:\n   - ten seconds",
    }


def test_a_table_of_data_is_a_table_and_one_that_arranges_a_page_is_not() -> None:
    data = "<table><tr><th>Code<th>Do</tr><tr><td>E1<td>Press <b>reset</b>|hold</tr></table>"
    page = f"<table><tr><td><h1>Codes</h1><p>What they say:</p>{data}</td><td>Call us.</td></tr></table>"
    table = "| Code | Do |\n| --- | --- |\n| E1 | Press reset\\|hold |"
    assert read(page) == {"Codes": f"What they say:\n\n{table}\n\nCall us."}


@pytest.mark.parametrize(
    "asked",
    [
        "<dl><dt>Is it loud?</dt><dd>No, not at all.</dd></dl>",
        "<details><summary>Is it loud?</summary>No, not at all.</details>",
        "<p><b>Is it loud?</b></p><p>No, not at all.</p>",
        "<p><strong>Is it loud?</strong><br>No, not at all.</p>",
        "<h3><button>Is it loud?</button></h3><div hidden>No, not at all.</div>",
    ],
)
def test_questions_of_a_faq_ask(asked: str) -> None:
    assert read(f"<h1>Pumps</h1>{asked}") == {"Pumps > Is it loud?": "No, not at all."}


def test_text_between_blocks_and_lines_of_code_are_kept() -> None:
    page = "<title>Pumps - Help</title><div>First, <b>sto</b>p.<p>Then go.</p>At last:<br>rest<pre>a\n  b</pre></div>"
    assert read(page) == {"Pumps": "First, stop.\n\nThen go.\n\nAt last:\nrest\n\n```\na\n  b\n```"}


def test_words_in_parts_numbers_of_lists_captions_and_signs_of_markdown_are_what_they_were() -> None:
    page = """<h1>P<b>um</b>ps</h1><div># of turns: 5<br>then<hr>rest</div><ol start=3><li>Wait.<li>Stop.</ol>
<table><caption>Sizes</caption><tr><td>S</td><td>2</td></tr><tr><td>M</td><td>3</td></tr></table>"""
    assert read(page) == {
        "Pumps": "\\# of turns: 5\nthen\nrest\n\n3. Wait.\n4. Stop.\n\nSizes\n\n| S | 2 |\n| --- | --- |\n| M | 3 |"
    }


@pytest.mark.parametrize("tag", ["form", "nav", "footer", "dialog"])
def test_a_page_that_is_all_in_a_tag_of_another_purpose_is_read(tag: str) -> None:
    assert read(f"<{tag}><h2>Hours</h2><p>Open from nine to five.</p></{tag}>") == {"Hours": "Open from nine to five."}


def test_a_button_that_asks_heads_its_answer_and_marks_of_anchors_are_left_out() -> None:
    page = "<h1>Pumps<a href='#p'>¶</a></h1><div><button>Is it loud?</button><p>No.</p><button>Buy</button></div>"
    assert read(page) == {"Pumps > Is it loud?": "No."}


def test_what_is_most_of_a_page_is_kept_whatever_it_is_called() -> None:
    assert read(f"<div class='meta sidebar'><p>{'word ' * 50}</p></div>") == {"": ("word " * 50).strip()}


def test_a_page_nested_without_end_is_refused_with_the_reason() -> None:
    with pytest.raises(RowError, match="nested"):
        list(web.sections("<div>" * 3000 + "x"))
