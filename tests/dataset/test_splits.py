"""Given splits: what leaks between them is found, and the held-out side stays whole."""

from __future__ import annotations

import json

import pytest

from dataset.conftest import Prepare, distinct
from llmtuner_kit.dataset import splits
from llmtuner_kit.errors import DataError


@pytest.mark.parametrize(
    ("name", "split"),
    [("train.jsonl", "train"), ("data/test/rows-1.csv", "test"), ("my_valid_set.json", "validation"), ("dev-00.jsonl", "validation"),
     ("all.zip/eval/a.jsonl", "test"), ("latest.jsonl", ""), ("contest/a.csv", ""), ("train/part-2.parquet", "train")],
)  # fmt: skip
def test_a_files_name_tells_its_split_by_whole_words(name: str, split: str) -> None:
    assert splits.of_name(name) == split


def test_leaks_between_given_splits_are_counted_and_the_test_stays_whole(prepare: Prepare) -> None:
    train, test, validation = distinct(30), distinct(10, 100), distinct(5, 200)
    near = {"instruction": test[1]["instruction"].upper(), "output": test[1]["output"] + "!"}
    question = {"instruction": test[2]["instruction"], "output": "Quite another answer than the one in the test."}
    files = {
        "train.jsonl": [*train, test[0], near, question],
        "test.jsonl": test,
        "validation.jsonl": [*validation, train[0]],
    }
    built = prepare(files, splits_from="file-names")
    assert {name: part.rows for name, part in built.report.splits.items()} == {"train": 30, "validation": 6, "test": 10}
    assert [row["instruction"] for row in built.rows("test")] == [row["instruction"] for row in test]
    repeats = built.report.repeats
    assert (repeats.exact_across_splits, repeats.near_across_splits) == (2, 1)
    assert built.report.leaks == 1
    finding = built.report.finding("leaked_question")
    assert finding is not None
    assert finding.rows == {"train.jsonl": (33,)}
    named = [json.loads(line) for line in (built.folder / "findings.jsonl").read_text().splitlines()]
    assert {
        "source": "train.jsonl",
        "row": 33,
        "kind": "leaked_question",
        "detail": "validation or test asks the same",
    } in named


def test_without_a_held_out_file_the_names_to_use_are_told(prepare: Prepare) -> None:
    with pytest.raises(DataError, match="named after a split"):
        prepare({"rows.jsonl": distinct(5)}, splits_from="file-names")
