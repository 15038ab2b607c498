"""The pure parts: shapes, conversion, passages, near duplicates, splits, expansion, languages."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed import tar, zip_of

from dataset.conftest import Prepare, as_bytes, distinct
from llmtuner_kit.dataset import conversion, kinds, languages, near, passages, shapes, splits
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.dataset.records import Passage
from llmtuner_kit.dataset.templates import Templates
from llmtuner_kit.errors import DataError

SAME = {"instruction": "How are you?", "input": "", "output": "Very well, thank you."}
CHAT = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Very well, thank you."}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "How are you?", "input": "", "output": "Very well, thank you."}, SAME),
        ({"prompt": "How are you?", "completion": " Very well, thank you."}, SAME),
        ({"question": "How are you?", "answer": "Very well, thank you."}, SAME),
        ({"Customer Message": "How are you?", "Agent Reply": "Very well, thank you."}, SAME),
        ({"ticketId": "7", "ticket": "How are you?", "reply": "Very well, thank you."}, SAME),
        ({"messages": CHAT}, {"messages": CHAT}),
        (
            {"conversations": [{"from": "human", "value": "How are you?"}, {"from": "gpt", "value": "Very well, thank you."}]},
            {"messages": CHAT},
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "How are you?"}]}, CHAT[1]]}, {"messages": CHAT}),
        (
            {"instruction": "How are you?", "output": "Very well, thank you.", "history": [["Hi", "Hello"]]},
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, *CHAT]},
        ),
        (
            {"system": "Be kind.", "instruction": "How are you?", "output": "Very well, thank you."},
            {"messages": [{"role": "system", "content": "Be kind."}, *CHAT]},
        ),
    ],
)  # fmt: skip
def test_every_known_shape_becomes_the_same_row(row: dict[str, Any], expected: dict[str, Any]) -> None:
    mapping = shapes.recognise(tuple(row))
    assert mapping is not None
    assert conversion.convert(row, mapping) == expected


@pytest.mark.parametrize(
    "keys", [("subject", "body", "reply"), ("a", "b"), ("message", "email", "reply"), ("reply",), ("title", "date")]
)
def test_keys_that_do_not_name_themselves_are_not_guessed(keys: tuple[str, ...]) -> None:
    assert shapes.recognise(keys) is None


def test_templates_word_a_row_anew_from_its_columns() -> None:
    mapping = shapes.ColumnMapping("columns", "ticket", "", "reply")
    row = {"ticket": "It blinks", "reply": "Press it.", "product": "Hub", "note": ""}

    def made(**wording: str) -> Any:
        return conversion.convert(row, mapping, Templates(**wording))

    asked = made(instruction="Answer the customer.")
    assert asked == {"instruction": "Answer the customer.", "input": "It blinks", "output": "Press it."}
    filled = made(instruction="About the {product}: {ticket} {{x}}")
    assert filled == {
        "instruction": "About the Hub: It blinks {{x}}".replace("{{x}}", "{x}"),
        "input": "",
        "output": "Press it.",
    }
    whole = made(instruction="Reply.", input="{product}\n{ticket}", output="Hello! {reply}")
    assert whole == {"instruction": "Reply.", "input": "Hub\nIt blinks", "output": "Hello! Press it."}
    assert made(system="You know the {product}.")["messages"][0] == {"role": "system", "content": "You know the Hub."}
    with pytest.raises(RowError) as caught:
        made(output="Hello! {note}")
    assert caught.value.kind == "empty_answer"


def test_a_template_that_names_no_column_is_refused_with_the_columns_there_are(prepare: Prepare) -> None:
    table = "ticket,reply\nIt blinks,Please press it for long\n"
    with pytest.raises(DataError, match=r"\{product\}") as caught:
        prepare({"t.csv": table}, instruction_template="About {product}")
    assert "{ticket}, {reply}" in str(caught.value)
    with pytest.raises(DataError, match="conversations"):
        prepare({"c.jsonl": [{"messages": CHAT}]}, instruction_template="Answer.")
    told = prepare({"c.jsonl": [{"messages": CHAT}]}, system_template="Be kind.")
    assert told.all_rows == [{"messages": [{"role": "system", "content": "Be kind."}, *CHAT]}]
    page = "# Guide\n\n## Lamps\nThey shine.\n\n## Cables\nThey carry.\n"
    built = prepare({"p.md": page}, instruction_template="What does {path} say on {heading}?")
    assert {row["instruction"] for row in built.all_rows} == {
        "What does Guide say on Lamps?", "What does Guide say on Cables?"
    }  # fmt: skip
    unnamed = prepare({"t.csv": "a,b\nIt blinks,Press it\n"}, instruction_template="{a}", output_template="{b}!")
    assert unnamed.all_rows == [{"instruction": "It blinks", "input": "", "output": "Press it!"}]


def test_rows_of_a_file_without_a_column_of_a_template_are_rejected_beside_one_that_has_it(prepare: Prepare) -> None:
    late = [{"ticket": f"Lamp {n} blinks", "reply": f"Press button {n} for long"} for n in range(201)]
    late.append({"ticket": "It hums", "reply": "Turn it off and on", "product": "Fan"})  # past the first rows
    files = {
        "a.csv": "product,ticket,reply\nHub,It blinks,Please press it for long\n",
        "b.csv": "ticket,reply\nIt is dark,Please plug it in\n",
        "late.jsonl": late,
        "p.md": "# Guide\n\n## Lamps\nThey shine.\n\n## Cables\nThey carry.\n",
        "q.csv": "name,price\nHub,9\n",
    }
    built = prepare(files, instruction_template="About the {product}: {ticket}")
    assert [row["instruction"] for row in built.all_rows] == ["About the Hub: It blinks", "About the Fan: It hums"]
    (finding,) = built.report.findings
    assert (finding.kind, finding.count, finding.effect) == ("missing_column", 1 + 201 + 2 + 1, "rejected")
    assert "b.csv has no {product} (named in instruction_template)" in {item.detail for item in finding.examples}
    assert built.rejected[-1]["reason"] == "q.csv has no {product}, {ticket} (named in instruction_template)"
    with pytest.raises(DataError, match=r"instruction_template names \{prodct\}, and b.csv has no such column"):
        prepare({"b.csv": files["b.csv"], "c.csv": files["a.csv"]}, instruction_template="{prodct}")


@given(st.text(min_size=101, max_size=400).filter(lambda text: text == text.strip() and text[100:].strip() != ""))
def test_plain_text_is_cut_after_a_hundred_characters_and_nothing_is_lost(text: str) -> None:
    row = conversion.continuation(text)
    assert row["instruction"] == "Continue the following text:"
    assert len(row["input"]) == 100
    assert row["input"] + row["output"] == text


def test_text_shorter_than_that_is_refused() -> None:
    with pytest.raises(RowError) as caught:
        conversion.continuation("x" * 100)
    assert caught.value.kind == "too_short"


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


@given(
    st.lists(st.lists(st.sampled_from(["alpha.", "beta", "gamma", "Delta", "e"]), min_size=1, max_size=30), max_size=8)
)
def test_passages_hold_all_words_in_order_and_keep_to_their_budget(paragraphs: list[list[str]]) -> None:
    text = "\n\n".join(" ".join(paragraph) for paragraph in paragraphs)
    found = passages.cut(text, 12, words)
    assert " ".join(found).split() == text.split()
    assert all(count <= 12 for count in words(found))


def test_passages_end_at_paragraphs_before_sentences_before_words() -> None:
    text = "One two three. Four five six.\n\nSeven eight nine."
    assert passages.cut(text, 6, words) == ["One two three. Four five six.", "Seven eight nine."]
    assert passages.cut(text, 4, words) == ["One two three.", "Four five six.", "Seven eight nine."]


def test_lists_tables_and_code_that_are_cut_keep_their_lines_header_and_fences() -> None:
    items = "- one two\n- three four\n- five six\n- seven eight"
    assert passages.cut(items, 6, words) == ["- one two\n- three four", "- five six\n- seven eight"]
    table = "| a | b |\n| --- | --- |\n| c | d |\n| e | f |"
    assert passages.cut(table, 16, words) == [
        "| a | b |\n| --- | --- |\n| c | d |",
        "| a | b |\n| --- | --- |\n| e | f |",
    ]
    code = "```\nif a:\n    b c d\nelse:\n    e f\n```"
    assert passages.cut(code, 7, words) == ["```\nif a:\n    b c d\n```", "```\nelse:\n    e f\n```"]


def test_what_announces_a_list_is_not_cut_off_from_it() -> None:
    text = "One two three four five.\n\nDo this:\n\n- six seven\n- eight nine"
    assert passages.cut(text, 8, words) == ["One two three four five.", "Do this:\n\n- six seven\n- eight nine"]


def test_markdown_headings_ask_and_code_is_not_searched_for_them() -> None:
    text = "---\ntitle: x\n---\n# Guide\nIntro.\n\n## Pay\n```\n# not a heading\n```\nBy card.\n\nRefunds?\n--------\nFive days.\n"
    found = [(item.headings, item.text) for item in passages.markdown_sections(text)]
    assert found == [
        (("Guide",), "Intro."),
        (("Guide", "Pay"), "```\n# not a heading\n```\nBy card."),
        (("Guide", "Refunds?"), "Five days."),
    ]
    assert conversion.explanation(Passage(found[1][1], found[1][0]))["instruction"] == "Explain: Pay (Guide)"
    assert conversion.explanation(Passage(found[2][1], found[2][0]))["instruction"] == "Refunds? (Guide)"


def test_menus_and_tables_of_contents_of_markdown_are_left_out_and_links_in_sentences_are_not() -> None:
    menu = "[Home](index.md) | [Shop](shop.md)"
    kept = "See [Pay](pay.md) or [Refunds](refunds.md) for what it costs."
    listed = "- [Kettle](kettle.md): boils a litre in two minutes\n- [Lamp](lamp.md): seven colours of light"
    code = f"```\n{menu}\n\n{menu}\n```"
    text = (
        f"# Lamp\n{menu}\n\n{kept}\n\n{listed}\n\n[Alone](a.md)\n\n{code}\n\n# FAQ\n- [Kettle](a.md)\n- [Lamp](b.md)\n"
    )
    found = [(item.headings, item.text) for item in passages.markdown_sections(text)]
    assert found == [(("Lamp",), f"{kept}\n\n{listed}\n\n[Alone](a.md)\n\n{code}")]


def test_near_duplicates_meet_in_a_band_and_strangers_hardly_ever() -> None:
    draw = random.Random(4)
    vocabulary = [f"word{number}" for number in range(3000)]
    ones = [draw.choices(vocabulary, k=120) for _ in range(400)]
    others = []
    for text in ones:
        changed = list(text)
        for place in draw.sample(range(120), 3):
            changed[place] = draw.choice(vocabulary)
        others.append(changed)
    texts = [near.normalise(" ".join(text)) for text in ones + others]
    bands = near.bands(texts)
    pairs = [(n, n + 400) for n in range(400) if near.similarity(texts[n], texts[n + 400]) >= near.SIMILAR]
    assert len(pairs) > 300
    assert all((bands[:, a] == bands[:, b]).any() for a, b in pairs)
    strangers = sum(bool((bands[:, n] == bands[:, n + 1]).any()) for n in range(399))
    assert strangers <= 2


def test_normalised_texts_differ_in_words_only() -> None:
    assert near.normalise("Don't  STOP,\nnow!") == near.normalise("dont stop now") == b"dont stop now"
    assert near.similarity(b"", b"") == 0.0


@given(st.lists(st.integers(0, 40), min_size=1, max_size=200), st.floats(0, 0.5), st.floats(0, 0.5), st.randoms())
def test_splits_depend_on_content_alone_and_never_part_a_group(
    groups: list[int], test: float, validation: float, draw: random.Random
) -> None:
    given_groups = np.array(groups, np.uint64)
    shares = {"test": test, "validation": validation}
    found = splits.assign(given_groups, shares)
    by_group = {int(group): {int(s) for g, s in zip(groups, found, strict=True) if g == group} for group in groups}
    assert all(len(where) == 1 for where in by_group.values())
    assert 0 in found
    order = list(range(len(groups)))
    draw.shuffle(order)
    assert (splits.assign(given_groups[order], shares) == found[order]).all()


@pytest.mark.parametrize(("kind", "packed"), [("zip", zip_of), ("tar", tar)])
def test_archives_give_their_files_and_lead_nowhere(
    prepare: Prepare, kind: str, packed: Callable[[dict[str, bytes]], bytes], tmp_path: Path
) -> None:
    inner = gzip.compress(as_bytes(distinct(4, 50)))
    members = {"a/rows.jsonl": as_bytes(distinct(6)), "../../up.jsonl": as_bytes(distinct(3, 20)), "b.jsonl.gz": inner}
    built = prepare({f"all.{kind}": packed(members | {"pic.png": b"x", "__MACOSX/rows.jsonl": b"x"})})
    assert {source.name: source.rows for source in built.report.sources} == {
        f"all.{kind}/a/rows.jsonl": 6, f"all.{kind}/../../up.jsonl": 3, f"all.{kind}/b.jsonl.gz": 4, f"all.{kind}/pic.png": 1
    }  # fmt: skip
    assert built.kinds() == {"unreadable_file": 1}
    assert not list(tmp_path.rglob("up.jsonl"))


def test_an_archive_made_to_fill_the_disk_is_refused(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmtuner_kit.dataset import expand

    monkeypatch.setattr(expand, "_HARMLESS", 1 << 20)
    bomb = gzip.compress(b"\0" * (16 << 20))
    built = prepare({"bomb.txt.gz": bomb, "rows.jsonl": distinct(5)})
    assert built.rejected[0]["kind"] == "unreadable_file"
    assert "unpacks to more" in built.rejected[0]["reason"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jsonl", "jsonl"), ("A.JSONL.GZ", "jsonl"), ("b.tar.zst", "tar"), ("c.tgz", "tar"), ("d.exe", ""), ("e", "")],
)
def test_kinds_are_told_by_name_through_compression(name: str, kind: str) -> None:
    assert kinds.kind_of(name) == kind


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The lamp is on and you can see it from the street.", "en"), ("Die Lampe ist an und ich sehe sie nicht.", "de"),
        ("La lampe est dans la rue et vous ne la voyez pas.", "fr"), ("La lámpara está en la calle y no se ve.", "es"),
        ("ランプがついています", "ja"), ("лампа горит на улице", "ru"), ("램프가 켜져 있습니다", "ko"), ("xyzzy", "und"),
    ],
)  # fmt: skip
def test_languages_are_told_by_script_and_small_words(text: str, code: str) -> None:
    assert languages.detect(text) == code
