"""What can be wrong with a row that reads well: looked for in every row, told with the place where it was found."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from llmtuner_kit.dataset import conversion, privacy
from llmtuner_kit.dataset.conversion import Row


@dataclass(frozen=True, slots=True)
class Finding:
    """A defect of one row: kind, and the stretch of text that shows it (personal data is not repeated)."""

    kind: str
    detail: str


_PLACEHOLDERS = frozenset(
    {
        "todo", "tbd", "n/a", "na", "none", "null", "nil", "nan", "undefined", "unknown", "placeholder", "test", "asdf",
        "xxx", "lorem", "...", "…", "-", "--", "?", "???", "fixme", "wip", "no answer", "not available", "to be done",
        "to do", "lorem ipsum", "insert answer here", "coming soon",
    }
)  # fmt: skip
# UTF-8 read as Windows-1252 (Ã©, â€™) or a character that was already lost.
_MOJIBAKE = re.compile(r"\ufffd|Ã[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€[™œ\u009d˜“”¦\x80-\x9f]|Â[\xa0-\xbf]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")
_MARKUP = re.compile(
    r"<(?:/?(?:p|div|span|br|table|tr|td|li|ul|ol|font|a|img|h[1-6]|strong|em)\b[^<>]{0,300})>|&(?:nbsp|amp|lt|gt|quot);",
    re.I,
)
_CODE = re.compile(r"```|`[^`\n]*<")


def examine(row: Row, control_tokens: re.Pattern[str] | None = None) -> list[Finding]:
    """All defects that leave the row usable. `control_tokens` matches the model's own special tokens."""
    prompt, answer = conversion.prompt_and_answer(row)
    text = f"{prompt}\n{answer}"
    findings = [*_of_answer(prompt, answer), *_of_text(text, control_tokens)]
    if "messages" in row:
        findings += _of_turns(row)
    return findings


def personal(row: Row, *, masked: bool) -> tuple[Row, list[Finding]]:
    """Personal data and secrets of a row; with `masked` the row comes back with placeholders in their place."""
    counts: dict[str, int] = {}

    def look(text: str) -> str:
        hits = privacy.find(text)
        for hit in hits:
            counts[hit.kind] = counts.get(hit.kind, 0) + 1
        return privacy.mask(text, hits) if masked and hits else text

    if "messages" in row:
        changed: Row = {"messages": [m | {"content": look(m["content"])} for m in row["messages"]]}
    else:
        changed = {key: look(value) for key, value in row.items()}
    # What was found is never repeated in a report.
    findings = [Finding(kind, f"{count} found" + (", masked" if masked else "")) for kind, count in counts.items()]
    return (changed if masked else row), findings


def _of_answer(prompt: str, answer: str) -> list[Finding]:
    findings = []
    short = answer.strip().lower()
    if short in _PLACEHOLDERS or short.strip("[]<>().! ") in _PLACEHOLDERS:
        findings.append(Finding("placeholder", short))
    elif len(short) < 40 and not any(c.isspace() for c in short) and short.isascii():
        findings.append(Finding("one_word_answer", short))
    if len(short) > 3 and short == prompt.strip().lower():
        findings.append(Finding("echo", answer[:80]))
    if (repeated := _repetition(answer)) is not None:
        findings.append(Finding("repetition", repeated))
    return findings


def _of_text(text: str, control_tokens: re.Pattern[str] | None) -> list[Finding]:
    findings = []
    if not text.isascii() and (match := _MOJIBAKE.search(text)):
        findings.append(Finding("broken_characters", _around(text, match)))
    if match := _CONTROL.search(text):
        findings.append(Finding("control_characters", f"U+{ord(match.group()):04X} in {_around(text, match)!r}"))
    if ("<" in text or "&" in text) and (match := _MARKUP.search(text)) and not _CODE.search(text):
        findings.append(Finding("markup", _around(text, match)))
    if control_tokens is not None and (match := control_tokens.search(text)):
        findings.append(Finding("template_tokens", match.group()))
    return findings


def _of_turns(row: Row) -> list[Finding]:
    roles = [message["role"] for message in row["messages"] if message["role"] != "system"]
    findings = []
    twice = next((n for n, (one, two) in enumerate(pairwise(roles), 1) if one == two), 0)
    if twice:
        findings.append(Finding("turns", f"messages {twice} and {twice + 1} are both from {roles[twice]}"))
    if roles[-1] != "assistant":
        findings.append(Finding("trailing_question", f"the last message is from {roles[-1]}"))
    return findings


def _repetition(text: str) -> str | None:
    """A line or phrase that makes up most of a longer text, or None."""
    if len(text) < 120:
        return None
    words = text.lower().split()
    # There are at least as many different triples as different words, less two.
    if len(words) < 24 or (len(set(words)) - 2) * 3 > len(words):
        return None
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    if len(triples) * 3 > triples.total():
        return None
    return " ".join(triples.most_common(1)[0][0])


def _around(text: str, match: re.Match[str]) -> str:
    return text[max(0, match.start() - 20) : match.end() + 20].replace("\n", " ")
