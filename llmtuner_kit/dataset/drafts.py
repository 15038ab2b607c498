"""Records -> drafts of rows: converted, examined, masked when asked, each with its outcome."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtuner_kit.dataset import checks, conversion, documents, kinds, passages, readers, shapes
from llmtuner_kit.dataset.checks import Finding
from llmtuner_kit.dataset.chunks import Chunk
from llmtuner_kit.dataset.conversion import Row
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.dataset.passages import Measure
from llmtuner_kit.dataset.records import Passage, Record, refused
from llmtuner_kit.dataset.shapes import ColumnMapping
from llmtuner_kit.dataset.templates import Templates
from llmtuner_kit.settings import PrepareSettings


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
        return _encode(self.row).encode()


# json.dumps builds a new encoder for each call that is not of its default kind.
_encode = json.JSONEncoder(ensure_ascii=False).encode


def drafts_of(
    chunk: Chunk,
    settings: PrepareSettings,
    measure: Measure,
    control_tokens: re.Pattern[str] | None,
    mappings: dict[str, None],
) -> Iterator[Draft]:
    """Everything in a chunk as drafts, in order; how fields were mapped is noted in `mappings`.

    `control_tokens` matches the model's own special tokens.
    """
    for record, row in _converted(chunk, settings, measure, mappings):
        if not record.problem and (lacking := _lacking(chunk, record)):
            yield Draft(record, problem=("missing_column", lacking))
            continue
        if isinstance(row, RowError):
            yield Draft(record, problem=(row.kind, row.reason))
            continue
        kept, personal = checks.personal(row, masked=settings.mask_personal_data)
        yield Draft(record, kept, findings=(*checks.examine(kept, control_tokens), *personal))


def _lacking(chunk: Chunk, record: Record) -> str:
    """What templates name and neither the file nor this row has; a file is judged by its first rows."""
    there = record.value if isinstance(record.value, dict) else ()
    lacks = {name: setting for name, setting in chunk.lacks.items() if name not in there}
    if not lacks:
        return ""
    columns, settings = (", ".join(dict.fromkeys(part)) for part in (map("{{{}}}".format, lacks), lacks.values()))
    return f"{chunk.name} has no {columns} (named in {settings})"


def _converted(
    chunk: Chunk, settings: PrepareSettings, measure: Measure, mappings: dict[str, None]
) -> Iterator[tuple[Record, Row | RowError]]:
    if chunk.kind in kinds.DOCUMENTS:
        yield from _document(chunk, settings, measure, mappings)
        return
    wording = Templates.of(settings)
    for record in _records(chunk):
        if record.problem:
            yield record, RowError(*record.problem)
            continue
        mapping = _mapping(record.value, chunk.told, settings.shape)
        if mapping is None:
            yield record, _unknown(record)
            continue
        if mapping is not _NO_OBJECT and not (mapping.told and mapping.output and mapping.output not in record.value):
            mappings.setdefault(mapping.describe())
        if mapping.shape == "text":
            yield from _plain_text(record, mapping, settings, measure)
            continue
        try:
            yield record, conversion.convert(record.value, mapping, wording)
        except RowError as problem:
            yield record, problem


def _records(chunk: Chunk) -> Iterator[Record]:
    if not chunk.path:
        yield from chunk.records
        return
    yield from readers.read_jsonl(
        Path(chunk.path), chunk.name, chunk.encoding, first_row=chunk.first_row, start=chunk.start, end=chunk.end
    )


def _mapping(value: Any, told: ColumnMapping | None, shape: str) -> ColumnMapping | None:
    if isinstance(value, str):
        return _TEXT if shape in ("auto", "text") else None
    if not isinstance(value, dict):
        return _NO_OBJECT
    return shapes.of_row(told, tuple(value)) if told else shapes.recognise(tuple(value), shape)


_TEXT = ColumnMapping("text")
# Conversion says what the value is instead of an object.
_NO_OBJECT = ColumnMapping("columns")


def _unknown(record: Record) -> RowError:
    if isinstance(record.value, str):
        return RowError("not_an_object", "the row is text, not an object with named fields")
    return RowError("unknown_fields", f"fields {', '.join(map(repr, record.value)) or 'none'}: no question and answer")


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
    wording, about = Templates.of(settings), record.value if isinstance(record.value, dict) else {}
    pieces = passages.cut(text, settings.passage_tokens, measure)
    for piece in pieces:
        # A text that stays in one piece is its whole line; of a longer one each piece is told by its own text.
        raw = record.raw if len(pieces) == 1 else piece.encode("utf-8", "surrogatepass")
        yield _passage_row(dataclasses.replace(record, raw=raw), piece, wording, about)


def _document(
    chunk: Chunk, settings: PrepareSettings, measure: Measure, mappings: dict[str, None]
) -> Iterator[tuple[Record, Row | RowError]]:
    path = Path(chunk.path)
    try:
        sections = documents.sections_of(path, chunk.kind, chunk.encoding, chunk.start, chunk.end, chunk.ranges)
        if not sections:
            raise RowError("no_text", "there is no text in this file")
    except RowError as problem:
        end = chunk.end or path.stat().st_size
        told = (problem.kind, problem.reason)
        yield refused(chunk.name, chunk.first_row, path, chunk.start, end, told), problem
        return
    headed = [section for section in sections if section.headings]
    as_documentation = settings.shape == "documentation" or (
        settings.shape == "auto" and (len(headed) > 1 or _is_article(headed, settings))
    )
    mappings.setdefault(_HEADINGS_RULE if as_documentation and headed else _TEXT_RULE)
    wording = Templates.of(settings)
    number = chunk.first_row
    for section in sections:
        for part, piece in enumerate(passages.cut(section.text, settings.passage_tokens, measure), 1):
            passage = Passage(piece, section.headings, part)
            record = Record(chunk.name, number, piece.encode("utf-8", "surrogatepass"))
            if as_documentation and section.headings:
                yield _section_row(record, passage, wording)
            else:
                yield _passage_row(record, piece, wording, {"file": chunk.name})
            number += 1


def _is_article(headed: list[Passage], settings: PrepareSettings) -> bool:
    """Whether a single section answers its heading, as a page of help does: a long one under a title is a story."""
    return len(headed) == 1 and len(headed[0].text) <= _ARTICLE * settings.passage_tokens


_ARTICLE = 12  # characters for each token of a passage: about three passages


_TEXT_RULE = f"text: first {conversion.OPENING} characters -> input, the rest -> output"
_HEADINGS_RULE = "documentation: headings -> instruction, text -> output"


def _passage_row(
    record: Record, text: str, wording: Templates, about: Mapping[str, Any]
) -> tuple[Record, Row | RowError]:
    piece = dataclasses.replace(record, value=text)
    try:
        return piece, conversion.continuation(text, wording, about)
    except RowError as problem:
        return piece, problem


def _section_row(record: Record, passage: Passage, wording: Templates) -> tuple[Record, Row | RowError]:
    try:
        return record, conversion.explanation(passage, wording, record.source)
    except RowError as problem:
        return record, problem
