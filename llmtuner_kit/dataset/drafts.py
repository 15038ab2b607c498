"""Records -> drafts of rows: converted, examined, masked when asked, each with its outcome."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llmtuner_kit.dataset import characters, checks, conversion, kinds, passages, readers, shapes
from llmtuner_kit.dataset.checks import Finding
from llmtuner_kit.dataset.conversion import Row
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.dataset.passages import Measure
from llmtuner_kit.dataset.records import Passage, Record
from llmtuner_kit.dataset.shapes import ColumnMapping
from llmtuner_kit.dataset.tokens import Encoding
from llmtuner_kit.settings import PrepareSettings

_PROBE = 200


@dataclass(frozen=True)
class Source:
    """One file to prepare, on this machine."""

    name: str
    path: Path
    size: int
    checksum: str

    @property
    def kind(self) -> str:
        return kinds.kind_of(self.name)


@dataclass
class SourceFacts:
    """What was found out about a file while reading it."""

    encoding: str = "utf-8"
    encoding_certain: bool = True
    mapping: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """One record and what came of it: a row (with findings) or a problem."""

    record: Record
    row: Row | None = None
    problem: tuple[str, str] | None = None
    findings: tuple[Finding, ...] = field(default=())

    @property
    def line(self) -> bytes:
        """The row as it is written: one line of JSON, always the same bytes for the same row."""
        return json.dumps(self.row, ensure_ascii=False).encode()


def drafts_of(source: Source, settings: PrepareSettings, encoding: Encoding, facts: SourceFacts) -> Iterator[Draft]:
    """Everything in a file as drafts, in order. Raises DataError when its columns do not say what they are."""
    for record, row in _converted(source, settings, encoding.measure, facts):
        if isinstance(row, RowError):
            yield Draft(record, problem=(row.kind, row.reason))
            continue
        kept, personal = checks.personal(row, masked=settings.mask_personal_data)
        yield Draft(record, kept, findings=(*checks.examine(kept, encoding.control_tokens), *personal))


def _converted(
    source: Source, settings: PrepareSettings, measure: Measure, facts: SourceFacts
) -> Iterator[tuple[Record, Row | RowError]]:
    if source.kind in kinds.DOCUMENTS:
        yield from _document(source, settings, measure, facts)
        return
    mapping_of = _Mappings(source.name, settings)
    records = mapping_of.probe(_records(source, facts))
    for record in records:
        if record.problem:
            yield record, RowError(*record.problem)
            continue
        mapping = mapping_of(record)
        if mapping is None:
            yield record, _unknown(record)
        elif mapping.shape == "text":
            yield from _plain_text(record, mapping, settings, measure)
        else:
            try:
                yield record, conversion.convert(record.value, mapping, settings.instruction)
            except RowError as problem:
                yield record, problem
    facts.mapping = mapping_of.describe()


def _records(source: Source, facts: SourceFacts) -> Iterator[Record]:
    found = characters.detect(source.path, json=source.kind in ("jsonl", "json"))
    facts.encoding, facts.encoding_certain = found.name, found.certain
    if source.kind == "jsonl":
        with source.path.open("rb") as file:
            yield from readers.read_jsonl(file, source.name, found.name)
    elif source.kind == "json":
        yield from readers.read_json(source.path.read_bytes(), source.name, found.name)
    else:
        yield from readers.open_table(source.path, source.name, source.kind, found.name)


class _Mappings:
    """The mapping of each record of a source, by its keys; remembers what was recognised for the report."""

    def __init__(self, source: str, settings: PrepareSettings) -> None:
        self._source, self._settings = source, settings
        self._told = shapes.told(settings)
        self._seen: dict[tuple[str, ...], ColumnMapping | None] = {}

    def __call__(self, record: Record) -> ColumnMapping | None:
        if isinstance(record.value, str):
            return ColumnMapping("text") if self._settings.shape in ("auto", "text") else None
        if not isinstance(record.value, dict):
            return ColumnMapping("columns")  # convert() names what it is instead
        keys = tuple(record.value)
        if keys not in self._seen:
            self._seen[keys] = self._told or shapes.recognise(keys, self._settings.shape)
        return self._seen[keys]

    def probe(self, records: Iterable[Record]) -> Iterator[Record]:
        """Pass the records on, after looking at the first of them: can they be mapped at all?"""
        records = iter(records)
        head = [record for record, _ in zip(records, range(_PROBE), strict=False)]
        rows = [record for record in head if isinstance(record.value, dict)]
        if rows and self._told:
            self._told = shapes.check_columns(self._source, _all_keys(rows), self._told)
        elif rows and not any(self(record) for record in rows):
            raise shapes.unknown(self._source, list(rows[0].value), self._settings)
        yield from head
        yield from records

    def describe(self) -> str:
        return "; ".join(dict.fromkeys(mapping.describe() for mapping in self._seen.values() if mapping))


def _all_keys(rows: list[Record]) -> list[str]:
    return list(dict.fromkeys(key for record in rows for key in record.value))


def _unknown(record: Record) -> RowError:
    if isinstance(record.value, str):
        return RowError("not_an_object", "the row is text, not an object with named fields")
    return RowError("unknown_fields", f"fields {', '.join(map(repr, record.value)) or 'none'}")


def _plain_text(
    record: Record, mapping: ColumnMapping, settings: PrepareSettings, measure: Measure
) -> Iterator[tuple[Record, Row | RowError]]:
    text = record.value if isinstance(record.value, str) else record.value.get(mapping.input)
    if not isinstance(text, str):
        yield record, RowError("not_text", f"{mapping.input!r} is not text")
        return
    if not text.strip():
        yield record, RowError("empty_answer", "the text is empty")
        return
    for piece in passages.cut(text, settings.passage_tokens, measure):
        yield _passage_row(record.source, record.row, Passage(piece), documentation=False)


def _document(
    source: Source, settings: PrepareSettings, measure: Measure, facts: SourceFacts
) -> Iterator[tuple[Record, Row | RowError]]:
    raw = source.path.read_bytes()
    found = characters.detect_bytes(raw)
    facts.encoding, facts.encoding_certain = found.name, found.certain
    text, problem = characters.decode(raw, found.name)
    if problem:
        yield Record(source.name, 1, raw), RowError(*problem)
        return
    sections = list(_sections(source.kind, text))
    as_documentation = settings.shape == "documentation" or (
        settings.shape == "auto" and sum(bool(section.headings) for section in sections) >= 2
    )
    facts.mapping = "documentation: headings -> instruction, text -> output" if as_documentation else _TEXT_RULE
    if not as_documentation:
        sections = [Passage(text)]
    number = 0
    for section in sections:
        for part, piece in enumerate(passages.cut(section.text, settings.passage_tokens, measure), 1):
            number += 1
            passage = Passage(piece, section.headings, part)
            yield _passage_row(source.name, number, passage, documentation=as_documentation and bool(section.headings))
    if not number:
        yield Record(source.name, 1, raw), RowError("no_text", "there is no text in this file")


_TEXT_RULE = f"text: first {conversion.OPENING} characters -> input, the rest -> output"


def _sections(kind: str, text: str) -> Iterator[Passage]:
    if kind == "markdown":
        return passages.markdown_sections(text)
    if kind == "rst":
        return passages.rst_sections(text)
    return iter([Passage(text)] if text.strip() else [])


def _passage_row(source: str, number: int, passage: Passage, *, documentation: bool) -> tuple[Record, Row | RowError]:
    record = Record(source, number, passage.text.encode("utf-8", "surrogatepass"), passage.text)
    try:
        if documentation:
            return record, conversion.explanation(passage.headings, passage.text, passage.part)
        return record, conversion.continuation(passage.text)
    except RowError as problem:
        return record, problem
