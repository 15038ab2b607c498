"""No file crashes the preparation: whatever the bytes, every record comes out as a row or with a reason."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmtuner_kit.dataset import characters, defects, expand
from llmtuner_kit.dataset.chunks import Plan, Source
from llmtuner_kit.dataset.drafts import drafts_of
from llmtuner_kit.dataset.tokens import Encoding
from llmtuner_kit.errors import DataError
from llmtuner_kit.settings import PrepareSettings

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".md", ".rst", ".html", ".pdf", ".docx", ".xlsx", ".parquet")
names = st.sampled_from(
    ["instruction", "input", "output", "messages", "role", "content", "conversations", "from", "value", "prompt",
     "completion", "question", "answer", "text", "system", "history", "weight", "x"]
)  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
rows = st.dictionaries(names, json_values, max_size=5)
broken_lines = st.lists(st.one_of(rows.map(json.dumps).map(str.encode), st.binary(max_size=60)), max_size=6)
tables = st.lists(st.lists(st.text(max_size=12), max_size=4), max_size=6).map(
    lambda cells: "\n".join(",".join(row) for row in [["question", "answer"], *cells]).encode("utf-8", "surrogatepass")
)
contents = st.one_of(
    st.binary(max_size=300),
    broken_lines.map(b"\n".join),
    tables,
    json_values.map(json.dumps).map(str.encode),
    st.text(max_size=300).map(lambda text: text.encode("utf-16", "surrogatepass")),
    st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([b"PK\x03\x04", b"%PDF-1.7\n", b"PAR1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"]).flatmap(
        lambda head: st.binary(max_size=200).map(lambda tail: head + tail)
    ),
)


def wrapped(content: bytes, how: str, suffix: str) -> tuple[str, bytes]:
    if how == "gz":
        return f"f{suffix}.gz", gzip.compress(content)
    if how == "zip":
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr(f"f{suffix}", content)
        return "f.zip", data.getvalue()
    if how == "as zip":
        return "f.zip", content
    return f"f{suffix}", content


# LLMTUNER_FUZZ=10000 for a long run.
EXAMPLES = int(os.environ.get("LLMTUNER_FUZZ", "300"))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(content=b"\r\x00", suffix=".csv", how="")
@example(content=b"\x00\x9d", suffix=".csv", how="")
@given(content=contents, suffix=st.sampled_from(KINDS), how=st.sampled_from(["", "", "gz", "zip", "as zip"]))
def test_any_bytes_give_rows_or_reasons(encoding: Encoding, content: bytes, suffix: str, how: str) -> None:
    name, data = wrapped(content, how, suffix)
    chosen = PrepareSettings()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(data)
        sources = expand.expand([Source(name, path, len(data), "x")], Path(folder) / "expanded")
        try:
            for chunk in Plan(sources, chosen):
                for draft in drafts_of(chunk, chosen, encoding.measure, encoding.control_tokens, {}):
                    assert (draft.row is None) != (draft.problem is None)
                    if draft.row is not None:
                        assert json.loads(draft.line) == draft.row
                    else:
                        assert draft.problem is not None
                        assert draft.problem[0] in defects.DEFECTS
        except DataError as refused:
            told = str(refused)  # columns that say nothing: the one thing that stops a whole preparation
        else:
            told = "columns"
        assert "columns" in told


@settings(max_examples=200, deadline=None)
# A NUL after the mark of UTF-16 is the mark of UTF-32: no reader can tell them apart.
@given(
    text=st.text(max_size=200).filter(lambda text: not text.startswith("\0")),
    name=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"]),
)
def test_what_was_written_in_an_encoding_with_a_mark_is_read_again(text: str, name: str) -> None:
    data = text.encode(name, errors="ignore")
    if name in ("utf-8-sig", "utf-16", "utf-32"):
        found = characters.detect_bytes(data)
        read = characters.decode(data, found.name)[0]
        assert (read if name == "utf-8-sig" else read[1:]) == data.decode(name)
    else:
        assert isinstance(characters.decode(data, characters.detect_bytes(data).name)[0], str)
