"""The data preparation as cards: the first rows beside the form, and the report of a dataset version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtuner_kit import costs
from llmtuner_kit.dataset import Prepared, Report, preview, quotes
from llmtuner_kit.dataset.preview import PreviewedFile
from llmtuner_kit.dataset.quotes import JobQuote
from llmtuner_kit.dataset.report import FindingCount
from llmtuner_kit.evaluation import prompt_of
from llmtuner_kit.faces import standing
from llmtuner_kit.faces.cards import Card
from llmtuner_kit.faces.charts import Bars, Chart
from llmtuner_kit.faces.parts import Masked, Table
from llmtuner_kit.faces.texts import duration, shortened, size
from llmtuner_kit.runs import Run
from llmtuner_kit.settings import PrepareSettings

_BY = {"setting": "a setting here", "file": "the file", "you": "your decision", "nobody": "nothing to do"}
_PREVIEW = 200


def first_rows() -> standing.OnRun:
    """The first rows of the files as the settings in the form of 02_prepare would write them."""
    fetched: list[preview.Preview] = []  # of the workspace in use: the beginnings of its files

    def look(run: Run, settings: PrepareSettings) -> Card:
        if not fetched or fetched[0].workspace is not run.workspace:
            fetched[:] = [preview.Preview(run.workspace)]
        return _first_rows(fetched[0].look(settings, run))

    return standing.OnRun(look)


def _first_rows(seen: preview.Previewed) -> Card:
    parts: list[Any] = [part for file in seen.files for part in _previewed(file, seen.offer)]
    if seen.more:
        parts.append(f"and {seen.more:,} more {'file' if seen.more == 1 else 'files'}")
    if seen.left_out:
        parts.append(_left_out(seen.left_out))
    facts = _quote(seen.quote) if seen.quote else []
    title = f"First rows of {seen.dataset} as they would be written"
    return Card(title, facts, parts, blocked=_blocked(seen), offer=seen.offer)


def _blocked(seen: preview.Previewed) -> str:
    """Why the preparation would stop, as far as the first rows tell."""
    if wrong := [file.name for file in seen.files if file.problem]:
        return f"{', '.join(wrong)}: needs a change.\nNext: set what is said beside the form, or name it in leave_out"
    return standing.refusal(seen.quote, quotes.require_budget) if seen.quote else ""


def _quote(made: JobQuote) -> list[tuple[str, str]]:
    """What the processing job would take."""
    budget = "" if made.budget_usd or not made.charged else "; set budget_usd, without one no job is started"
    return [
        ("processing job on", f"{made.instance_type}, {costs.priced(made.price)}"),
        ("work", f"{made.files:,} {'file' if made.files == 1 else 'files'}, {size(made.bytes)}"),
        ("time on AWS", f"{duration(made.seconds[0])} to {duration(made.seconds[1])}, modelled"),
        ("money on AWS", str(made.money)),
        ("stopped after", duration(made.max_runtime_seconds) + costs.at_most(made.most)),
        ("is it charged", f"yes, this is AWS{budget}" if made.charged else "no, this runs on your machine"),
    ]


def _previewed(file: PreviewedFile, offer: Mapping[str, str]) -> list[Table | str]:
    title = f"{file.name} ({file.kind}, {size(file.bytes)})"
    if file.problem:
        told = [("needs a change", file.problem), *(("sheets", line) for line in _sheets(file))]
        if not all(name in file.problem for name in file.columns):
            told.append(("columns", ", ".join(filter(None, file.columns))))
        if file.proposed and offer:
            proposal = ", ".join(f"{name} = {value!r}" for name, value in offer.items())
            told.append(("proposal", f"{proposal}; used only when you set it"))
        return [Table(title, ("what", "found"), told)]
    columns = f"Columns: {', '.join(filter(None, file.columns))}" if file.columns else ""
    lines = [f"{title}: {file.mapping}" if file.mapping else title, columns, *_sheets(file)]
    rows = [
        (_place(file, row), row.number, *(_parts(row.row) if row.row else (f"rejected: {row.reason}", "", "")))
        for row in file.rows
    ]
    head = (("sheet" if file.sheets else "file"), "row", "instruction", "input", "answer")
    return [Table("\n".join(filter(None, lines)), head, rows)]


def _sheets(file: PreviewedFile) -> list[str]:
    """Which sheets a spreadsheet has; all of them are prepared."""
    if len(file.sheets) < 2:
        return []
    told = f"All {len(file.sheets)} sheets are read: {', '.join(file.sheets.values())}."
    if file.problem or len(shown := {row.source for row in file.rows}) >= preview.FILES:
        return [told]
    empty = [title for source, title in file.sheets.items() if source not in shown]
    return [told + (f" No rows below a header: {', '.join(empty)}." if empty else "")]


def _place(file: PreviewedFile, row: preview.PreviewedRow) -> str:
    """The sheet of a row, or its file inside an archive."""
    if file.sheets:
        return file.sheets.get(row.source, "") if len(file.sheets) > 1 else ""
    return row.source.removeprefix(f"{file.name}/") if row.source != file.name else ""


def _parts(row: Mapping[str, Any]) -> tuple[str, str, str]:
    if "messages" in row:
        before, answer = prompt_of(row)
        asked = "\n".join(f"{message['role']}: {message['content']}" for message in before)
        return shortened(asked, _PREVIEW), "", shortened(answer, _PREVIEW)
    asked, context, answer = (shortened(row[part], _PREVIEW) for part in ("instruction", "input", "output"))
    return asked, context, answer


def prepared(made: Prepared) -> Card:
    """The report of a dataset version."""
    report = made.report
    title = "Prepared before with the same files and settings" if made.reused else "Prepared"
    facts = [
        ("dataset", f"{made.dataset}, version {made.version}"),
        ("where", made.uri),
        ("rows that came in", report.rows_in),
        ("accepted + rejected + duplicates", f"{report.accepted:,} + {report.rejected:,} + {report.duplicates:,}"),
        *([("large originals of rejected rows", _originals(report))] if report.originals else []),
        ("held-out rows whose question is trained on", report.leaks),
        ("languages", ", ".join(f"{_language(code)} {share:.0%}" for code, share in [*report.languages.items()][:6])),
    ]
    parts = [
        _splits(report),
        *_missing(report),
        _sources(report),
        *([_left_out(report.left_out)] if report.left_out else []),
        _findings(report),
        *([_picture(report)] if report.findings else []),
        *([_repeats(report)] if report.duplicates else []),
        *_lengths(report),
        *([_histogram(report)] if report.lengths.histogram else []),
        Table("Rows as written", ("question", "answer"), [_row(row) for row in report.samples]),
        *_masks(made),
    ]
    return Card(title, facts, parts, _following(report))


def _following(report: Report) -> str:
    """Where to go on: not to a training that refuses rows which have mostly lost the ends of their answers."""
    cut = report.finding("cut")
    if cut and cut.count * 2 > report.rows_out:
        return (
            f"set long_rows to split or drop, or raise max_length, and run this again; {cut.count:,} of "
            f"{report.rows_out:,} rows have lost the end of their answer, and 03_train refuses more than half"
        )
    return "03_train"


def _language(code: str) -> str:
    return "not recognised" if code == "und" else code


def _originals(report: Report) -> str:
    count, size = len(report.originals), sum(report.originals.values())
    return f"{count} file{'s' if count > 1 else ''} of {size / 2**20:.1f} MiB under rejected/, named in rejected.jsonl"


def _splits(report: Report) -> Table:
    rows = [(name, part.rows, part.tokens, part.trained_tokens) for name, part in report.splits.items()]
    return Table("Splits", ("split", "rows", "tokens", "tokens trained on"), rows)


def _missing(report: Report) -> list[str]:
    """What cannot be done without rows that are not trained on."""
    lost = {
        "validation": "04_monitor cannot show whether rows are learnt by heart",
        "test": "07_invoke has no questions of the data to compare base and tuned with",
    }
    found = [
        f"no {name} rows, so {lack}"
        for name, lack in lost.items()
        if name in report.splits and not report.splits[name].rows
    ]
    return [f"Mind: {'; '.join(found)}. Give more rows, or larger shares."] if found else []


def _sources(report: Report) -> Table:
    head = ("file", "kind", "encoding", "mapping", "rows", "accepted", "rejected", "duplicates")
    rows = [
        (
            item.name, item.kind, item.encoding + ("" if item.encoding_certain else " (guessed)"), item.mapping,
            item.rows, item.accepted, item.rejected, item.duplicates,
        )
        for item in report.sources[:20]
    ]  # fmt: skip
    more = f" (the first 20 of {len(report.sources)})" if len(report.sources) > 20 else ""
    return Table(f"How the files were read{more}", head, rows)


def _left_out(left_out: tuple[tuple[str, str], ...]) -> Table:
    return Table("Left out", ("file", "why"), left_out[:20])


def _findings(report: Report) -> Table | str:
    if not report.findings:
        return "No defects were found in any row."
    head = ("what", "rows", "effect", "mended by", "how", "where", "for example")
    rows = [
        (item.title, item.count, item.effect, _BY[item.by], item.fix, _where(item), _example(item))
        for item in report.findings
    ]
    return Table("Findings (all rows by number: findings.jsonl, rejected.jsonl, duplicates.jsonl)", head, rows)


def _where(item: FindingCount) -> str:
    """The first rows by number: `tickets.csv 3, 7, 9 …`."""
    shown, left = [], 6
    for source, rows in item.rows.items():
        if left > 0:
            shown.append(f"{source} {', '.join(map(str, rows[:left]))}")
            left -= len(rows)
    return "; ".join(shown) + (" …" if item.count > 6 else "")


def _example(item: FindingCount) -> str:
    return shortened(item.examples[0].detail, 120) if item.examples else ""


def _picture(report: Report) -> Bars:
    most = sorted(report.findings, key=lambda item: -item.count)[:15]
    counts = {f"{item.title} ({item.effect})": item.count for item in most}
    return Bars("Findings, rows", counts, "; ".join(f"{name}: {count}" for name, count in counts.items()))


def _repeats(report: Report) -> Table:
    seen = report.repeats
    rows = [
        ("exact", seen.exact_in_file, seen.exact_across_files, seen.exact_across_splits),
        ("near", seen.near_in_file, seen.near_across_files, seen.near_across_splits),
    ]
    return Table("Duplicates", ("kind", "within a file", "across files", "across given splits"), rows)


def _lengths(report: Report) -> list[str]:
    lengths = report.lengths
    sentences = [
        f"Row lengths in tokens: half of the rows have at most {lengths.median:,}, nine in ten at most {lengths.p90:,}, "
        f"the longest {lengths.longest:,}; the limit is {lengths.max_length:,}."
    ]
    if lengths.over_rows:
        sentences.append(
            f"{lengths.over_rows:,} rows are longer; behind the limit stand {lengths.over_answer_tokens:,} answer "
            "tokens. Choose with long_rows: split, drop, cut or stop."
        )
    return sentences


def _histogram(report: Report) -> Chart:
    bars, limit = report.lengths.histogram, report.lengths.max_length
    most = max(bars, key=lambda item: item.rows)
    return Chart(
        "Row lengths",
        "tokens",
        {"rows": [(item.start, item.rows) for item in bars]},
        f"{len(bars)} bars; most rows have {most.start} tokens or a little more; the limit is {limit}",
        bars=True,
        mark=limit if limit <= bars[-1].end else None,
    )


def _row(row: Mapping[str, Any]) -> tuple[str, str]:
    asked, context, answer = _parts(row)
    return " ".join(part for part in (asked, context) if part), answer


def _masks(made: Prepared) -> list[Masked]:
    cards = []
    for mask in made.masks:
        pieces, trained = [*mask.source, *mask.pieces], [*(False for _ in mask.source), *mask.trained]
        title = (
            f"Row {mask.number} as the model sees it: {sum(trained)} of {len(trained)} tokens (marked) are trained on"
        )
        cards.append(Masked(title, pieces, trained))
    return cards
