"""Recall and precision of every kind of defect, on a corpus with planted defects among clean rows."""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from typing import Any

import pytest

from dataset.conftest import Prepare
from llmtuner_kit.dataset import checks, conversion, defects, pool, privacy, report, shapes
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.dataset.worker import Worker

WORDS = [
    "lamp",
    "station",
    "weather",
    "garden",
    "invoice",
    "parcel",
    "winter",
    "signal",
    "battery",
    "cable",
    "window",
    "morning",
    "evening",
    "customer",
    "ticket",
    "answer",
    "question",
    "number",
    "letter",
    "bridge",
    "river",
    "mountain",
    "forest",
    "market",
    "street",
    "harbour",
    "castle",
    "engine",
    "wheel",
    "piano",
    "violin",
    "orange",
    "apple",
    "copper",
    "silver",
    "paper",
    "pencil",
    "basket",
    "ladder",
    "hammer",
    "needle",
    "thread",
    "button",
    "pocket",
    "mirror",
    "candle",
    "blanket",
]


def sentence(draw: random.Random, length: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(length)).capitalize() + "."


def clean(draw: random.Random) -> dict[str, Any]:
    town = draw.choice(["", "", "", " Zürich", " Århus", " São Paulo"])
    return {"instruction": sentence(draw, 12) + town, "output": f"{sentence(draw, 14)} {sentence(draw, 9)}"}


