"""Files on this machine -> train.jsonl, validation.jsonl, test.jsonl, rejected.jsonl, duplicates.jsonl, report.json."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtuner_kit.dataset import conversion, report, splits
from llmtuner_kit.dataset.drafts import Draft, Source, SourceFacts, drafts_of
from llmtuner_kit.dataset.records import Record
from llmtuner_kit.dataset.report import Report, SourceReport, SplitReport, Tally
from llmtuner_kit.dataset.tokens import Count, Encoding
from llmtuner_kit.errors import DataError
from llmtuner_kit.settings import PrepareSettings

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_NOT_WORD = re.compile(r"[\W_]+")
SAMPLES = 5


@dataclass
class _Kept:
    """An accepted row on its way to its split."""

    record: Record
    line: bytes
    key: bytes
    loose: bytes
    prompt: bytes
    tokens: int
    trained: int
    over_answer: int


def build(
    sources: Sequence[Source],
    settings: PrepareSettings,
    encoding: Encoding,
    model_id: str,
    folder: Path,
    progress: Progress,
) -> Report:
    """Prepare files; writes the dataset's files into `folder` and returns the report.

    Raises DataError when nothing can be learned from the files, or when long_rows is stop and a row is too long.
    """
    tally = Tally()
    kept: list[_Kept] = []
    source_reports = []
    done, total = 0, sum(source.size for source in sources)
    with (folder / "rejected.jsonl").open("wb") as rejected, (folder / "duplicates.jsonl").open("wb") as duplicates:
        first: dict[bytes, _Kept] = {}
        for source in sources:
            progress("reading rows", done, total)
            facts = SourceFacts()
            drafts = list(drafts_of(source, settings, encoding, facts))
            accepted, refused = _measured(drafts, encoding, settings, tally)
            for record, kind, reason in refused:
                tally.add(kind, record.source, record.row, reason)
                rejected.write(_rejected_line(record, kind, reason))
            unique = _without_duplicates(accepted, first, settings, tally, duplicates)
            kept += unique
            source_reports.append(
                SourceReport(
                    source.name, source.kind, source.size, facts.encoding, facts.encoding_certain, facts.mapping,
                    len(drafts), len(unique), len(refused), len(accepted) - len(unique),
                )
            )  # fmt: skip
            done += source.size
    _refuse_nothing(kept, source_reports, tally)
    shares = {"validation": settings.validation_share, "test": settings.test_share}
    assigned = splits.assign([row.prompt for row in kept], shares)
    progress("writing splits", 0, 1)
    written = {}
    for split in splits.SPLITS:
        rows = [row for row, where in zip(kept, assigned, strict=True) if where == split]
        (folder / f"{split}.jsonl").write_bytes(b"".join(row.line + b"\n" for row in rows))
        written[split] = SplitReport(len(rows), sum(row.tokens for row in rows), sum(row.trained for row in rows))
    samples = [row for row, where in zip(kept, assigned, strict=True) if where == "train"][:SAMPLES]
    progress("writing splits", 1, 1)
    return Report(
        rows_in=sum(item.rows for item in source_reports),
        accepted=len(kept),
        rejected=sum(item.rejected for item in source_reports),
        duplicates=sum(item.duplicates for item in source_reports),
        rows_out=len(kept),
        model_id=model_id,
        sources=tuple(source_reports),
        findings=tally.findings(),
        lengths=report.lengths([row.tokens for row in kept], encoding.max_length, sum(row.over_answer for row in kept)),
        splits=written,
        samples=tuple(json.loads(row.line) for row in samples),
    )


def _measured(
    drafts: list[Draft], encoding: Encoding, settings: PrepareSettings, tally: Tally
) -> tuple[list[_Kept], list[tuple[Record, str, str]]]:
    refused = [(draft.record, *draft.problem) for draft in drafts if draft.problem]
    readable = [draft for draft in drafts if not draft.problem]
    kept = []
    for draft, count in zip(readable, encoding.count(draft.line for draft in readable), strict=True):
        if reason := _refusal(count, encoding.max_length, settings):
            refused.append((draft.record, *reason))
            continue
        for finding in draft.findings:
            tally.add(finding.kind, draft.record.source, draft.record.row, finding.detail)
        if count.cut_tokens:
            lost = f"{count.tokens} tokens, {count.cut_trained} of {count.trained} answer tokens are lost"
            tally.add("cut", draft.record.source, draft.record.row, lost)
        kept.append(_keep(draft, count))
    refused.sort(key=lambda item: item[0].row)
    return kept, refused


def _refusal(count: Count, max_length: int, settings: PrepareSettings) -> tuple[str, str] | None:
    if count.error:
        return "template_refused", count.error
    if count.cut_tokens and settings.long_rows == "drop":
        return "over_length", f"{count.tokens} tokens, max_length is {max_length}"
    if count.trained - count.cut_trained <= 0:
        return "nothing_trained", f"none of {count.trained} answer tokens is within {max_length} tokens"
    return None


def _keep(draft: Draft, count: Count) -> _Kept:
    assert draft.row is not None
    line = draft.line
    prompt, answer = conversion.prompt_and_answer(draft.row)
    loose = _NOT_WORD.sub(" ", f"{prompt}\n{answer}".lower()).strip()
    return _Kept(
        draft.record,
        line,
        _digest(line),
        _digest(loose.encode()),
        _digest(_NOT_WORD.sub(" ", prompt.lower()).strip().encode()),
        count.tokens - count.cut_tokens,
        count.trained - count.cut_trained,
        count.cut_trained,
    )


def _without_duplicates(
    rows: list[_Kept], first: dict[bytes, _Kept], settings: PrepareSettings, tally: Tally, file: object
) -> list[_Kept]:
    unique = []
    for row in rows:
        twin = first.get(row.key)
        kind = "exact_duplicate"
        if twin is None and settings.near_duplicates == "drop":
            twin, kind = first.get(row.loose), "near_duplicate"
        if twin is None:
            first[row.key] = row
            first.setdefault(row.loose, row)
            unique.append(row)
            continue
        tally.add(kind, row.record.source, row.record.row, f"as {twin.record.source} row {twin.record.row}")
        entry = {"source": row.record.source, "row": row.record.row, "kind": kind}
        entry |= {"of_source": twin.record.source, "of_row": twin.record.row}
        file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")  # type: ignore[attr-defined]
    return unique


def _rejected_line(record: Record, kind: str, reason: str) -> bytes:
    entry: dict[str, object] = {"source": record.source, "row": record.row, "kind": kind, "reason": reason}
    try:
        entry["original"] = record.raw.decode("utf-8")
    except UnicodeDecodeError:
        entry["original_base64"] = base64.b64encode(record.raw).decode()
    return json.dumps(entry).encode() + b"\n"


def _refuse_nothing(kept: list[_Kept], sources: list[SourceReport], tally: Tally) -> None:
    if kept:
        return
    rows = sum(item.rows for item in sources)
    if not rows:
        names = ", ".join(item.name for item in sources)
        raise DataError(f"There are no rows in {names}.", fix="upload a file that has rows")
    shown = []
    for finding in tally.findings()[:3]:
        example = finding.examples[0]
        shown.append(
            f"- {finding.title}: {finding.count} rows, first {example.source} row {example.row}: {example.detail}"
        )
    raise DataError(
        "\n".join([f"None of the {rows} rows can be used:", *shown]),
        fix=tally.findings()[0].fix + ", then upload the files again",
    )


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]
