"""A saved web page -> sections: what the page is about, without what stands around it on every page of its site."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtuner_kit.dataset import markdown
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.dataset.records import Passage

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

_NEVER = [
    "script", "style", "noscript", "template", "svg", "form", "nav", "footer", "dialog", "select", "iframe", "object",
    "video", "audio", "canvas",
]  # fmt: skip
_ROLES = frozenset({"navigation", "banner", "contentinfo", "search", "dialog", "alertdialog", "menu", "menubar"})
# Words in the names that pages give to what stands around their text.
_AROUND = frozenset(
    {
        "breadcrumb", "breadcrumbs", "byline", "consent", "cookie", "cookies", "feedback", "footer", "gdpr", "helpful",
        "masthead", "meta", "navbar", "newsletter", "onetrust", "pager", "pagination", "related", "share", "sharing",
        "sidebar", "skip", "social", "subscribe", "topnav", "vote", "votes",
    }
)  # fmt: skip
_HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
_BLOCKS = frozenset([
    *_HEADINGS, "address", "article", "aside", "blockquote", "body", "center", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "header", "hr", "li", "main", "ol", "p", "pre", "section", "summary", "table",
    "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
])  # fmt: skip
# What is hardly more than links is a menu.
_MENUS = frozenset({"ul", "ol", "div", "td", "aside", "section", "p", "center", "table"})
_QUESTION = 7  # the level of a heading that is told only by its asking


def sections(text: str) -> Iterator[Passage]:
    """The sections of a page with their headings. Raises RowError when it is none."""
    from bs4 import BeautifulSoup

    try:
        page = BeautifulSoup(text, "lxml")
        blocks = list(_blocks(_core(page)))
        if not any(level == 1 for level, _ in blocks) and (title := _title(page)):
            blocks.insert(0, (1, title))
    except RecursionError as error:
        raise RowError("unreadable_file", "not a web page: its tags are nested hundreds of levels deep") from error
    except (ValueError, AssertionError) as error:
        raise RowError("unreadable_file", f"not a web page: {error}") from error
    path: list[tuple[int, str]] = []
    body: list[str] = []
    for level, block in blocks:
        if not level:
            body.append(block)
            continue
        yield from _closed(path, body)
        path, body = [*(item for item in path if item[0] < level), (level, " ".join(block.split()))], []
    yield from _closed(path, body)


def _closed(path: list[tuple[int, str]], body: list[str]) -> Iterator[Passage]:
    if body:
        yield Passage(markdown.joined(body), tuple(title for _, title in path))


def _core(page: BeautifulSoup) -> Tag:
    """The part of a page that is its own: the one it calls main, or all of it; navigation and the like are taken out."""
    for useless in page(_NEVER):
        useless.decompose()
    kept = {id(page.html), id(page.body)}
    for tag in page(["h1", "main", "article"]):
        kept.update(map(id, (tag, *tag.parents)))
    sizes = _sizes(page)
    whole = sizes[id(page)].letters
    gone: set[int] = set()
    around = []
    for tag in page(True):
        if id(tag.parent) in gone:
            gone.add(id(tag))
        elif sizes[id(tag)].letters < 0.5 * whole and id(tag) not in kept and _is_around(tag, sizes[id(tag)]):
            gone.add(id(tag))
            around.append(tag)
    for tag in around:
        tag.decompose()
    sizes = _sizes(page)
    for name in ("main", "article"):
        found = page.select(f"{name}, [role={name}]")
        if len(found) == 1 and sizes[id(found[0])].letters > 0.3 * sizes[id(page)].letters:
            return found[0]
    return page.body or page


@dataclass(slots=True)
class _Size:
    """Letters in a tag, how many of them are in links, and how many links there are."""

    letters: int = 0
    linked: int = 0
    links: int = 0


def _sizes(page: BeautifulSoup) -> dict[int, _Size]:
    """The size of each tag, by its id; made from the leaves up, as a page may be deep."""
    found: defaultdict[int, _Size] = defaultdict(_Size)
    for tag in (*reversed(page(True)), page):
        size = found[id(tag)]
        size.letters += sum(sum(map(str.isalnum, child)) for child in tag.children if isinstance(child, str))
        if tag.name == "a" and tag.has_attr("href"):
            size.linked, size.links = size.letters, 1
        if tag.parent is not None:
            around = found[id(tag.parent)]
            around.letters += size.letters
            around.linked += size.linked
            around.links += size.links
    return found


def _title(page: BeautifulSoup) -> str:
    """The title of a page without the name of its site."""
    return re.split(r"\s+[|–—·»-]\s+", _words(page.title))[0] if page.title else ""


def _is_around(tag: Tag, size: _Size) -> bool:
    if tag.name == "header":
        return tag.find_parent(["main", "article"]) is None
    if tag.name == "button":
        return tag.find_parent([*_HEADINGS, "dt", "summary"]) is None and not _asks(_words(tag))
    if tag.name in _MENUS and size.links > 1 and size.linked > 0.75 * size.letters:
        return True
    named = f"{tag.get('id') or ''} {' '.join(tag.get_attribute_list('class')) if tag.has_attr('class') else ''}"
    words = re.split(r"[\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", named).lower())
    return tag.get("role") in _ROLES or not _AROUND.isdisjoint(words)


def _words(tag: Tag) -> str:
    return " ".join(tag.get_text(" ").split())


def _blocks(tag: Tag) -> Iterator[tuple[int, str]]:
    """(level of a heading or 0, text) of everything in a tag, in its order; text between blocks is a paragraph."""
    from bs4 import NavigableString, Tag
    from bs4.element import PreformattedString

    loose: list[str] = []
    for child in tag.children:
        if isinstance(child, Tag) and _is_block(child):
            yield from _paragraph(loose)
            loose = []
            yield from _block(child)
        elif isinstance(child, Tag):
            loose.append(_inline(child))
        elif isinstance(child, NavigableString) and not isinstance(child, PreformattedString):
            loose.append(re.sub(r"\s+", " ", child))
    yield from _paragraph(loose)


def _is_block(tag: Tag) -> bool:
    return tag.name in _BLOCKS or any(getattr(inner, "name", None) in _BLOCKS for inner in tag.descendants)


def _paragraph(loose: list[str]) -> Iterator[tuple[int, str]]:
    text = _tidy("".join(loose))
    if text:
        yield 0, text


def _inline(tag: Tag) -> str:
    """The text of a tag within a line; `br` breaks it."""
    from bs4 import Tag

    if tag.name == "br":
        return "\n"
    return "".join(
        _inline(child) if isinstance(child, Tag) else re.sub(r"\s+", " ", str(child)) for child in tag.children
    )


def _tidy(text: str) -> str:
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return re.sub(r"\s+([.,;:!?](?:\s|$))", r"\1", "\n".join(line for line in lines if line))


def _asks(text: str) -> bool:
    return 3 < len(text) < 200 and text.endswith(("?", "？"))


def _block(tag: Tag) -> Iterator[tuple[int, str]]:
    if tag.name in _HEADINGS:
        if text := _words(tag):
            yield int(tag.name[1]), text
    elif tag.name == "pre":
        if code := tag.get_text().strip("\n"):
            yield 0, f"```\n{code}\n```"
    elif tag.name in ("ul", "ol"):
        yield from _items(tag)
    elif tag.name == "table" and _is_data(tag):
        rows = [[_words(cell) for cell in row(["td", "th"])] for row in tag("tr")]
        if text := markdown.table(rows):
            yield 0, text
    elif tag.name == "p" and (asked := _question(tag)):
        yield _QUESTION, asked
        yield from _blocks(tag)
    elif tag.name in ("dt", "summary", "button") and _asks(_words(tag)):
        yield _QUESTION, _words(tag)
    else:
        yield from _blocks(tag)


def _question(paragraph: Tag) -> str:
    """The question in bold that a paragraph is or begins with, taken out of it."""
    from bs4 import NavigableString

    first = next(
        (child for child in paragraph.children if not (isinstance(child, NavigableString) and not child.strip())), None
    )
    if (
        first is None
        or getattr(first, "name", "") not in ("b", "strong")
        or not _asks(text := " ".join(first.get_text(" ").split()))
    ):
        return ""
    first.extract()
    return text


def _is_data(table: Tag) -> bool:
    """Whether a table is one: older pages use tables to arrange what is on them."""
    if table.find(["table", *_HEADINGS, "ul", "ol"]):
        return False
    rows = [row(["td", "th"]) for row in table("tr")]
    return len(rows) > 1 and max(map(len, rows)) > 1


def _items(tag: Tag) -> Iterator[tuple[int, str]]:
    """The items of a list, each with what is in it; lists within are indented."""
    number = 0
    for item in tag.find_all("li", recursive=False):
        number += 1
        parts = list(_blocks(item))
        if not parts:
            continue
        marker = f"{number}. " if tag.name == "ol" else "- "
        if any(level for level, _ in parts):
            yield from parts  # each item is a section with a heading of its own
            continue
        lines = "\n".join(text for _, text in parts).split("\n")
        yield 0, marker + ("\n" + " " * len(marker)).join(lines)
