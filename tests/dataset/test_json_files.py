"""JSON files of any size: rows one by one with their own bytes, whatever stands around them, however they are broken."""

from __future__ import annotations

import json
import os
import re
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmtuner_kit.dataset import chunks, json_files, json_text, readers
from llmtuner_kit.dataset.chunks import Plan, Source
from llmtuner_kit.dataset.records import Record
from llmtuner_kit.settings import PrepareSettings


def records(path: Path, content: str | bytes, encoding: str = "utf-8") -> list[Record]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(json_files.read_json(path, "f.json", encoding))


def original(record: Record) -> bytes:
    return b"".join(record.apart.blocks()) if record.apart else record.raw


def elements(tmp_path: Path, text: str | bytes) -> list[tuple[Any, bytes, str]]:
    return [
        (record.value, original(record), record.problem[0] if record.problem else "")
        for record in records(tmp_path / "f.json", text)
    ]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"a": [1, {"b": "]}, {"}]},\n\t12345, "x\\n\u00e9", null, -1.5e3]', " [ ] ", "[1]", '\ufeff[{"a": "é"}]',
    ],
)  # fmt: skip
def test_a_list_is_read_element_by_element_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, text: str
) -> None:
    monkeypatch.setattr(json_text, "_BLOCK", block)
    found = elements(tmp_path, text)
    assert [value for value, _, _ in found] == json.loads(text.lstrip("\ufeff"))
    for value, raw, problem in found:
        assert not problem
        assert raw.decode() in text
        assert json.loads(raw) == value


def test_what_stands_before_a_mistake_in_a_list_is_kept_and_the_rest_keeps_its_bytes(tmp_path: Path) -> None:
    good, broken = '{"a":  1}', '{"a": oops}, {"a": 3}]'
    assert elements(tmp_path, f"[{good}, {broken}") == [
        ({"a": 1}, good.encode(), ""),
        (None, broken.encode(), "malformed_json"),
    ]
    assert [problem for *_, problem in elements(tmp_path, f"[{good}")] == ["", "malformed_json"]
    assert [problem for *_, problem in elements(tmp_path, b'["caf\xff", 1]')] == ["wrong_encoding", ""]


def test_an_object_around_a_list_gives_its_rows_as_they_are_written(tmp_path: Path) -> None:
    text = '{"version": {"n": [1]}, "data" : [ {"a":  1}, {"a": 2} ], "end": "x"}'
    assert [raw for _, raw, _ in elements(tmp_path, text)] == [b'{"a":  1}', b'{"a": 2}']
    single = '{"messages": [{"role": "user", "content": "a"}]}'
    assert [raw for _, raw, _ in elements(tmp_path, single)] == [single.encode()]


@pytest.fixture(params=[1, 7, 1 << 20])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "_BLOCK", request.param)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(
    "head", ["", '"version": 1.5, ', '"meta": {"rows": [{"a": 0}]}, "empty": [], ', '"data": "", ']
)
@pytest.mark.parametrize("tail", ["", ', "end": null', ', "note": "\\u00e9 ]}"'])
def test_what_stands_before_and_behind_the_list_of_rows_does_not_matter(tmp_path: Path, head: str, tail: str) -> None:
    text = "{" + head + '"data" : [ {"a":  "]}"}, \n{"a": 2} ]' + tail + "}\n"
    assert elements(tmp_path, text) == [({"a": "]}"}, b'{"a":  "]}"}', ""), ({"a": 2}, b'{"a": 2}', "")]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(
    "text",
    [
        '{}', '{"a": 1}', '{"a": [{"b": 1}], "c": [1]}', '{"a": [{"b": 1}, 2]}', '{"a": [1, {"b": 1}]}', '{"a": [], "b": {}}',
        '{"data": [{"b": 1}], "data": [{"b": 2}]}', '{"turns": [{"role": "user", "content": "a"}]}', '"text"', "null",
        '{"list": [{"from": "human", "value": "a"}]}', '{"output": "b", "history": [{"q": "a"}]}', ' {"a": [[{"b": 1}]]}\n',
    ],
)  # fmt: skip
def test_any_other_value_is_itself_a_row_with_all_its_bytes(tmp_path: Path, text: str) -> None:
    assert elements(tmp_path, text) == [(json.loads(text), text.encode(), "")]


