"""A look at the first rows before anything is prepared: how the files would be read, and what rows would become.

    preview = Preview(workspace)
    preview.look(settings)        # fetches the beginnings of a few files once; later looks are instant

Reads, and writes nothing but a scratch folder of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from llmtuner_kit import runs
from llmtuner_kit.dataset import chats, chunks, expand, kinds, quotes, shapes, sources, tables, templates
from llmtuner_kit.dataset.chunks import Chunk, Plan, Source
from llmtuner_kit.dataset.drafts import drafts_of
from llmtuner_kit.dataset.records import Record
from llmtuner_kit.dataset.shapes import ColumnMapping, NoColumnError
from llmtuner_kit.dataset.sources import Listing, Stored
from llmtuner_kit.dataset.templates import Templates
from llmtuner_kit.errors import KitError
from llmtuner_kit.runs import Run
from llmtuner_kit.settings import PrepareSettings
from llmtuner_kit.workspace import Workspace

FILES, ROWS = 6, 3
PAGES = 12  # of a PDF, each of which takes a part of a second
# What the rows of a document depend on: it takes seconds to read a long one.
_OF_DOCUMENTS = {
    "shape", "instruction_template", "input_template", "output_template", "system_template", "passage_tokens",
    "mask_personal_data",
}  # fmt: skip
_UNNAMED = {"instruction_column": "", "input_column": "", "output_column": ""}
# Of line-based files the beginning is enough; the others can only be read whole.
HEAD_BYTES, WHOLE_BYTES = 256 << 10, 16 << 20
_LINE_BASED = frozenset({"jsonl", "csv", "tsv", "text", "markdown", "rst"})
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class PreviewedRow:
    """One record: where it is, and the row it would become or the reason why it would be rejected."""

    source: str
    number: int
    row: Mapping[str, Any] | None
    reason: str = ""


@dataclass(frozen=True)
class PreviewedFile:
    """One file as the settings read it.

    Attributes:
        mapping: how its fields become a row; empty when that is not known.
        proposed: a mapping that is likely and not used until the settings say so.
        sheets: of a spreadsheet all it has: the source that their rows name -> title.
        problem: why the file would stop the preparation as the settings are.
    """

    name: str
    kind: str
    bytes: int
    columns: tuple[str, ...] = ()
    mapping: str = ""
    proposed: ColumnMapping | None = None
    rows: tuple[PreviewedRow, ...] = ()
    problem: str = ""
    sheets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Previewed:
    """Some files, how many there are besides them, what would be left out, and the quote where a job is asked for.

    `offer`: settings with which the files that name no question and answer would be read as it is proposed for each.
    """

    dataset: str
    files: tuple[PreviewedFile, ...]
    more: int
    left_out: tuple[tuple[str, str], ...]
    quote: quotes.JobQuote | None = None
    offer: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Preview:
    """Keeps what it has fetched, so that a change of the settings is shown at once."""

    workspace: Workspace
    _listings: dict[tuple[str, ...], Listing] = field(default_factory=dict)
    _heads: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    _shown: dict[tuple[str, str, PrepareSettings, frozenset[str]], PreviewedFile] = field(default_factory=dict)

    def look(self, settings: PrepareSettings, run: Run | None = None) -> Previewed:
        """How the files would be read; raises KitError when there are none. `run`: the settings' run, if it is open."""
        run = run or runs.open_run(self.workspace, settings.run_name)
        key = (run.name, run.etag, settings.source, settings.dataset, settings.leave_out)
        if key not in self._listings:
            self._listings[key] = sources.find(self.workspace, run, settings)
        listing = self._listings[key]
        chosen = first_of_each(listing.files)
        shown = tuple(self._file(listing, item, settings) for item in chosen)
        if any(shapes.columns_of(settings.output_column, file.columns) and not file.problem for file in shown):
            # Beside a file that has the columns which the settings name, others may say by themselves what they are.
            unnamed = settings.model_copy(update=_UNNAMED)
            shown = tuple(
                own if file.problem and not (own := self._file(listing, item, unnamed)).problem else file
                for file, item in zip(shown, chosen, strict=True)
            )
        if elsewhere := _placed(settings, shown):
            # A file that lacks what a template names is no obstacle beside one that has it.
            shown = tuple(
                self._file(listing, item, settings, elsewhere) if file.problem else file
                for file, item in zip(shown, chosen, strict=True)
            )
        job = quotes.quote(self.workspace, settings, listing) if settings.compute == "processing-job" else None
        more = len(listing.files) - len(chosen)
        return Previewed(listing.dataset, shown, more, listing.left_out, job, offer(settings, shown))

    def _file(
        self, listing: Listing, item: Stored, settings: PrepareSettings, elsewhere: frozenset[str] = frozenset()
    ) -> PreviewedFile:
        kind = kinds.kind_of(item.name)
        if item.size > WHOLE_BYTES and not _by_lines(item.name):
            return PreviewedFile(item.name, kind, item.size, problem="too large to be shown before it is prepared")
        if kind in kinds.DOCUMENTS:
            told = {"output_column"} if kind == "text" else set()  # who answers in a chat
            settings = PrepareSettings(**settings.model_dump(include=_OF_DOCUMENTS | told))
        key = (item.key, item.etag, settings, elsewhere)
        if key not in self._shown:
            self._shown[key] = read(item.name, self._head(listing.bucket, item), item.size, settings, elsewhere)
        return self._shown[key]

    def _head(self, bucket: str, item: Stored) -> bytes:
        key = (bucket, item.key, item.etag)
        if key not in self._heads:
            part = {"Range": f"bytes=0-{HEAD_BYTES - 1}"} if _by_lines(item.name) else {}
            client = self.workspace.aws.client("s3")
            self._heads[key] = client.get_object(Bucket=bucket, Key=item.key, **part)["Body"].read()
        return self._heads[key]


