"""Whatever the rows: accepted + rejected + duplicates = what came in, and every rejected row has its own bytes."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dataset.conftest import Prepare, distinct
from dataset.test_build import balanced
from dataset.test_defects import ALONE, in_this_process, planted
from llmtuner_kit.dataset import pool
from llmtuner_kit.dataset.rejected import original
from llmtuner_kit.errors import DataError

GOOD = [json.dumps(row, ensure_ascii=False).encode() for row in distinct(12)]
DRAW = random.Random(3)
BAD = [planted(kind, DRAW) for kind in ALONE] + [b"", b"{", b"nul\x00", b"\xff\xfe", b'"text"', b"[]", b"{}", b"  x "]
lines = st.lists(st.one_of(st.sampled_from(GOOD), st.sampled_from(BAD), st.binary(max_size=30)), max_size=30).map(
    lambda found: [line.replace(b"\n", b" ").replace(b"\r", b" ") for line in found]
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@example(one=[], two=[b'"text"'], keep="drop")
@given(one=lines, two=lines, keep=st.sampled_from(["drop", "keep"]))
def test_every_row_is_accounted_for(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, one: list[bytes], two: list[bytes], keep: str
) -> None:
    monkeypatch.setattr(pool, "run", in_this_process)
    files = {"one.jsonl": b"\n".join([GOOD[0], *one]), "two.jsonl": b"\n".join([GOOD[1], *two])}
    try:
        built, told = prepare(files, near_duplicates=keep), ""
    except DataError as refused:
        built, told = None, str(refused)
    if built is None:
        # Files that look as if they were in another encoding have no row of a known shape.
        assert "columns do not say" in told
        return
    assert balanced(built)
    wide = {source.name for source in built.report.sources if source.encoding not in ("utf-8", "")}
    came = sum(bool(line.strip()) for line in files["one.jsonl"].split(b"\n") + files["two.jsonl"].split(b"\n"))
    if not wide:
        assert built.report.rows_in == came
    for item in built.rejected:
        if item["source"] not in wide:
            with original(item, built.folder) as kept:
                assert kept.read() == files[item["source"]].split(b"\n")[item["row"] - 1]
    places = {(item["source"], item["row"]) for item in [*built.rejected, *built.duplicates]}
    assert len(places) == built.report.rejected + built.report.duplicates


def test_row_numbers_of_every_finding_are_in_the_report_and_all_of_them_in_a_file(prepare: Prepare) -> None:
    rows = distinct(150)
    for row in rows[10:140]:
        row["output"] += f" Write to {row['output'].split()[3]}@example.org"
    built = prepare({"a.jsonl": rows[:70], "b.jsonl": rows[70:]})
    finding = built.report.finding("email")
    assert finding is not None
    assert (finding.count, finding.by) == (130, "setting")
    assert finding.rows == {"a.jsonl": tuple(range(11, 71)), "b.jsonl": tuple(range(1, 41))}
    named = [json.loads(line) for line in (built.folder / "findings.jsonl").read_text().splitlines()]
    assert [(item["source"], item["row"]) for item in named if item["kind"] == "email"] == [
        *(("a.jsonl", row) for row in range(11, 71)), *(("b.jsonl", row) for row in range(1, 71))
    ]  # fmt: skip
    assert not re.search(r"@example", (built.folder / "findings.jsonl").read_text())