def test_documents_one_after_the_other_are_lines(tmp_path: Path) -> None:
    text = '{"a": 1}\n\n{"a": oops}\n{"data": [{"a": 3}]}\n'
    assert elements(tmp_path, text) == [
        ({"a": 1}, b'{"a": 1}', ""), (None, b'{"a": oops}', "malformed_json"), ({"data": [{"a": 3}]}, b'{"data": [{"a": 3}]}', ""),
    ]  # fmt: skip
    assert [record.row for record in records(tmp_path / "f.json", text)] == [1, 3, 4]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ('{"v": 1, "data": [{"a": 1}, {"a": 2', b'{"a": 2'), ('{"data": [{"a": 1}, ', b""), ('{"data": [{"a": 1}', b""),
        ('{"data": [{"a": 1}; {"a": 2}]}', b'; {"a": 2}]}'), ('{"data": [{"a": 1}], "end" 5}', b', "end" 5}'),
        ('{"data": [{"a": 1}]} {"data": [{"a": 2}]}', b'} {"data": [{"a": 2}]}'), ('[{"a": 1}]\n[{"a": 2}]', b'[{"a": 2}]'),
        ('[{"a": 1}],', b","),
    ],
)  # fmt: skip
def test_rows_before_a_mistake_are_kept_and_all_that_follows_is_one_record(
    tmp_path: Path, text: str, rest: bytes
) -> None:
    row, broken = elements(tmp_path, text)
    assert row == ({"a": 1}, b'{"a": 1}', "")
    assert broken == (None, rest, "malformed_json")


def test_a_bad_byte_costs_its_row_and_not_the_file(tmp_path: Path) -> None:
    found = elements(tmp_path, b'{"by": "\xfe", "data": [{"a": "caf\xff"}, {"a": 1}]}')
    assert [(raw, problem) for _, raw, problem in found] == [(b'{"a": "caf\xff"}', "wrong_encoding"), (b'{"a": 1}', "")]


@pytest.mark.parametrize("charset", ["utf-8", "utf-8-sig", "utf-16-le", "utf-32-be", "cp1252", "shift_jis"])
def test_places_are_right_in_any_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, charset: str) -> None:
    monkeypatch.setattr(readers, "LARGEST_ROW", 120)
    mark = "\ufeff" if charset.startswith(("utf-16", "utf-32")) else ""
    sign = "ランプ" if charset == "shift_jis" else "é"
    large = f'{{"a": "{sign * 200}"}}'
    text = f'{mark}{{"{sign}": "{sign}", "data": [\n{{"a": "x{sign}"}}, {large}, {{"a": oops}}]}}'
    good, over, broken = records(tmp_path / "f.json", text.encode(charset), charset)
    plain = charset.removesuffix("-sig")
    assert good.value == {"a": f"x{sign}"}
    assert [original(record).decode(plain) for record in (good, over, broken)] == [
        f'{{"a": "x{sign}"}}', large, '{"a": oops}]}'
    ]  # fmt: skip
    assert [record.problem and record.problem[0] for record in (good, over, broken)] == [
        None,
        "too_large",
        "malformed_json",
    ]


@pytest.mark.parametrize("block", [1, 7, 100])
@pytest.mark.parametrize(
    "large",
    [
        json.dumps({"a": 'x]}" \\ {[' * 30}), json.dumps([{"b": ["}"]}] * 30), json.dumps("\\" * 80),
        json.dumps({"a": json.loads("[" * 60 + "]" * 60)}),
    ],
)  # fmt: skip
def test_an_element_too_large_to_be_held_is_passed_over_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, large: str
) -> None:
    monkeypatch.setattr(readers, "LARGEST_ROW", 50)
    monkeypatch.setattr(json_text, "_BLOCK", block)
    for text in (f'[{{"a": 1}}, {large} , {{"a": 2}}]', f'{{"data": [{{"a": 1}}, {large}, {{"a": 2}}]}}'):
        found = elements(tmp_path, text)
        if large.startswith("{") or text.startswith("["):
            assert found == [
                ({"a": 1}, b'{"a": 1}', ""), (None, large.encode(), "too_large"), ({"a": 2}, b'{"a": 2}', ""),
            ]  # fmt: skip
        else:
            assert found == [(None, text.encode(), "too_large")]
    cut = f'[{{"a": 1}}, {large[:-1]}'
    assert [(raw, problem) for _, raw, problem in elements(tmp_path, cut)] == [
        (b'{"a": 1}', ""), (large[:-1].encode(), "malformed_json"),
    ]  # fmt: skip