def first_of_each(files: Sequence[Stored]) -> list[Stored]:
    """So many files as are shown, in their order: one of each kind in each folder before a second one of any.

    A folder of pages would hide the table behind it, which may be the one file that needs a setting.
    """
    seen: Counter[tuple[str, str]] = Counter()
    places = []
    for number, item in enumerate(files):
        like = (str(PurePosixPath(item.name).parent), kinds.kind_of(item.name))
        # Rows come before documents, which need no columns.
        places.append((seen[like], like[1] in kinds.DOCUMENTS, number))
        seen[like] += 1
    return [files[number] for number in sorted(number for *_, number in sorted(places)[:FILES])]


def offer(settings: PrepareSettings, files: Iterable[PreviewedFile]) -> dict[str, str]:
    """The columns that are set already, and those proposed for the files that lack them, as settings."""
    proposed = [file.proposed for file in files if file.proposed]
    if not proposed:
        return {}
    asked = shapes.several(settings.instruction_column, *(item.instruction for item in proposed))
    answered = shapes.several(settings.output_column, *(item.output for item in proposed))
    return {"instruction_column": asked, "output_column": answered}


def _by_lines(name: str) -> bool:
    return kinds.kind_of(name) in _LINE_BASED and not kinds.compression_of(name)


def _placed(settings: PrepareSettings, files: Iterable[PreviewedFile]) -> frozenset[str]:
    """The columns that templates name and one of the files has."""
    there = {
        column
        for file in files
        for column in (templates.OF_DOCUMENTS if file.kind in kinds.DOCUMENTS else file.columns)
    }
    return frozenset(Templates.of(settings).names() & there)


def read(
    name: str, data: bytes, size: int, settings: PrepareSettings, elsewhere: Collection[str] = ()
) -> PreviewedFile:
    """One file, or the whole lines of its beginning, as the settings read it; a few rows of each sheet or member.

    `elsewhere`: columns that templates name and other files have; of a file that lacks them the rows are then rejected.
    """
    if len(data) < size and b"\n" in data:
        data = data[: data.rindex(b"\n") + 1]
    kind = kinds.kind_of(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head"
        path.write_bytes(data)
        given = Source(name, path, len(data), hashlib.sha256(data).hexdigest())
        plain = expand.expand([given], Path(folder) / "expanded")
        is_book = kind == "xlsx" and not kinds.compression_of(name)
        sheets, head = _book(name, data) if is_book else ({}, ())
        columns: tuple[str, ...] = ()
        mappings: dict[str, None] = {}
        rows: dict[str, list[PreviewedRow]] = {}
        try:
            head = head if is_book else _head(plain[0], settings)
            columns = _names(head)
            if kind == "text" and plain[0].kind == "text":
                columns = tuple(chats.names_in(plain[0].path, Plan(plain, settings).encoding_of(0, plain[0])))
            found = (
                [chunks.of_records(plain[0], head, settings, elsewhere)]
                if is_book
                else Plan(plain, settings, sample=True, placed=set(elsewhere))
            )
            for chunk in found:
                for draft in drafts_of(_beginning(chunk), settings, _measure, None, mappings):
                    shown = rows.setdefault(draft.record.source, [])
                    if len(shown) < ROWS:
                        reason = draft.problem[1] if draft.problem else ""
                        shown.append(PreviewedRow(draft.record.source, draft.record.row, draft.row, reason))
                    elif not chunk.records:
                        break  # a document or lines: all of one source
                if len(rows) >= FILES:
                    break
        except KitError as error:
            is_open = not settings.output_column or isinstance(error, NoColumnError)
            proposed = shapes.propose(_values(head)) if is_open else None
            said = str(error).split("\n")[0]
            return PreviewedFile(name, kind, size, columns, "", proposed, (), said, sheets)
    shown_rows = tuple(itertools.chain.from_iterable(rows.values()))
    return PreviewedFile(name, kind, size, columns, "; ".join(mappings), None, shown_rows, "", sheets)


@lru_cache(FILES)
def _book(name: str, data: bytes) -> tuple[Mapping[str, str], tuple[Record, ...]]:
    """The sheets of a spreadsheet and their first rows, read once: to open a large one takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "book"
        path.write_bytes(data)
        return tables.first_rows(path, name, chunks.PROBE)


def _beginning(chunk: Chunk) -> Chunk:
    """The chunk with the first records of each source in it, of a PDF with the first pages."""
    if chunk.kind == "pdf":
        return dataclasses.replace(chunk, end=PAGES)
    grouped = itertools.groupby(chunk.records, key=lambda record: record.source)
    first = itertools.chain.from_iterable(itertools.islice(records, ROWS) for _, records in grouped)
    return dataclasses.replace(chunk, records=tuple(first))


def _head(source: Source, settings: PrepareSettings) -> tuple[Record, ...]:
    """The first rows of a file of rows, whose names templates and settings can use."""
    if source.broken or not source.kind or source.kind in kinds.DOCUMENTS:
        return ()
    plan = Plan([source], settings)
    encoding = plan.encoding_of(0, source)
    records = tables.open_records(source.path, source.name, source.kind, encoding)
    return tuple(itertools.islice(records, 50))


def _values(records: tuple[Record, ...]) -> list[dict[str, Any]]:
    return [record.value for record in records if isinstance(record.value, dict)]


def _names(records: tuple[Record, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for row in _values(records) for key in row))


def _measure(texts: list[str]) -> list[int]:
    """Good enough to show where passages may end, without the model's tokenizer."""
    return [len(text) // _CHARACTERS_PER_TOKEN + 1 for text in texts]
