"""Whole builds: every row accounted for, the same bytes every time, splits that do not leak."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dataset.conftest import Built, Prepare, distinct
from llmtuner_kit.dataset import chunks
from llmtuner_kit.errors import DataError

FILES = ("train", "validation", "test", "rejected", "duplicates")


def balanced(built: Built) -> bool:
    report = built.report
    assert report.accepted + report.rejected + report.duplicates == report.rows_in
    assert len(built.rejected) == report.rejected
    assert len(built.duplicates) == report.duplicates
    assert len(built.all_rows) == report.rows_out == sum(part.rows for part in report.splits.values())
    for source in report.sources:
        assert source.accepted + source.rejected + source.duplicates == source.rows
    return True


def test_every_row_is_accepted_rejected_or_a_duplicate(prepare: Prepare) -> None:
    good = distinct(30)
    text = "".join(json.dumps(row) + "\n" for row in [*good, good[3], {"instruction": "x", "output": ""}])
    built = prepare({"rows.jsonl": text + "{broken\n\n[1, 2]\n"})
    assert balanced(built)
    assert (built.report.rows_in, built.report.accepted, built.report.rejected, built.report.duplicates) == (
        34,
        30,
        3,
        1,
    )
    assert {item["kind"] for item in built.rejected} == {"empty_answer", "malformed_json", "not_an_object"}


def test_rejected_rows_keep_their_number_reason_and_original_bytes(prepare: Prepare) -> None:
    built = prepare({"rows.jsonl": as_lines(distinct(5)) + b'{"instruction": "caf\xff", "output": "b"}\n{"a": \n'})
    broken, cut = built.rejected
    assert (broken["row"], broken["kind"]) == (6, "wrong_encoding")
    assert "0xff" in broken["reason"]
    assert "position 21" in broken["reason"]
    assert broken["original_base64"]
    assert (cut["row"], cut["kind"], cut["original"]) == (7, "malformed_json", '{"a": ')
    assert "column" in cut["reason"]


def as_lines(rows: list[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_the_same_input_gives_the_same_bytes_whatever_the_number_of_workers(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4000)
    files = {"a.jsonl": distinct(120), "b.jsonl": [*distinct(40, 100), *distinct(20, 500)]}
    one, two = prepare(files, workers=1), prepare(files, workers=2)
    assert one.report == two.report
    for name in FILES:
        assert (one.folder / f"{name}.jsonl").read_bytes() == (two.folder / f"{name}.jsonl").read_bytes()
    assert one.report.duplicates == 20


def test_a_row_lands_in_the_same_split_in_any_order(prepare: Prepare) -> None:
    rows = distinct(80)
    shuffled = random.Random(1).sample(rows, len(rows))
    one, two = prepare({"rows.jsonl": rows}), prepare({"other.jsonl": shuffled})
    for split in ("train", "validation", "test"):
        assert {row["instruction"] for row in one.rows(split)} == {row["instruction"] for row in two.rows(split)}


def test_splits_have_their_shares_and_never_share_a_question(prepare: Prepare) -> None:
    rows = distinct(100)
    again = [
        {"instruction": row["instruction"], "output": f"Another answer, number {n}."} for n, row in enumerate(rows[:30])
    ]
    built = prepare({"rows.jsonl": [*rows, *again]}, validation_share=0.1, test_share=0.2)
    sizes = {name: part.rows for name, part in built.report.splits.items()}
    assert sum(sizes.values()) == 130
    assert abs(sizes["test"] - 26) <= 1
    assert abs(sizes["validation"] - 13) <= 1
    questions = {split: {row["instruction"] for row in built.rows(split)} for split in sizes}
    assert not questions["train"] & questions["test"]
    assert not questions["train"] & questions["validation"]
    assert built.report.leaks == 0
    assert built.kinds()["conflicting_answers"] == 60


def test_stratified_every_file_is_in_every_split(prepare: Prepare) -> None:
    files = {"big.jsonl": distinct(90), "small.jsonl": distinct(10, 1000)}
    built = prepare(files, stratify=True, test_share=0.1, validation_share=0.1)
    small = {row["instruction"] for row in distinct(10, 1000)}
    found = Counter(
        split for split in ("train", "validation", "test") for r in built.rows(split) if r["instruction"] in small
    )
    assert found == {"train": 8, "validation": 1, "test": 1}


def test_near_duplicates_are_dropped_or_kept_together(prepare: Prepare) -> None:
    rows = distinct(40)
    near = [{"instruction": row["instruction"].upper() + "!", "output": row["output"] + " "} for row in rows[:10]]
    dropped = prepare({"rows.jsonl": [*rows, *near]})
    assert dropped.report.duplicates == 10
    assert {item["kind"] for item in dropped.duplicates} == {"near_duplicate"}
    kept = prepare({"rows.jsonl": [*rows, *near]}, near_duplicates="keep", test_share=0.3)
    assert kept.report.duplicates == 0
    for split in ("train", "validation", "test"):
        names = Counter(row["instruction"].lower().rstrip("!") for row in kept.rows(split))
        originals = {row["instruction"].lower() for row in rows[:10]}
        assert all(count == 2 for name, count in names.items() if name in originals)


def test_an_interrupted_build_goes_on_behind_the_chunks_that_are_done(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4000)
    work, files = tmp_path / "kept", {"rows.jsonl": distinct(120)}
    first = prepare(files, work=work)
    done = sorted(work.glob("*.json"))
    assert len(done) > 3
    stamps = {path.name: path.stat().st_mtime_ns for path in done}
    done[-1].unlink()
    second = prepare(files, work=work)
    assert second.report == first.report
    after = {path.name: path.stat().st_mtime_ns for path in sorted(work.glob("*.json"))}
    assert [name for name in stamps if after[name] != stamps[name]] == [done[-1].name]


def test_nothing_usable_is_an_error_that_names_the_first_reasons(prepare: Prepare) -> None:
    with pytest.raises(DataError, match=r"None of the 2 rows") as caught:
        prepare({"rows.jsonl": '{"instruction": "a", "output": ""}\n{"instruction": "b", "output": " "}\n'})
    assert "row 1" in str(caught.value)
    assert "upload the files again" in caught.value.fix
    with pytest.raises(DataError) as caught:
        prepare({"notes.txt": "One short line.\n\nAnd another one.\n"})
    assert caught.value.fix.startswith("raise passage_tokens")
    assert caught.value.fix.endswith("run this again")
    with pytest.raises(DataError, match="no rows"):
        prepare({"rows.csv": "question,answer\n"})


def test_columns_that_do_not_name_themselves_are_refused_with_a_proposal(prepare: Prepare) -> None:
    table = "id,customer wrote,we said\n1,Where is my parcel,It is on its way\n"
    with pytest.raises(DataError) as caught:
        prepare({"t.csv": table})
    assert "'customer wrote'" in str(caught.value)
    assert "instruction_column=" in str(caught.value)
    built = prepare({"t.csv": table}, instruction_column="customer wrote", output_column="we said")
    assert built.all_rows == [{"instruction": "Where is my parcel", "input": "", "output": "It is on its way"}]
    with pytest.raises(DataError, match="'reply'"):
        prepare({"t.csv": table}, instruction_column="customer wrote", output_column="reply")


def test_columns_that_name_themselves_are_used_and_reported(prepare: Prepare) -> None:
    built = prepare({"t.csv": "ticket_id,product,ticket,reply\n7,Hub,It blinks,Please press the button for long\n"})
    assert built.all_rows[0] == {"instruction": "It blinks", "input": "", "output": "Please press the button for long"}
    assert built.report.sources[0].mapping == "columns: ticket -> instruction, reply -> output"


LONG = " ".join(f"Sentence number {n} of the answer goes here." for n in range(120))


@pytest.mark.parametrize("choice", ["cut", "drop", "split", "stop"])
def test_rows_over_the_limit_are_treated_as_chosen(prepare: Prepare, choice: str) -> None:
    files = {"rows.jsonl": [*distinct(5), {"instruction": "Count up for me", "output": LONG}]}
    if choice == "stop":
        with pytest.raises(DataError, match="1 of 6 rows"):
            prepare(files, long_rows="stop", max_length=256)
        return
    built = prepare(files, long_rows=choice, max_length=256)
    assert balanced(built)
    assert built.report.lengths.over_rows == 1
    assert built.report.lengths.over_answer_tokens > 300
    if choice == "drop":
        assert built.rejected[0]["kind"] == "over_length"
    if choice == "cut":
        assert built.kinds()["cut"] == 1
    if choice == "split":
        assert built.kinds()["split"] == 1
        parts = [row for row in built.all_rows if "Sentence number" in row["output"]]
        assert len(parts) > 4
        assert " ".join(part["output"] for part in parts) == LONG


def test_a_row_whose_answer_is_behind_the_limit_is_refused(prepare: Prepare) -> None:
    built = prepare({"rows.jsonl": [*distinct(4), {"instruction": LONG, "output": "Fine."}]}, max_length=128)
    assert built.rejected[0]["kind"] == "nothing_trained"


def test_personal_data_is_told_and_masked_when_asked(prepare: Prepare) -> None:
    row = {
        "instruction": "Write to jo@example.org about the lamp",
        "output": "Done, the card 4111 1111 1111 1111 was used.",
    }
    told = prepare({"rows.jsonl": [*distinct(4), row]})
    assert (told.kinds()["email"], told.kinds()["card_number"]) == (1, 1)
    assert any("jo@example.org" in r["instruction"] for r in told.all_rows)
    assert "jo@example" not in json.dumps(told.report.as_json()["findings"])
    masked = prepare({"rows.jsonl": [*distinct(4), row]}, mask_personal_data=True)
    assert {
        "instruction": "Write to [EMAIL] about the lamp",
        "input": "",
        "output": "Done, the card [CARD] was used.",
    } in (masked.all_rows)


def test_what_is_kept_of_each_of_many_documents_is_opened_a_few_times(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, opened = np.load, []
    monkeypatch.setattr(np, "load", lambda *given, **named: opened.append(given) or plain(*given, **named))
    built = prepare(
        {f"{number}.md": f"# On {row['instruction']}\n\n{row['output']}" for number, row in enumerate(distinct(8))}
    )
    assert built.report.accepted == 8
    assert 0 < len(opened) <= 3 * 8
