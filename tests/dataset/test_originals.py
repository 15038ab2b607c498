"""Whatever is rejected can be restored byte for byte from the dataset, however large it is and whatever is wrong with it."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import tracemalloc
from pathlib import Path

import pytest
from packed import tar, zip_of

from dataset.conftest import Prepare, as_bytes
from dataset.test_build import balanced
from dataset.test_defects import in_this_process
from llmtuner_kit.dataset import documents, expand, json_text, pool, readers, records, rejected
from llmtuner_kit.dataset.chunks import Plan, Source
from llmtuner_kit.dataset.drafts import drafts_of
from llmtuner_kit.dataset.tokens import Encoding
from llmtuner_kit.settings import PrepareSettings

ROW = {"instruction": "What is this lamp?", "output": "It is a blue lamp."}
LARGE = json.dumps(ROW | {"trace": "lamp " * 400}).encode()
TABLE = b"question,answer\nWhat is this lamp?,It is a blue lamp.\n"


def encrypted() -> bytes:
    """A zip whose member says that it needs a password."""
    data = bytearray(zip_of({"rows.jsonl": as_bytes([ROW] * 20)}))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    return bytes(data)


CASES = {
    # name: content, what is wrong, the part that is refused (None: the whole file)
    "page.html": (b"<p>words</p>" * 200, "too_large", None),
    "guide.md": (b"# Words\n" + b"word " * 400, "too_large", None),
    "line.txt": (b"word " * 400, "too_large", None),
    "row.json": (LARGE, "too_large", None),
    "list.json": (b"[" + as_bytes([ROW]) + b", " + LARGE + b"]", "too_large", LARGE),
    "cut.json": (b"[" + as_bytes([ROW]) + b", " + LARGE[:-2], "malformed_json", LARGE[:-2]),
    "rows.jsonl": (as_bytes([ROW]) + LARGE + b"\n" + as_bytes([ROW]), "too_large", LARGE + b"\n"),
    "wide.jsonl": ((as_bytes([ROW]) + LARGE).decode().encode("utf-16-le"), "too_large", LARGE.decode().encode("utf-16-le")),
    "table.csv": (TABLE + b"x," + b"word " * 400 + b"\nb,c d e f\n", "too_large", b"x," + b"word " * 400 + b"\n"),
    "text.txt": (("ä " * 20 + "\n").encode() * 10 + b"\xff", "wrong_encoding", None),
    "scan.pdf": (b"%PDF-1.7\n" + b"x" * 900, "unreadable_file", None),
    "word.docx": (b"PK\x03\x04" + b"x" * 900, "unreadable_file", None),
    "book.xlsx": (b"PK\x03\x04" + b"y" * 900, "unreadable_file", None),
    "rows.parquet": (b"PAR1" + b"z" * 900, "unreadable_file", None),
    "broken.zip": (b"PK\x03\x04" + b"z" * 900, "unreadable_file", None),
    "secret.zip": (encrypted(), "unreadable_file", None),
    "photo.zip": (zip_of({"photo.png": b"x" * 900}), "unreadable_file", None),
    "photo.tar": (tar({"photo.png": b"x" * 900}), "unreadable_file", None),
    "cut.jsonl.gz": (gzip.compress(random.Random(1).randbytes(900))[:-9], "unreadable_file", None),
    "bomb.txt.gz": (gzip.compress(b"\0" * (1 << 20)), "unreadable_file", None),
}  # fmt: skip


@pytest.fixture
def _low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "run", in_this_process)
    monkeypatch.setattr(readers, "LARGEST_ROW", 1000)
    monkeypatch.setattr(json_text, "_BLOCK", 100)
    monkeypatch.setattr(records, "LARGEST_HELD", 500)
    monkeypatch.setattr(documents, "_LARGEST", dict.fromkeys(documents._LARGEST, 1000))
    monkeypatch.setattr(expand, "_HARMLESS", 10_000)


@pytest.mark.usefixtures("_low_limits")
def test_every_refused_original_is_a_file_of_the_dataset(prepare: Prepare) -> None:
    built = prepare({name: content for name, (content, _, _) in CASES.items()})
    assert balanced(built)
    expected = {name: (kind, content if part is None else part) for name, (content, kind, part) in CASES.items()}
    found, names = {}, {}
    for entry in built.rejected:
        name = entry["source"].split("/")[0]
        with rejected.original(entry, built.folder) as restored:
            found[name] = entry["kind"], restored.read()
        names[entry["original_file"]] = entry["original_bytes"]
    assert found == expected
    assert len(built.rejected) == len(CASES)
    assert names == {f"rejected/{hashlib.sha256(data).hexdigest()}": len(data) for _, data in expected.values()}
    assert built.report.originals == names
    assert {f"rejected/{path.name}" for path in (built.folder / "rejected").iterdir()} == set(names)


def test_an_archive_is_kept_once_for_all_of_its_members_however_small(prepare: Prepare) -> None:
    photos = zip_of({f"{number}.png": b"x" * 900 for number in range(5)})
    built = prepare({"photos.zip": photos, "other.jsonl": [ROW]})
    assert len(built.rejected) == 5
    assert built.report.originals == {f"rejected/{hashlib.sha256(photos).hexdigest()}": len(photos)}


def test_a_small_original_is_in_its_line(prepare: Prepare) -> None:
    built = prepare({"a.jsonl": b'{"a": \n{"instruction": "\xff"}\n', "b.pdf": b"%PDF", "other.jsonl": [ROW]})
    kept = {}
    for entry in built.rejected:
        with rejected.original(entry, built.folder) as file:
            kept[entry["source"], entry["row"]] = file.read()
    assert kept == {("a.jsonl", 1): b'{"a": ', ("a.jsonl", 2): b'{"instruction": "\xff"}', ("b.pdf", 1): b"%PDF"}
    assert not (built.folder / "rejected").exists()
    assert not built.report.originals


def test_a_text_of_80_mib_without_a_line_break_is_kept_in_bounded_memory(tmp_path: Path, encoding: Encoding) -> None:
    path, size = tmp_path / "long.txt", 80 << 20
    with path.open("wb") as file:
        file.writelines(b"%07d " % number * 16384 for number in range(size >> 17))
    tracemalloc.start()
    plan = Plan([Source("long.txt", path, size, "x")], PrepareSettings())
    (draft,) = (draft for chunk in plan for draft in drafts_of(chunk, PrepareSettings(), encoding.measure, None, {}))
    assert draft.problem is not None
    lines, files = rejected.Writer(tmp_path).entries([(draft.record, draft.problem)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
    entry = json.loads(lines)
    assert (entry["kind"], files) == ("too_large", {entry["original_file"]: size})
    with rejected.original(entry, tmp_path) as restored, path.open("rb") as given:
        assert hashlib.file_digest(restored, "sha256").digest() == hashlib.file_digest(given, "sha256").digest()
