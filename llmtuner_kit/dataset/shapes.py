"""Which shape rows have: recognised by their keys, or told by the settings. Never guessed in silence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llmtuner_kit.errors import DataError
from llmtuner_kit.settings import PrepareSettings

_COLUMNS = ("instruction", "input", "output")
ANSWERS = ("output", "response", "answer", "completion", "answers", "target")
# Pairs that name themselves: (what the customer or reader writes, what the model shall learn to write).
_QUESTION_COLUMNS = (
    "ticket", "customer_message", "customer", "customer_text", "message", "email", "request", "inquiry", "enquiry",
    "issue", "complaint", "query", "question", "prompt", "user", "source", "text", "article", "document",
)  # fmt: skip
_ANSWER_COLUMNS = (
    "reply", "agent_reply", "agent_response", "support_reply", "response", "answer", "resolution", "agent",
    "completion", "output", "assistant", "target", "summary", "translation",
)  # fmt: skip


# Columns that hold no text to learn from or to ask with.
_NO_TEXT = re.compile(r"(^|_)(id|date|datum|time|status|priority|nr|no|number)$")


@dataclass(frozen=True)
class ColumnMapping:
    """How the keys of a row become instruction, input and output (or messages).

    Attributes:
        shape: instruction, prompt-completion, messages, conversations, chat-export, question-answer, columns or text.
        told: it came from the settings; otherwise the names were recognised.
    """

    shape: str
    instruction: str = ""
    input: str = ""
    output: str = ""
    messages: str = ""
    system: str = ""
    history: str = ""
    told: bool = False

    def describe(self) -> str:
        """One line for the report: which key becomes what."""
        if self.messages:
            return f"{self.shape}: {self.messages} -> messages"
        pairs = [(self.instruction, "instruction"), (self.input, "input"), (self.output, "output")]
        return f"{self.shape}: " + (", ".join(f"{name} -> {part}" for name, part in pairs if name) or "by templates")


def normal(name: str) -> str:
    """A key as it is compared: lower case, words joined by underscores (`Customer Message` -> `customer_message`)."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\W_]+", "_", spaced.lower()).strip("_")


def told(settings: PrepareSettings) -> ColumnMapping | None:
    """The mapping that the settings spell out, or None."""
    if not settings.output_column:
        return None
    return ColumnMapping(
        "columns", settings.instruction_column, settings.input_column, settings.output_column, told=True
    )


def recognise(keys: Sequence[str], shape: str = "auto") -> ColumnMapping | None:
    """The mapping for rows with these keys, or None when they do not name themselves.

    With a shape given, only that shape is looked for.
    """
    return _recognise(tuple(keys), shape)


@lru_cache(maxsize=4096)
def _recognise(keys: tuple[str, ...], shape: str) -> ColumnMapping | None:
    names: dict[str, str] = {}
    for key in keys:
        names.setdefault(normal(key), key)
    for wanted, find in _FINDERS.items():
        if shape in ("auto", wanted) and (found := find(names)) is not None:
            return found
    return None


def _messages(names: Mapping[str, str]) -> ColumnMapping | None:
    key = names.get("messages")
    return ColumnMapping("messages", messages=key, system=names.get("system", "")) if key else None


def _conversations(names: Mapping[str, str]) -> ColumnMapping | None:
    key = names.get("conversations") or names.get("conversation")
    return ColumnMapping("conversations", messages=key, system=names.get("system", "")) if key else None


def _chat_export(names: Mapping[str, str]) -> ColumnMapping | None:
    """What ChatGPT exports: each chat as a tree of messages, and the message it ended with."""
    whole = "mapping" in names and "current_node" in names
    return ColumnMapping("chat-export", messages=names["mapping"]) if whole else None


def _instruction(names: Mapping[str, str]) -> ColumnMapping | None:
    answer = _first(names, ANSWERS)
    if "instruction" not in names or not answer:
        return None
    context = _first(names, ("input", "context", "query"))
    return ColumnMapping(
        "instruction",
        names["instruction"],
        context,
        answer,
        system=names.get("system", ""),
        history=names.get("history", ""),
    )


def _prompt(names: Mapping[str, str]) -> ColumnMapping | None:
    answer = _first(names, ("completion", "response", "output", "answer", "chosen"))
    return ColumnMapping("prompt-completion", names["prompt"], "", answer) if "prompt" in names and answer else None


def _question(names: Mapping[str, str]) -> ColumnMapping | None:
    question = _first(names, ("question", "q"))
    answer = _first(names, ("answer", "a", "answers", "response"))
    if not question or not answer:
        return None
    return ColumnMapping("question-answer", question, names.get("context", ""), answer)


def _columns(names: Mapping[str, str]) -> ColumnMapping | None:
    left = [names[name] for name in _QUESTION_COLUMNS if name in names]
    right = [names[name] for name in _ANSWER_COLUMNS if name in names]
    # One candidate on each side, or the pair names itself no better than two others would.
    return ColumnMapping("columns", left[0], "", right[0]) if len(left) == 1 and len(right) == 1 else None