def test_an_object_of_any_size_is_read_in_bounded_memory(tmp_path: Path) -> None:
    row, path, count = b'{"a": "%s"}' % (b"words " * 200), tmp_path / "f.json", 10_000
    with path.open("wb") as file:
        file.write(b'{"version": 1, "data": [' + b",\n".join([row] * count) + b'], "end": 1}')
    tracemalloc.start()
    found = sum(record.raw == row for record in json_files.read_json(path, "f.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == count
    assert peak < 8 << 20 < path.stat().st_size


words = st.text(st.characters(codec="utf-8"), max_size=8)
rows = st.lists(
    st.fixed_dictionaries({"row": st.one_of(words, st.integers(), st.lists(words, max_size=3))}), max_size=6
)
members = st.dictionaries(
    st.sampled_from(["version", "by", "é"]), st.one_of(words, st.integers(), st.none()), max_size=2
)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """A list of rows, or an object around one, as tools write it."""
    document: Any = draw(rows)
    if draw(st.booleans()):
        document = draw(members) | {"data": document} | draw(members)
    indent, plain = draw(st.sampled_from([None, 0, 2])), draw(st.booleans())
    return json.dumps(document, indent=indent, ensure_ascii=plain).encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A document cut off at any byte, or with any one byte changed."""
    data = draw(documents())
    at = draw(st.integers(0, len(data) - 1))
    return data[:at] if draw(st.booleans()) else data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]


# LLMTUNER_FUZZ=10000 for a long run.
EXAMPLES = int(os.environ.get("LLMTUNER_FUZZ", "300"))


@settings(max_examples=EXAMPLES, deadline=None)
@example(data=b'{"data": [{"row": 1}]}\n}', block=1, limit=1 << 25)
@example(data=b'{"data": [{"row": "', block=1, limit=10)
@given(
    data=st.one_of(documents(), damaged()),
    block=st.sampled_from([1, 7, 1 << 20]),
    limit=st.sampled_from([10, 40, 1 << 25]),
)
def test_the_bytes_of_the_records_are_the_file_but_for_what_stands_around_rows(
    data: bytes, block: int, limit: int
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "LARGEST_ROW", limit)
        patch.setattr(json_text, "_BLOCK", block)
        found = records(Path(folder) / "f.json", data)
        kept = [original(record) for record in found]
    if kept == [data]:
        return
    if not kept:
        assert json.loads(data) == []
        return
    between, at = [], 0
    for raw in kept:
        place = len(data) - len(raw) if raw is kept[-1] and data.endswith(raw) else data.index(raw, at)
        between.append(data[at:place])
        at = place + len(raw)
    first, *inner = between
    behind = data[at:].strip()
    assert re.fullmatch(rb"\s*|\s*\[\s*|\s*\{.*\[\s*", first, re.DOTALL)
    assert all(re.fullmatch(rb"\s*,?\s*|\s*\]\s*", gap) for gap in inner)
    assert not behind or (
        behind.startswith(b"]") and not (found[-1].problem and found[-1].problem[0] == "malformed_json")
    )


def test_progress_moves_while_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 100)
    path = tmp_path / "f.json"
    path.write_text(json.dumps({"data": [{"text": f"words of row {number}"} for number in range(30)]}))
    size = path.stat().st_size
    plan = Plan([Source("f.json", path, size, "x")], PrepareSettings())
    seen = [plan.bytes_planned for _ in plan]
    assert len(seen) > 5
    assert seen == sorted(set(seen))
    assert seen[-1] < plan.bytes_planned == size
