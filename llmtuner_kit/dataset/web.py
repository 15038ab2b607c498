"""A saved web page -> sections: what the page is about, without what stands around it on every page of its site."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmtuner_kit.dataset import passages
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.dataset.records import Passage

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

_NEVER = [
    "script", "style", "noscript", "template", "svg", "select", "iframe", "object", "video", "audio", "canvas",
    "colgroup",
]  # fmt: skip
_SELDOM = frozenset({"nav", "footer", "form", "dialog"})  # older sites put all of a page into a form
_ROLES = frozenset({"navigation", "banner", "contentinfo", "search", "dialog", "alertdialog", "menu", "menubar"})
# Words in the names that pages give to what stands around their text.
_AROUND = frozenset(
    {
        "breadcrumb", "breadcrumbs", "byline", "consent", "cookie", "cookies", "editsection", "feedback", "footer",
        "gdpr", "helpful", "masthead", "meta", "navbar", "newsletter", "onetrust", "pager", "pagination", "related",
        "share", "sharing", "sidebar", "skip", "social", "subscribe", "topnav", "vote", "votes",
    }
)  # fmt: skip
_OWN = ["h1", "main", "article"]
_HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
# What is hardly more than links is a menu.
_MENUS = frozenset({"ul", "ol", "div", "td", "aside", "section", "p", "center", "table"})
_BLOCKS = [
    "address", "aside", "blockquote", "body", "button", "caption", "center", "dd", "details", "dl", "dt", "fieldset",
    "figcaption", "figure", "header", "hgroup", "legend", "main", "summary",
]  # fmt: skip
# Emphasis, links and pictures are left out.
_MARKDOWN: dict[str, Any] = {
    "convert": [
        *_HEADINGS, "article", "br", "div", "li", "ol", "p", "pre", "q", "section", "table", "td", "th", "tr", "ul"
    ],
    "heading_style": "atx",
    "bullets": "-",
    "table_infer_header": True,
    "escape_asterisks": False,
    "escape_underscores": False,
    "wrap": True,  # line breaks of the source are blanks,
    "wrap_width": None,  # and no new ones are made
}  # fmt: skip


def sections(text: str) -> Iterator[Passage]:
    """The sections of a page with their headings. Raises RowError when it is none."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    try:
        page = BeautifulSoup(text, "lxml", multi_valued_attributes=None)
        core = _core(page)
        _simplify(core)
        if not core.h1 and (title := _title(page)):
            core.insert(0, page.new_tag("h1", string=title))
        written = MarkdownConverter(**_MARKDOWN).convert_soup(core).replace("\xa0", " ")
    except RecursionError as error:
        raise RowError("unreadable_file", "not a web page: its tags are nested hundreds of levels deep") from error
    except (ValueError, AssertionError) as error:
        raise RowError("unreadable_file", f"not a web page: {error}") from error
    yield from passages.markdown_sections(re.sub(r" +$", "", written, flags=re.MULTILINE))


def _core(page: BeautifulSoup) -> Tag:
    """The part of a page that is its own: the one it calls main, or all of it; navigation and the like are taken out."""
    from bs4.element import PreformattedString

    for useless in page(_NEVER):
        useless.decompose()
    for comment in page.find_all(string=lambda string: isinstance(string, PreformattedString)):
        comment.extract()
    letters, linked = _letters(page)

    def is_around(tag: Tag) -> bool:
        size = letters[id(tag)]
        if size >= 0.5 * letters[id(page)] or tag.name in _OWN:
            return False
        menu = tag.name in _MENUS and linked[id(tag)] > 0.75 * size and len(tag("a", href=True, limit=2)) > 1
        return (menu or _is_called_around(tag)) and not tag.find(_OWN)

    for tag in [tag for tag in page(True) if is_around(tag)]:
        tag.extract()
    for name in ("main", "article"):
        found = page.select(f"{name}, [role={name}]")
        if len(found) == 1 and len(found[0].get_text()) > 0.3 * len(page.get_text()):
            return found[0]
    return page.body or page


def _letters(page: BeautifulSoup) -> tuple[Counter[int], Counter[int]]:
    """How many letters are in each tag and how many of them in links, by its id; from the leaves up, as they nest deep."""
    letters: Counter[int] = Counter()
    linked: Counter[int] = Counter()
    for tag in (*reversed(page(True)), page):
        letters[id(tag)] += sum(sum(map(str.isalnum, child)) for child in tag.children if isinstance(child, str))
        if tag.name == "a" and tag.has_attr("href"):
            linked[id(tag)] = letters[id(tag)]
        if tag.parent is not None:
            letters[id(tag.parent)] += letters[id(tag)]
            linked[id(tag.parent)] += linked[id(tag)]
    return letters, linked


def _is_called_around(tag: Tag) -> bool:
    """Whether a tag stands around the text, by what it is or is called."""
    if tag.name == "header":
        return tag.find_parent(["main", "article"]) is None
    if tag.name == "button":
        return tag.find_parent([*_HEADINGS, "dt", "summary"]) is None and not _asks(tag)
    if tag.name in _SELDOM or (tag.name == "a" and not any(map(str.isalnum, tag.get_text()))):
        return True  # a link without a word marks an anchor
    named = f"{tag.get('id', '')} {tag.get('class', '')}"
    words = re.split(r"[\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", named).lower())
    return tag.get("role") in _ROLES or not _AROUND.isdisjoint(words)


def _title(page: BeautifulSoup) -> str:
    """The title of a page without the name of its site."""
    return re.split(r"\s+[|–—·»-]\s+", " ".join(page.title.get_text().split()))[0] if page.title else ""


def _simplify(core: Tag) -> None:
    """Leave tags that Markdown has the like of: what asks is a heading, what only arranges a page a plain block."""
    for tag in core(["dt", "summary", "button", "b", "strong"]):
        if _asks(tag) and (tag.name not in ("b", "strong") or _begins_paragraph(tag)):
            tag.name = "h6"
    for tag in core(["table", "ul", "ol"]):
        if _is_data(tag):
            tag.insert_before(*(caption.extract() for caption in tag("caption")))
            continue
        parts = [part for part in tag(["tr", "td", "th", "li"]) if part.find_parent(["table", "ul", "ol"]) is tag]
        for part in (tag, *parts):
            part.name = "div"
    for tag in core(_BLOCKS):
        tag.name = "div"
    for tag in core("hr"):
        tag.name = "br"
    for tag in core.select("li > p:first-child"):
        tag.unwrap()
    for string in core(string=re.compile(r"^\s*#|\|")):
        if string.find_parent("pre") is None:
            escaped = string.replace("|", "\\|") if string.find_parent(["td", "th"]) else string
            string.replace_with(re.sub(r"^(\s*)#", r"\1\#", escaped))


def _is_data(tag: Tag) -> bool:
    """Whether a table or a list is one: pages also use them to arrange what is on them."""
    if tag.name != "table":
        return not tag.find(_HEADINGS)
    return not tag.find(["table", *_HEADINGS, "ul", "ol"]) and any(len(row(["td", "th"])) > 1 for row in tag("tr")[1:])


def _asks(tag: Tag) -> bool:
    text = tag.get_text().strip()
    return 3 < len(text) < 200 and text.endswith(("?", "？"))


def _begins_paragraph(tag: Tag) -> bool:
    before = "".join(str(sibling) for sibling in tag.previous_siblings)
    return tag.parent is not None and tag.parent.name == "p" and not before.strip()
