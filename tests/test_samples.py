"""The three worked samples: their form, their variety, and that they tell the same facts everywhere."""

from __future__ import annotations

import calendar
import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parent.parent / "notebooks" / "samples"
FOLDERS = ("support-tickets", "product-docs", "company-blog")
PRODUCTS = {"Hub", "Perch", "Gale", "Puddle", "Alcove", "Loam", "Tarnwick app", "Cloud API", "Orders"}

GREETING = "Hello, and thank you for writing to Tarnwick."
PROMISE = "We will look at this ticket again in two working days, "
SIGNATURE = "The Tarnwick Weather Desk"

# What is fact, how the texts say it, the one value it may have, and the samples that must mention it.
EVERYWHERE = {"tickets", "docs", "blog"}
FACTS = [
    (
        "warranty",
        r"(\d+)[- ]months?(?: of)? warranty|warranty (?:of|is|ran for|has been) (\d+) months",
        "36",
        EVERYWHERE,
    ),
    ("battery kind", r"\bAA (\w+) batteries", "lithium", EVERYWHERE),
    ("batteries in a sensor", r"(\w+)(?: new)? AA lithium batteries", "two", EVERYWHERE),
    ("battery life", r"\b(?:lasts?|serves?|does) (?:some |about )(\d+) months", "24", EVERYWHERE),
    ("factory reset", r"hold[^.]{0,60} for (\d+) seconds,? until (?:the light|it) blinks red", "12", EVERYWHERE),
    ("restart", r"unplug (?:it|the Hub|your Hub) for (\d+) seconds", "30", EVERYWHERE),
    ("memory of the Hub", r"Hub keeps (?:the latest )?(\d+) days", "7", EVERYWHERE),
    ("right to return", r"(\d+)[- ]days? (?:from delivery|return|to change)", "45", EVERYWHERE),
    ("range", r"(\d+) m in open air", "120", EVERYWHERE),
    ("request limit", r"(\d+) requests per minute", "60", EVERYWHERE),
    ("life of a key", r"(?:expire after|lives? (?:for|longer than)) (\d+) days", "365", EVERYWHERE),
    ("a tip of the bucket", r"(?:tip stands for|steps of|must add) (\d\.\d) mm", "0.2", EVERYWHERE),
    ("100 ml in the gauge", r"100 ml[^.]*? (\d\.\d) mm", "5.0", EVERYWHERE),
    ("outdoor air", r"about (\d+) ppm", "420", EVERYWHERE),
    ("soil settles", r"(?:needs?|wait|takes|allow|give it) (\d+) hours", "48", EVERYWHERE),
    ("reports every", r"reports? every (\d+) seconds", "60", EVERYWHERE),
    ("pairing press", r"hold (?:its|the)[^.]{0,30}? for (?:a full |the full )?(\d) seconds", "3", {"tickets", "docs"}),
    ("restart of a sensor", r"batteries out for (\d+) seconds", "60", {"tickets", "docs"}),
    ("blinking amber", r"blinking amber(?: means|:) (no [\w-]+)", "no Wi-Fi", {"tickets", "docs"}),
    ("solid red", r"solid red[^.]{0,20}(?: means a|:) (\w+ \w+)", "hardware fault", {"tickets", "docs"}),
    ("Wi-Fi band", r"(\d(?:\.\d)?) GHz Wi-Fi", "2.4", {"tickets", "docs"}),
    ("sensors of a Hub", r"up to (\d+) sensors", "12", {"tickets", "docs"}),
    ("household", r"(?:room for|up to|limited to) (\d+) people", "5", {"tickets", "docs"}),
    ("alerts of the free plan", r"free plan (?:includes|has) (\d+) alerts", "5", {"tickets", "docs"}),
    ("price of Plus", r"Plus[^.£]{0,40}£(\d+) a month", "3", {"tickets", "docs"}),
    ("erased after", r"After (\d+) days all data are erased", "14", {"tickets", "docs"}),
    ("price of the kit", r"starter kit[^.£]{0,30}£(\d+)", "129", {"tickets", "docs"}),
    ("price of a Gale", r"(?:Gale for|Gale|Gale is) £(\d+)", "89", {"tickets", "docs"}),
    ("price of a Puddle", r"(?:Puddle for|Puddle) £(\d+)", "59", {"tickets", "docs"}),
]


