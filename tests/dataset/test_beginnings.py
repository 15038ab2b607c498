"""What rows begin with alike is counted on rows from all over the split."""

from __future__ import annotations

from tiny_encodings import encoding_of

from dataset.conftest import Prepare
from llmtuner_kit.dataset.beginnings import shared_tokens
from llmtuner_kit.dataset.tokens import Encoding

SYSTEM = "You answer for the shop Kranich, briefly, kindly and with one step to do next. "


def rows(count: int, system: str) -> list[dict[str, object]]:
    return [
        {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": f"Order {number * 7919} has not come, what now?"},
                {
                    "role": "assistant",
                    "content": f"I have asked the carrier about parcel {number} and will write again.",
                },
            ]
        }
        for number in range(count)
    ]


def test_the_report_counts_the_tokens_that_all_rows_of_training_begin_with(
    prepare: Prepare, encoding: Encoding
) -> None:
    made = prepare({"chats.jsonl": rows(60, SYSTEM * 3)})
    ids = [row.ids for row in encoding.masks(dict(enumerate(made.rows("train"))))]
    first = ids[0]
    shared = next(place for place in range(len(first)) if any(row[place] != first[place] for row in ids))
    assert shared > 60
    assert made.report.splits["train"].shared_tokens == shared


def test_one_row_that_begins_otherwise_leaves_only_the_template(prepare: Prepare, encoding: Encoding) -> None:
    alike = prepare({"chats.jsonl": rows(20, SYSTEM)}, validation_share=0, test_share=0)
    mixed = prepare({"chats.jsonl": [*rows(20, SYSTEM), *rows(1, "Be rude.")]}, validation_share=0, test_share=0)
    assert mixed.report.splits["train"].shared_tokens < alike.report.splits["train"].shared_tokens - 10
    short = alike.folder / "one.jsonl"
    short.write_bytes((alike.folder / "train.jsonl").read_bytes().splitlines()[0])
    assert shared_tokens(short, encoding) == 0
    assert shared_tokens(alike.folder / "train.jsonl", encoding_of("tiny-t5")) == 0