def _text(names: Mapping[str, str]) -> ColumnMapping | None:
    key = _first(names, ("text", "content", "body", "passage"))
    others = set(names) - {"text", "content", "body", "passage", "id", "title", "source", "url", "date", "meta"}
    return ColumnMapping("text", input=key) if key and not others else None


_FINDERS = {
    "messages": _messages,
    "conversations": _conversations,
    "chat-export": _chat_export,
    "instruction": _instruction,
    "prompt-completion": _prompt,
    "question-answer": _question,
    "columns": _columns,
    "text": _text,
}


def _first(names: Mapping[str, str], wanted: Iterable[str]) -> str:
    return next((names[name] for name in wanted if name in names), "")


def propose(rows: Sequence[Mapping[str, Any]]) -> ColumnMapping | None:
    """The likeliest mapping for rows whose keys do not name themselves: to be shown and confirmed, never used as it is.

    By names that say it, else by the text: question and answer are the longest texts of a row, the question comes first.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row if normal(key)))
    texts = [key for key in keys if not _NO_TEXT.search(normal(key))]
    texts.sort(key=lambda key: -sum(len(value) for row in rows if isinstance(value := row.get(key), str)))
    longest = sorted(texts[:2], key=keys.index)
    answer = _named(texts, _ANSWER_COLUMNS) or (longest[-1] if longest else "")
    others = [key for key in (*longest, *texts) if key != answer]
    question = _named(texts, _QUESTION_COLUMNS, answer) or (others[0] if others else "")
    return ColumnMapping("columns", question, "", answer) if answer and question else None


def _named(keys: Sequence[str], wanted: Sequence[str], taken: str = "") -> str:
    """The first of the keys whose name is, or has in it, one of the wanted words."""
    return next(
        (key for key in keys if key != taken and not set(wanted).isdisjoint((normal(key), *normal(key).split("_")))), ""
    )


class NoColumnError(DataError):
    """A column that the settings name is not in a file."""


def unknown(source: str, rows: Sequence[Mapping[str, Any]], settings: PrepareSettings) -> DataError:
    """The error for rows whose keys do not name themselves: the keys there are, and a mapping to confirm."""
    known = "\n".join(
        (
            "instruction, input, output",
            "prompt, completion",
            "messages (role, content)",
            "conversations (from, value)",
            "mapping, current_node (a chat export)",
            "question, answer",
            "ticket, reply",
            "text",
        )
    ).replace("\n", "; ")
    proposal = propose(rows)
    columns = ", ".join(map(repr, filter(None, rows[0]))) or "none"
    asked = "" if settings.shape == "auto" else f" as shape {settings.shape!r}"
    fix = "set output_column, and instruction_column or input_column, to the columns to use"
    if proposal:
        fix = f"if that is right, set instruction_column={proposal.instruction!r} and output_column={proposal.output!r}"
    return DataError(
        f"{source}: the columns do not say what is the question and what the answer{asked}. Columns: {columns}.",
        valid=known + ", or a mapping in the settings",
        fix=fix,
    )


def check_columns(source: str, keys: Sequence[str], mapping: ColumnMapping) -> None:
    """Raises NoColumnError where a source with these keys has none of the columns that the settings name for a part."""
    for part in _COLUMNS:
        name = getattr(mapping, part)
        if name and not columns_of(name, keys):
            raise NoColumnError(
                f"{source} has no column {name!r} (set as {part}_column).",
                valid=", ".join(map(repr, keys)) or "the file has no columns",
                fix=f"set {part}_column to one of these, where files differ to several with commas between, leave it "
                "empty, or put the file's name into leave_out",
            )


def columns_of(name: str, keys: Sequence[str]) -> list[str]:
    """Which of the keys a setting means: the one of that name, however spelled, or those between its commas."""
    spelled = {normal(key): key for key in keys}
    spelled |= {key: key for key in keys}
    if found := spelled.get(name) or spelled.get(normal(name)):
        return [found]
    parts = [part.strip() for part in name.split(",")]
    return [key for part in parts if part and (key := spelled.get(part) or spelled.get(normal(part)))]


@lru_cache(maxsize=4096)
def of_row(mapping: ColumnMapping, keys: tuple[str, ...]) -> ColumnMapping:
    """A mapping that was told, as a row with these keys has it: its own spelling, of several columns the first there."""
    first = {part: columns_of(getattr(mapping, part), keys)[:1] for part in _COLUMNS}
    question, context, answer = ("".join(first[part]) or getattr(mapping, part) for part in _COLUMNS)
    return dataclasses.replace(mapping, instruction=question, input=context, output=answer)


def several(told: str, *names: str) -> str:
    """What a setting tells and further columns as one setting, each once: `Frage` and `Anfrage` -> `Frage, Anfrage`."""
    found = {normal(name): name for name in map(str.strip, told.split(",")) if name}
    for name in names:
        found.setdefault(normal(name), name)
    return ", ".join(found.values())