def _tickets() -> list[dict[str, str]]:
    text = (SAMPLES / "support-tickets" / "tickets.csv").read_bytes().decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def _files(folder: str, pattern: str) -> dict[str, str]:
    return {file.name: file.read_bytes().decode("utf-8") for file in sorted((SAMPLES / folder).glob(pattern))}


def _docs() -> dict[str, str]:
    return _files("product-docs", "[0-9]*.md")


def _posts() -> dict[str, str]:
    return _files("company-blog", "*.txt")


def _everything() -> dict[str, list[str]]:
    """What Tarnwick says in each sample; customers may be mistaken, so tickets count by their replies."""
    return {
        "tickets": [row["reply"] for row in _tickets()],
        "docs": list(_docs().values()),
        "blog": list(_posts().values()),
    }


def _words(text: str) -> list[str]:
    return re.sub(r"(?m)^\d\. ", "", text).split()


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _shingles(text: str, size: int = 4) -> set[str]:
    words = _plain(text).split()
    return {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}


def _closest(texts: Iterable[str]) -> float:
    """The highest Jaccard similarity between any two of the texts, by shingles of four words."""
    shingles = [_shingles(text) for text in texts]
    return max(len(one & other) / len(one | other) for one, other in itertools.combinations(shingles, 2))


def test_the_tickets_have_their_columns_and_no_empty_cell() -> None:
    rows = _tickets()
    assert len(rows) >= 400
    assert all(list(row) == ["ticket_id", "product", "ticket", "reply"] for row in rows)
    assert all(cell and cell == cell.strip() for row in rows for cell in row.values())
    assert len({row["ticket_id"] for row in rows}) == len(rows)
    assert all(re.fullmatch(r"WD-\d{4}", row["ticket_id"]) for row in rows)


def test_every_product_has_its_share_of_tickets() -> None:
    counts = Counter(row["product"] for row in _tickets())
    assert set(counts) == PRODUCTS
    assert min(counts.values()) >= 15
    assert max(counts.values()) <= 0.3 * counts.total()


def test_ticket_lengths_stay_within_bounds_and_vary() -> None:
    rows = _tickets()
    tickets = [len(_words(row["ticket"])) for row in rows]
    replies = [len(_words(row["reply"])) for row in rows]
    assert min(tickets) >= 20
    assert max(tickets) <= 70
    assert min(replies) >= 60
    assert max(replies) <= 110
    assert max(tickets) >= 1.8 * min(tickets)


def test_every_reply_wears_the_house_style() -> None:
    for row in _tickets():
        greeting, empathy, *steps, promise, signature = row["reply"].split("\n")
        assert greeting == GREETING
        assert signature == SIGNATURE
        assert promise.startswith(PROMISE), row["ticket_id"]
        assert promise.endswith("."), row["ticket_id"]
        assert len(empathy.split()) >= 6, row["ticket_id"]
        numbers = [int(step[0]) for step in steps if re.match(r"\d\. \S", step)]
        assert numbers == list(range(1, len(numbers) + 1)), row["ticket_id"]
        assert len(numbers) >= 3, row["ticket_id"]


def test_only_the_house_style_repeats_in_the_replies() -> None:
    own = [line for row in _tickets() for line in row["reply"].removesuffix(SIGNATURE).split("\n")[1:] if line]
    repeated = [line for line, count in Counter(map(_plain, own)).items() if count > 1 and len(line.split()) > 7]
    assert len(repeated) <= 12, repeated


@pytest.mark.parametrize("column", ["ticket", "reply"])
def test_no_two_rows_are_the_same_in_any_split(column: str) -> None:
    """Rows that differ only in case or punctuation could meet across train and test, wherever the cut falls."""
    assert len({_plain(row[column]) for row in _tickets()}) == len(_tickets())