def chat(*messages: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def planted(kind: str, draw: random.Random) -> bytes:
    """One row with exactly this defect."""
    row, ask, say = clean(draw), sentence(draw, 12), sentence(draw, 15)
    values: dict[str, Any] = {
        "malformed_json": json.dumps(row)[:-2],
        "wrong_encoding": json.dumps(row).encode().replace(b"output", b"outp\xfft"),
        "not_an_object": [ask, say],
        "unknown_fields": {"alpha": ask, "omega": say},
        "missing_field": None,
        "not_text": {"instruction": ask, "output": {"text": say}},
        "empty_prompt": {"instruction": " ", "output": say},
        "empty_answer": {"instruction": ask, "output": ""},
        "no_messages": {"messages": []},
        "bad_message": {"messages": [{"role": "user", "content": ask}, {"speaker": "bot", "content": say}]},
        "unknown_role": chat(("user", ask), ("narrator", say)),
        "no_answer": chat(("system", ask), ("user", say)),
        "answer_first": chat(("assistant", say), ("user", ask), ("assistant", say)),
        "half_character": json.dumps(row).replace("instruction\": \"", "instruction\": \"\\ud83d "),
        "turns": chat(("user", ask), ("user", sentence(draw, 10)), ("assistant", say)),
        "trailing_question": chat(("user", ask), ("assistant", say), ("user", sentence(draw, 10))),
        "one_word_answer": {"instruction": ask, "output": draw.choice(WORDS) + "word"},
        "echo": {"instruction": ask, "output": ask},
        "placeholder": {"instruction": ask, "output": draw.choice(["TODO", "N/A", "[placeholder]", "Lorem ipsum"])},
        "repetition": {"instruction": ask, "output": " ".join([sentence(draw, 4)] * 12)},
        "broken_characters": {"instruction": f"CafÃ© {ask}", "output": say},
        "control_characters": {"instruction": ask, "output": f"{say}\x07 {sentence(draw, 5)}"},
        "markup": {"instruction": ask, "output": f"<div class='a'>{say}</div>"},
        "template_tokens": {"instruction": f"{ask} <|end|> {sentence(draw, 4)}", "output": say},
        "email": {"instruction": f"{ask} Write to {draw.choice(WORDS)}{draw.randrange(999)}@example.org", "output": say},
        "phone": {"instruction": ask, "output": f"{say} Call +44 20 7946 {draw.randrange(1000, 9999)}"},
        "card_number": {"instruction": f"{ask} My card is {card(draw)}", "output": say},
        "iban": {"instruction": f"{ask} Pay to GB82 WEST 1234 5698 7654 32", "output": say},
        "ip_address": {"instruction": f"{ask} From 8.8.{draw.randrange(255)}.{draw.randrange(255)}", "output": say},
        "secret": {"instruction": ask, "output": f"{say} AKIA{''.join(draw.choices('ABCDEFGHJKLMNPQ234567', k=16))}"},
        "exact_duplicate": None,
        "near_duplicate": None,
        "conflicting_answers": None,
    }  # fmt: skip
    value = values[kind]
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def card(draw: random.Random) -> str:
    """A number with a right check digit in the range of a well-known scheme."""
    digits = [4, *(draw.randrange(10) for _ in range(14))]
    doubled = sum((digit * 2 - 9 * (digit > 4)) if place % 2 == 0 else digit for place, digit in enumerate(digits))
    return "".join(map(str, [*digits, -doubled % 10]))


ALONE = [
    "malformed_json", "wrong_encoding", "not_an_object", "unknown_fields", "not_text", "empty_prompt", "empty_answer",
    "no_messages", "bad_message", "unknown_role", "no_answer", "answer_first", "half_character", "turns",
    "trailing_question", "one_word_answer", "echo", "placeholder", "repetition", "broken_characters",
    "control_characters", "markup", "template_tokens", "email", "phone", "card_number", "iban", "ip_address", "secret",
]  # fmt: skip


def corpus(rows: int, every: int, seed: int = 5) -> tuple[bytes, dict[str, set[int]]]:
    """Lines with planted defects, one in `every`, and the line numbers of each kind."""
    draw = random.Random(seed)
    kinds = [*ALONE, "exact_duplicate", "near_duplicate", "conflicting_answers"]
    lines: list[bytes] = []
    where: dict[str, set[int]] = defaultdict(set)
    for number in range(1, rows + 1):
        if number % every or number < 20:
            lines.append(json.dumps(clean(draw), ensure_ascii=False).encode())
            continue
        kind = kinds[number // every % len(kinds)]
        earlier = len(lines) - 2  # a clean row: defects are far apart
        row = json.loads(lines[earlier])
        if kind == "exact_duplicate":
            lines.append(lines[earlier])
        elif kind == "near_duplicate":
            lines.append(
                json.dumps({"instruction": row["instruction"].lower() + "!", "output": row["output"]}).encode()
            )
        elif kind == "conflicting_answers":
            lines.append(json.dumps({"instruction": row["instruction"], "output": sentence(draw, 30)}).encode())
            where[kind].add(earlier + 1)
        else:
            lines.append(planted(kind, draw))
        where[kind].add(number)
    return b"\n".join(lines) + b"\n", where


def in_this_process(chunks: Any, context: Any, workers: int = 0) -> Any:
    """In place of the pool: one worker here, so that it sees what a test has changed."""
    worker = Worker(context)
    for chunk in chunks:
        yield chunk.number, worker.process(chunk)
    worker.close()


# 100,000 rows take about a minute: LLMTUNER_DEFECT_ROWS=100000 pytest tests/dataset/test_defects.py
ROWS = int(os.environ.get("LLMTUNER_DEFECT_ROWS", "6000"))


def test_recall_and_precision_are_one_for_every_kind(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every example is kept, so that each finding can be held against what was planted.
    monkeypatch.setattr(report, "EXAMPLES", 10**9)
    monkeypatch.setattr(report, "ROWS", 10**9)
    monkeypatch.setattr(pool, "run", in_this_process)
    text, planted_at = corpus(ROWS, 6)
    built = prepare({"rows.jsonl": text})
    found = {item.kind: {example.row for example in item.examples} for item in built.report.findings}
    assert {item.kind: item.count for item in built.report.findings} == {
        kind: len(rows) for kind, rows in found.items()
    }
    assert len(planted_at) == 32
    assert found == dict(planted_at)


def test_every_kind_that_code_tells_is_in_the_catalogue_with_a_fix() -> None:
    for kind, defect in defects.DEFECTS.items():
        assert kind == defect.kind
        assert defect.title
        assert defect.fix


def test_missing_field_names_the_field_and_what_is_there() -> None:
    mapping = shapes.recognise(("instruction", "output"))
    assert mapping is not None
    with pytest.raises(RowError, match=r"'output'.*'instruction'") as caught:
        conversion.convert({"instruction": "a"}, mapping)
    assert caught.value.kind == "missing_field"


@pytest.mark.parametrize(
    "text",
    [
        "Version 1.2.3.4 of the firmware", "It was 2024-05-06 10:11:12 then", "order 4111111111111112", "10.0.0.1",
        "call 911", "a@b", "price 1,234,567.89", "ISBN 978-3-16-148410-0", "3 4 5 6 7 8 9 10 11 12", "1000-2000 words",
        "in 1999 2000 2001 2002", "the key is under the mat", "password: forgotten", "sk-etch",
    ],
)  # fmt: skip
def test_ordinary_text_holds_no_personal_data(text: str) -> None:
    assert privacy.find(text) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("+49 30 901820 is ours", "phone"), ("(020) 7946 0958", "phone"), ("555-123-4567", "phone"),
        ("DE89 3704 0044 0532 0130 00", "iban"), ("DE89370400440532013000", "iban"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "secret"), ("password = hunter2!x", "secret"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "secret"),
        ("first.last+tag@mail.example.co.uk", "email"), ("5500-0055-5555-5559", "card_number"), ("9.9.9.9", "ip_address"),
    ],
)  # fmt: skip
def test_personal_data_is_found_and_masked(text: str, kind: str) -> None:
    hits = privacy.find(text)
    assert [hit.kind for hit in hits] == [kind]
    assert "[" in privacy.mask(text, hits)
    assert privacy.find(privacy.mask(text, hits)) == []


def test_a_finding_never_repeats_personal_data() -> None:
    row = {"instruction": "Write to jo@example.org", "input": "", "output": "Done with it all"}
    _, findings = checks.personal(row, masked=False)
    assert [(item.kind, "jo@" in item.detail) for item in findings] == [("email", False)]
