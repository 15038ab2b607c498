"""Files on this machine -> train.jsonl, validation.jsonl, test.jsonl, rejected.jsonl, duplicates.jsonl and a report.

Originals of rejected records that are too large for a line are files of their own in the folder `rejected`.

Chunks go through worker processes; what spans chunks (duplicates, splits) is decided on columns of numbers. Memory
is bounded by the chunk size and by about a hundred bytes a row. An interrupted build goes on in the same work folder.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from llmtuner_kit.dataset import beginnings, duplicates, expand, pool, rejected, report, splits
from llmtuner_kit.dataset.chunks import Plan, Source
from llmtuner_kit.dataset.duplicates import EXACT, Duplicates
from llmtuner_kit.dataset.report import Repeats, Report, SourceReport, SplitReport, Tally
from llmtuner_kit.dataset.store import Store
from llmtuner_kit.dataset.tokens import Encoding
from llmtuner_kit.dataset.worker import Context, Summary, finding_line
from llmtuner_kit.errors import DataError
from llmtuner_kit.settings import PrepareSettings

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

SAMPLES = 5


def build(
    sources: Sequence[Source],
    settings: PrepareSettings,
    encoding: Encoding,
    model_id: str,
    folder: Path,
    work: Path,
    progress: Progress,
    workers: int = 0,
) -> Report:
    """Prepare files; writes the dataset's files into `folder` and returns the report.

    Raises DataError when the files do not say what they are, when nothing can be learned from them, or when
    long_rows is stop and a row is too long.
    """
    plain = _ordered(expand.expand(list(sources), work / "expanded"), settings)
    plan = Plan(plain, settings)
    total = sum(source.size for source in plain)
    context = Context(settings, encoding, work)
    _read_pages(plan, context, progress, workers)
    found: dict[int, Summary] = {}
    tally, merged = Tally(), 0
    for number, summary in pool.run(plan, context, workers):
        found[number] = summary
        progress("reading and checking rows", min(plan.bytes_planned, total), total)
        # In the order of the chunks, whichever is done first; what is merged need not be kept.
        while merged in found:
            tally.merge(found[merged].tally)
            found[merged].tally, merged = Tally(), merged + 1
    summaries = [found[number] for number in range(len(found))]
    _refuse(summaries, tally, settings)
    store = Store(work, summaries)
    drop_near = settings.near_duplicates == "drop"
    twins = duplicates.find(store, drop_near=drop_near, progress=lambda n, of: progress("comparing rows", n, of))
    store.forget("loose")
    _tell_duplicates(store, twins, tally)
    kept = twins.kind == 0
    groups = _groups(store, twins)
    where = _split(store, groups, kept, settings, summaries)
    with (folder / "findings.jsonl").open("wb") as file:
        file.writelines(store.written("findings"))
        _tell_conflicts(store, kept, tally, file)
        leaks = _tell_leaks(store, kept, where, tally, file)
    progress("writing splits", 0, store.rows)
    samples = _write(store, twins, where, folder, progress)
    rejected.bring((name for summary in summaries for name in summary.originals), work, folder)
    report = _report(store, twins, where, folder, samples, plan, summaries, tally, encoding, model_id)
    return dataclasses.replace(report, leaks=leaks, repeats=_repeats(store, twins, where, settings))


def _read_pages(plan: Plan, context: Context, progress: Progress, workers: int) -> None:
    """Read long PDFs by all workers, as one of them would be at a single document for minutes."""
    ranges = list(plan.page_ranges(context.folder))
    done, total = 0, sum(part.size for part in ranges)
    for _, size in pool.run(ranges, context, workers):
        done += size
        progress("reading pages", done, total)


def _ordered(sources: list[Source], settings: PrepareSettings) -> list[Source]:
    """Held-out files first where files say their split: of two equal rows the first is kept, and a test stays whole."""
    if settings.splits_from == "content":
        return sources
    names = [splits.of_name(source.name) for source in sources]
    if not {"validation", "test"} & set(names):
        raise DataError(
            "splits_from is file-names, and no file or folder is named after a split that is held out.",
            valid="a validation or test file or folder beside the training data, such as test.jsonl",
            fix="rename the files, or set splits_from to content",
        )
    rank = {"test": 0, "validation": 1}
    return [source for _, source in sorted(zip(names, sources, strict=True), key=lambda item: rank.get(item[0], 2))]


def _refuse(summaries: Sequence[Summary], tally: Tally, settings: PrepareSettings) -> None:
    rows, kept = sum(item.rows for item in summaries), sum(item.kept for item in summaries)
    if not rows:
        raise DataError("There are no rows in the uploaded files.", fix="upload a file that has rows")
    findings = tally.findings()
    if not kept:
        shown = [
            f"- {item.title}: {item.count} rows, first {item.examples[0].source} row {item.examples[0].row}: "
            f"{item.examples[0].detail}"
            for item in findings[:3]
        ]
        raise DataError(
            "\n".join([f"None of the {rows} rows can be used:", *shown]),
            fix=f"{findings[0].fix}; then {'run this' if findings[0].by == 'setting' else 'upload the files'} again",
        )
    over = sum(item.over_rows for item in summaries)
    if over and settings.long_rows == "stop":
        kinds = [item for item in findings if item.kind in ("cut", "nothing_trained")]
        example = kinds[0].examples[0]
        lost = sum(item.over_answer_tokens for item in summaries)
        raise DataError(
            f"{over} of {rows} rows are longer than max_length; cutting them would lose {lost} answer tokens. "
            f"First: {example.source} row {example.row}: {example.detail}",
            valid="long_rows: split, cut or drop; or a larger max_length",
            fix="set long_rows to split to keep every answer",
        )


def _tell_duplicates(store: Store, twins: Duplicates, tally: Tally) -> None:
    for kind, name in ((EXACT, "exact_duplicate"), (duplicates.NEAR, "near_duplicate")):
        rows = np.flatnonzero(twins.kind == kind)
        for row in rows[: report.ROWS]:
            source, number = store.place(int(row))
            first_source, first_number = store.place(int(twins.twin[row]))
            tally.add(name, source, number, f"as {first_source} row {first_number}")
        if len(rows):
            tally.counts[name] = len(rows)


def _tell_conflicts(store: Store, kept: NDArray[np.bool_], tally: Tally, file: IO[bytes]) -> None:
    """The same question with different answers."""
    rows = np.flatnonzero(kept)
    prompts = store.column("prompt")[rows]
    _, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    times = counts[inverse]
    for row, count in zip(rows[times > 1], times[times > 1], strict=True):
        _tell(store, int(row), "conflicting_answers", f"asked {count} times", tally, file)


def _tell_leaks(store: Store, kept: NDArray[np.bool_], where: NDArray[np.uint8], tally: Tally, file: IO[bytes]) -> int:
    """Training rows whose question is held out too; returns how many held-out rows they give away."""
    prompts, train = store.column("prompt"), kept & (where == 0)
    held = prompts[kept & (where != 0)]
    for row in np.flatnonzero(train)[np.isin(prompts[train], held)]:
        _tell(store, int(row), "leaked_question", "validation or test asks the same", tally, file)
    return int(np.isin(held, prompts[train]).sum())


def _tell(store: Store, row: int, kind: str, detail: str, tally: Tally, file: IO[bytes]) -> None:
    source, number = store.place(row)
    tally.add(kind, source, number, detail)
    file.write(finding_line(source, number, kind, detail))


def _repeats(store: Store, twins: Duplicates, where: NDArray[np.uint8], settings: PrepareSettings) -> Repeats:
    sources, counts = store.sources(), {}
    given = settings.splits_from == "file-names"
    for name, kind in (("exact", EXACT), ("near", duplicates.NEAR)):
        rows = np.flatnonzero(twins.kind == kind)
        first = twins.twin[rows]
        across = sources[rows] != sources[first]
        counts[f"{name}_in_file"] = int((~across).sum())
        counts[f"{name}_across_files"] = int(across.sum())
        counts[f"{name}_across_splits"] = int((where[rows] != where[first]).sum()) if given else 0
    return Repeats(**counts)


def _groups(store: Store, twins: Duplicates) -> NDArray[np.uint64]:
    """One number a row, equal for rows that must stay together: same prompt or one cluster of near duplicates.

    It is the smallest prompt hash among them, so that it depends on content only.
    """
    prompts = store.column("prompt")
    joined = np.flatnonzero(twins.cluster != np.arange(store.rows))
    members = np.union1d(joined, twins.cluster[joined])
    if not len(members):
        return prompts
    # Equal prompts are equal numbers already; only rows of clusters can give a number another one to follow.
    values, place = np.unique(prompts[members], return_inverse=True)
    clusters, group = np.unique(twins.cluster[members], return_inverse=True)
    smallest = values.copy()
    while True:
        before = smallest.copy()
        of_cluster = np.full(len(clusters), np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(of_cluster, group, smallest[place])
        np.minimum.at(smallest, place, of_cluster[group])
        if np.array_equal(before, smallest):
            break
    found = np.minimum(np.searchsorted(values, prompts), len(values) - 1)
    return np.where(values[found] == prompts, smallest[found], prompts)


def _split(
    store: Store,
    groups: NDArray[np.uint64],
    kept: NDArray[np.bool_],
    settings: PrepareSettings,
    summaries: Sequence[Summary],
) -> NDArray[np.uint8]:
    shares = {"validation": settings.validation_share, "test": settings.test_share}
    strata = None
    if settings.stratify:
        names = np.unique([summary.name for summary in summaries], return_inverse=True)[1]
        strata = names[store.chunk_numbers()][kept]
    if settings.splits_from == "file-names":
        named = [splits.SPLITS.index(splits.of_name(summary.name) or "train") for summary in summaries]
        return np.array(named, np.uint8)[store.chunk_numbers()]
    where = np.zeros(store.rows, np.uint8)
    where[kept] = splits.assign(groups[kept], shares, strata)
    return where


def _write(
    store: Store, twins: Duplicates, where: NDArray[np.uint8], folder: Path, progress: Progress
) -> list[dict[str, Any]]:
    """Write all files; returns a few rows of the training split: one of each source, then a second one, and so on."""
    samples: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as files:
        split_files = [files.enter_context((folder / f"{name}.jsonl").open("wb")) for name in splits.SPLITS]
        repeated = files.enter_context((folder / "duplicates.jsonl").open("wb"))
        for first, data, offsets, entries in store.chunks():
            count = len(entries)
            kind, split = twins.kind[first : first + count], where[first : first + count]
            for number, name in enumerate(splits.SPLITS):
                wanted = np.flatnonzero((kind == 0) & (split == number))
                lines = [data[offsets[row] : offsets[row + 1]] for row in wanted]
                split_files[number].write(b"".join(lines))
                if name == "train" and lines and len(samples) < SAMPLES:
                    shown = samples.setdefault(store.place(first)[0], [])
                    shown += [json.loads(line.split(b"\n")[0]) for line in lines[: SAMPLES - len(shown)]]
            for row in np.flatnonzero(kind):
                repeated.write(_duplicate_line(store, twins, first + int(row)))
            progress("writing splits", first + count, store.rows)
        refused = files.enter_context((folder / "rejected.jsonl").open("wb"))
        refused.writelines(store.written("rejected"))
    turns = itertools.zip_longest(*samples.values())
    return [row for turn in turns for row in turn if row is not None][:SAMPLES]


def _duplicate_line(store: Store, twins: Duplicates, row: int) -> bytes:
    source, number = store.place(row)
    of_source, of_row = store.place(int(twins.twin[row]))
    kind = "exact_duplicate" if twins.kind[row] == EXACT else "near_duplicate"
    entry = {"source": source, "row": number, "kind": kind, "of_source": of_source, "of_row": of_row}
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def _report(
    store: Store,
    twins: Duplicates,
    where: NDArray[np.uint8],
    folder: Path,
    samples: list[dict[str, Any]],
    plan: Plan,
    summaries: Sequence[Summary],
    tally: Tally,
    encoding: Encoding,
    model_id: str,
) -> Report:
    kept = twins.kind == 0
    lines, used, trained = (store.column(name).astype(np.int64) for name in ("lines", "used", "trained"))
    written = {}
    for number, name in enumerate(splits.SPLITS):
        rows = kept & (where == number)
        shared = beginnings.shared_tokens(folder / f"{name}.jsonl", encoding) if name == "train" else 0
        written[name] = SplitReport(int(lines[rows].sum()), int(used[rows].sum()), int(trained[rows].sum()), shared)
    languages: Counter[str] = Counter()
    for summary in summaries:
        languages.update(summary.languages)
    return Report(
        rows_in=sum(item.rows for item in summaries),
        accepted=int(kept.sum()),
        rejected=sum(item.rejected for item in summaries),
        duplicates=int((~kept).sum()),
        rows_out=int(lines[kept].sum()),
        model_id=model_id,
        sources=_source_reports(store, twins, plan, summaries),
        findings=tally.findings(),
        lengths=report.lengths(
            store.column("tokens")[kept].astype(np.int64),
            encoding.max_length,
            sum(item.over_rows for item in summaries),
            sum(item.over_answer_tokens for item in summaries),
        ),
        splits=written,
        languages={code: round(count / languages.total(), 4) for code, count in languages.most_common()},
        samples=tuple(samples),
        originals={name: size for summary in summaries for name, size in summary.originals.items()},
    )


def _source_reports(
    store: Store, twins: Duplicates, plan: Plan, summaries: Sequence[Summary]
) -> tuple[SourceReport, ...]:
    repeated = np.bincount(store.chunk_numbers()[twins.kind != 0], minlength=len(summaries))
    reports = []
    of_source: dict[int, list[int]] = {}
    for number, summary in enumerate(summaries):
        of_source.setdefault(summary.source, []).append(number)
    for index, source in enumerate(plan.sources):
        mine = of_source.get(index, [])
        encoding = plan.encodings.get(index)
        again = int(repeated[mine].sum())
        reports.append(
            SourceReport(
                name=source.name,
                kind=source.kind,
                bytes=source.size,
                encoding=encoding.name if encoding else "",
                encoding_certain=encoding.certain if encoding else True,
                mapping="; ".join(dict.fromkeys(text for n in mine for text in summaries[n].mappings)),
                rows=sum(summaries[n].rows for n in mine),
                accepted=sum(summaries[n].kept for n in mine) - again,
                rejected=sum(summaries[n].rejected for n in mine),
                duplicates=again,
            )
        )
    return tuple(reports)
