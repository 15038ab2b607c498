"""Files -> chunks of a few megabytes that workers take one by one. The same files always give the same chunks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtuner_kit.dataset import characters, chats, kinds, lines, page_ranges, shapes, tables, templates
from llmtuner_kit.dataset.page_ranges import PageRange
from llmtuner_kit.dataset.records import Record, Stretch
from llmtuner_kit.dataset.shapes import ColumnMapping, NoColumnError
from llmtuner_kit.dataset.templates import OF_DOCUMENTS, Templates
from llmtuner_kit.errors import DataError
from llmtuner_kit.settings import PrepareSettings

CHUNK_BYTES = 4 << 20
CHUNK_RECORDS = 4000
LONGEST_RANGE = 4 * CHUNK_BYTES
PROBE = 200


@dataclass(frozen=True)
class Source:
    """One file to prepare, on this machine. `checksum` is the SHA-256 of its bytes; `broken`: why it has none."""

    name: str
    path: Path
    size: int
    checksum: str
    broken: str = ""

    @property
    def kind(self) -> str:
        return kinds.kind_of(self.name)


@dataclass(frozen=True)
class Chunk:
    """Work for one worker: a stretch of a line-based file, some records, or a whole document.

    Attributes:
        number: position among all chunks, from 0.
        source: position of its file among the sources.
        told: the mapping from the settings, as they name it.
        lacks: columns that templates name and the file does not have -> the setting that names it.
        ranges: where the pages of a long PDF lie, once they are read.
    """

    number: int
    source: int
    name: str
    kind: str
    encoding: str = "utf-8"
    path: str = ""
    start: int = 0
    end: int = 0
    first_row: int = 1
    records: tuple[Record, ...] = ()
    told: ColumnMapping | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)
    ranges: tuple[str, ...] = ()


@dataclass
class Plan:
    """The chunks of all sources, made on demand; `encodings` fills as files are reached.

    Attributes:
        sample: of files of rows only the first ones, those that the mapping is looked for in.
        ranges: where the pages of long PDFs will lie, by the position of the source.
        named: whether a file has the columns that the settings name; what another lacks is then no mistake.
        placed: those columns that templates name and a file has; rows of another that lacks them are rejected.
        lacks: of each file, by its position, what it lacks of these.
    """

    sources: Sequence[Source]
    settings: PrepareSettings
    sample: bool = False
    encodings: dict[int, characters.TextEncoding] = field(default_factory=dict)
    bytes_planned: int = 0
    named: bool = False
    ranges: dict[int, tuple[str, ...]] = field(default_factory=dict)
    placed: set[str] = field(default_factory=set)
    lacks: dict[int, dict[str, str]] = field(default_factory=dict)
    _lacking: NoColumnError | None = None

    def __iter__(self) -> Iterator[Chunk]:
        number = itertools.count()
        for index, source in enumerate(self.sources):
            before = self.bytes_planned
            for chunk in self._of(index, source):
                # The size of records is only near to what they are in the file: a table's text may be compressed.
                size = chunk.end - chunk.start or sum(len(record.raw) for record in chunk.records)
                self.bytes_planned = min(self.bytes_planned + size, before + source.size)
                yield dataclasses.replace(chunk, number=next(number), lacks=self.lacks.get(index, {}))
            self.bytes_planned = before + source.size
        if self._lacking and not self.named:
            raise self._lacking

    def page_ranges(self, folder: Path) -> Iterator[PageRange]:
        """The pages of long PDFs that have not been read into `folder`; to be read before the chunks are."""
        first = 0
        for index, source in enumerate(self.sources):
            if source.kind == "pdf" and not source.broken:
                found = page_ranges.of_document(source.path, source.name, folder, first)
                first += len(found)
                self.ranges[index] = tuple(part.target for part in found)
                yield from (part for part in found if not Path(part.target).exists())

    def _of(self, index: int, source: Source) -> Iterator[Chunk]:
        if source.broken:
            # Named by its place however small: an archive may be the original of thousands of members.
            place = Stretch(str(source.path), 0, source.path.stat().st_size)
            record = Record(source.name, 1, b"", problem=("unreadable_file", source.broken), apart=place)
            yield Chunk(0, index, source.name, "", records=(record,))
            return
        encoding = self.encoding_of(index, source)
        may_be_chat = source.kind == "text" and self.settings.shape in ("auto", "chat-export")
        if may_be_chat and (names := chats.names_in(source.path, encoding)):
            yield from self._of_chat(index, source, encoding, names)
            return
        if source.kind in kinds.DOCUMENTS:
            self.note_columns(index, OF_DOCUMENTS)
            if source.kind == "text" and source.size > CHUNK_BYTES:
                yield from _ranges(index, source, encoding, None, at_blank=True)
            else:
                ranges = self.ranges.get(index, ())
                yield Chunk(0, index, source.name, source.kind, encoding, str(source.path), ranges=ranges)
            return
        records, told = self._probed(index, source, encoding)
        if source.kind == "jsonl":
            yield from _ranges(index, source, encoding, told, at_blank=False)
            return
        for batch in _batches(records):
            yield Chunk(0, index, source.name, source.kind, encoding, records=batch, told=told)

    def _of_chat(self, index: int, source: Source, encoding: str, names: Sequence[str]) -> Iterator[Chunk]:
        answering = chats.answering(source.name, names, self.settings)
        self.named = True
        self.note_columns(index, ())
        _require_no_templates(source, Templates.of(self.settings))
        for batch in _batches(chats.read(source.path, source.name, encoding, answering)):
            yield Chunk(0, index, source.name, "chat", encoding, records=batch, told=chats.MAPPING)

    def encoding_of(self, index: int, source: Source) -> str:
        """The encoding of a text file, empty for other kinds; noted in `encodings`."""
        if source.kind in ("jsonl", "json", "csv", "tsv", "text", "markdown", "rst", "html"):
            self.encodings[index] = characters.detect(source.path, json=source.kind in ("jsonl", "json"))
        return self.encodings.get(index, characters.TextEncoding("")).name

    def note_columns(self, index: int, columns: Sequence[str]) -> None:
        """Note what templates name and a file lacks. Raises DataError where no later file has it either."""
        wording = Templates.of(self.settings)
        lacks = templates.missing(columns, wording)
        if not lacks:
            self.placed |= wording.names()
            return
        self.lacks[index] = lacks
        self.placed |= wording.names() - lacks.keys()
        later = range(index + 1, len(self.sources))
        for name, setting in lacks.items():
            if name not in self.placed and not any(name in self._columns(number) for number in later):
                raise templates.unknown(self.sources[index].name, columns, name, setting)
            self.placed.add(name)

    def _columns(self, index: int) -> Collection[str]:
        """The columns in the first rows of a file, before it is its turn."""
        source = self.sources[index]
        if source.broken or source.kind in kinds.DOCUMENTS:
            return () if source.broken else OF_DOCUMENTS
        encoding = self.encoding_of(index, source)
        records = tables.open_records(source.path, source.name, source.kind, encoding, rows_of_sheet=PROBE)
        return _keys(_rows(list(records if source.kind == "xlsx" else itertools.islice(records, PROBE))))

    def _probed(self, index: int, source: Source, encoding: str) -> tuple[Iterator[Record], ColumnMapping | None]:
        """The records of a file, and the mapping the settings tell, after a look at the first rows.

        Raises DataError when not one of them says what is the question and what the answer.
        """
        where = source.path, source.name, source.kind, encoding
        records = tables.open_records(*where)
        head = probed = list(itertools.islice(records, PROBE))
        if source.kind == "xlsx" and not self._says_all(source, head):
            # Later sheets have columns of their own.
            probed = list(tables.open_records(*where, rows_of_sheet=PROBE))
        told = self._mapped(index, source, probed)
        return iter(head) if self.sample else itertools.chain(head, records), told

    def _says_all(self, source: Source, head: Sequence[Record]) -> bool:
        """Whether these rows have all that settings name, and say what is the question and what the answer."""
        try:
            _mapping(source, head, self.settings)
        except DataError:
            return False
        return not templates.missing(_keys(_rows(head)), Templates.of(self.settings))

    def _mapped(self, index: int, source: Source, head: Sequence[Record]) -> ColumnMapping | None:
        """The mapping of a file. One that lacks the named columns may say by itself what it is, beside one that has them."""
        if rows := _rows(head):
            self.note_columns(index, _keys(rows))
        try:
            told = _mapping(source, head, self.settings)
        except DataError as lacking:
            if index in self.lacks:
                return None  # whatever its other columns say
            if not isinstance(lacking, NoColumnError) or not any(
                shapes.recognise(tuple(row), self.settings.shape) for row in rows
            ):
                raise
            self._lacking = self._lacking or lacking
            return None
        self.named |= told is not None
        return told


def of_records(
    source: Source, records: Sequence[Record], settings: PrepareSettings, placed: Collection[str] = ()
) -> Chunk:
    """The first records of a file that were read already, as a chunk. Raises DataError as reading the file would.

    `placed`: columns that templates name and other files have.
    """
    plan = Plan([source], settings, placed=set(placed))
    if rows := _rows(records):
        plan.note_columns(0, _keys(rows))
    told = None if plan.lacks else _mapping(source, records, settings)
    return Chunk(0, 0, source.name, source.kind, records=tuple(records), told=told, lacks=plan.lacks.get(0, {}))


def _mapping(source: Source, head: Sequence[Record], settings: PrepareSettings) -> ColumnMapping | None:
    rows = _rows(head)
    return _told(source, rows, _keys(rows), settings) if rows else None


def _keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [record.value for record in records if isinstance(record.value, dict)]


def _told(
    source: Source, rows: list[dict[str, Any]], keys: list[str], settings: PrepareSettings
) -> ColumnMapping | None:
    """The mapping to use for all rows of a file, or None when each row says by its keys what it is."""
    wording = Templates.of(settings)
    if (told := shapes.told(settings)) is not None:
        shapes.check_columns(source.name, keys, told)
        return told
    found = [mapping for row in rows if (mapping := shapes.recognise(tuple(row), settings.shape))]
    if any(mapping.messages for mapping in found):
        _require_no_templates(source, wording)
    if found:
        return None
    if wording.output:
        # The answer is made by the template; what is asked by a template or by a column that is named.
        return ColumnMapping("columns", settings.instruction_column, settings.input_column, told=True)
    raise shapes.unknown(source.name, rows, settings)


def _require_no_templates(source: Source, wording: Templates) -> None:
    """Raises DataError where templates would word what a conversation does not have."""
    if used := wording.given().keys() - {"system"}:
        raise DataError(
            f"{source.name} holds conversations, which have no {' and '.join(sorted(used))} to be made by a template.",
            valid="system_template, for the message before every conversation",
            fix="leave the other templates empty",
        )


def _batches(records: Iterator[Record]) -> Iterator[tuple[Record, ...]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.raw)
        if len(batch) >= CHUNK_RECORDS or size >= CHUNK_BYTES:
            yield tuple(batch)
            batch, size = [], 0
    if batch:
        yield tuple(batch)


def _ranges(
    index: int, source: Source, encoding: str, told: ColumnMapping | None, *, at_blank: bool
) -> Iterator[Chunk]:
    """Byte ranges that end at a line (or a blank line), with the number of their first line.

    Where no blank line comes in a while, at any line: a range has to fit into memory.
    """
    row, start = 1, 0
    newline = lines.newline_of(encoding)
    with source.path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            rows, size = lines.count(data, encoding), len(data)
            ended = False
            while not ended and (line := lines.read_line(file, newline, CHUNK_BYTES)):
                size += len(line)
                whole = line.endswith(newline)
                rows += whole
                ended = whole and (not at_blank or not line.strip(b"\0 \t\r\n") or size > LONGEST_RANGE)
            end = start + size
            yield Chunk(0, index, source.name, source.kind, encoding, str(source.path), start, end, row, told=told)
            row, start = row + rows, end