@pytest.mark.parametrize(("column", "limit"), [("ticket", 0.15), ("reply", 0.3)])
def test_no_two_rows_are_nearly_the_same(column: str, limit: float) -> None:
    assert _closest(row[column] for row in _tickets()) < limit


def test_the_documentation_has_pages_of_sections_with_headings() -> None:
    docs = _docs()
    assert len(docs) == 24
    headings = []
    for name, text in docs.items():
        assert 350 <= len(text.split()) <= 700, name
        assert re.match(r"# \S.+\n\n", text), name
        assert len(re.findall(r"(?m)^# ", re.sub(r"(?s)```.*?```", "", text))) == 1, name
        found = re.findall(r"(?m)^## (.+)$", text)
        assert 6 <= len(found) <= 11, name
        headings += found
    assert len(set(headings)) == len(headings)
    assert sum(heading.endswith("?") for heading in headings) > 0.7 * len(headings)


def test_no_two_sections_of_the_documentation_are_nearly_the_same() -> None:
    sections = [part for text in _docs().values() for part in re.split(r"(?m)^##? .+$", text) if part.strip()]
    assert len(sections) > 180
    assert _closest(sections) < 0.15


def test_the_posts_have_their_frame_and_length() -> None:
    posts = _posts()
    assert len(posts) == 24
    for name, text in posts.items():
        assert re.fullmatch(r"\d{4}-\d\d-[a-z-]+\.txt", name)
        year, month = name.split("-")[:2]
        title, letter, *body, farewell = text.rstrip("\n").split("\n\n")
        assert "\n" not in title, name
        assert letter == f"Letter from the workshop, {calendar.month_name[int(month)]} {year}"
        assert farewell == "Until the next front,\nthe workshop in Ullesby", name
        assert len(body) >= 5, name
        assert sum("Try it at home." in paragraph for paragraph in body) == 1, name
        assert 350 <= len(text.split()) <= 600, name
    assert len({text.split("\n")[0] for text in posts.values()}) == 24
    assert _closest(posts.values()) < 0.1


@pytest.mark.parametrize(("fact", "pattern", "value", "where"), FACTS, ids=[fact[0] for fact in FACTS])
def test_a_fact_has_one_value_in_all_samples(fact: str, pattern: str, value: str, where: set[str]) -> None:
    for sample, texts in _everything().items():
        said: Counter[str] = Counter()
        for text in texts:
            for match in re.finditer(pattern, " ".join(text.split()), re.IGNORECASE):
                said[next(group for group in match.groups() if group)] += 1
        assert {each.casefold() for each in said} <= {value.casefold()}, (fact, sample, said)
        assert said or sample not in where, (fact, sample)


def test_addresses_and_phone_numbers_are_reserved_for_fiction() -> None:
    for texts in (*_everything().values(), [row["ticket"] for row in _tickets()]):
        for text in texts:
            domains = re.findall(
                r"@([\w.-]*\w)|https?://([\w.-]*\w)|\b((?:\w+\.)+(?:com|net|org|io|co|uk|de|eu))\b", text
            )
            for domain in filter(None, itertools.chain.from_iterable(domains)):
                assert re.search(r"(^|\.)example(\.com|\.net|\.org)?$", domain), domain
            # Ofcom keeps 01632 960000 to 960999 for drama; anything else shaped like a phone number is refused.
            for number in re.findall(r"(?<![\w-])\+?\d[\d ()/-]{8,}\d", text):
                assert re.fullmatch(r"01632 960\d{3}", number) or re.fullmatch(r"\d{4}-\d\d-\d\d", number), number


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_sample_says_where_it_comes_from(folder: str) -> None:
    text = " ".join((SAMPLES / folder / "README.md").read_bytes().decode("utf-8").split())
    assert "written for this project" in text
    assert "Apache-2.0" in text
    assert "fictional" in text
    assert "What to expect from tuning on it" in text


def test_all_texts_are_clean_utf8() -> None:
    for file in sorted(SAMPLES.glob("*/*.*")):
        text = file.read_bytes().decode("utf-8")
        assert not text.startswith("\ufeff"), file.name
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]|Ã.|â€|[ \t]+$", text), file.name
