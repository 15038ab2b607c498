"""A record's value -> a dataset row: {"instruction", "input", "output"} or {"messages"}."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from typing import Any

from llmtuner_kit.dataset import templates
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.dataset.records import Passage
from llmtuner_kit.dataset.shapes import ColumnMapping
from llmtuner_kit.dataset.templates import Templates

Row = dict[str, Any]
CONTINUE = "Continue the following text:"
OPENING = 100
_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "customer": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "agent": "assistant",
}  # fmt: skip
_AS_IT_IS = Templates()
_NOTHING: Mapping[str, Any] = {}


def convert(value: Any, mapping: ColumnMapping, wording: Templates = _AS_IT_IS) -> Row:
    """One row of a record's value, which must be a dict. Raises RowError with the kind of defect."""
    if not isinstance(value, dict):
        raise RowError("not_an_object", f"the row is {_kind(value)}, not an object with named fields")
    system = templates.fill(wording.system, value, _field) or _field(value, mapping.system)
    if mapping.messages:
        return _conversation(value, mapping, system, replaced=bool(wording.system))
    question, context = _asked(value, mapping, wording)
    if wording.output:
        answer = templates.fill(wording.output, value, _field)
    else:
        answer = _field(value, mapping.output, needed=True)
    if not question.strip() and context.strip():
        question, context = context, ""
    history = value.get(mapping.history) if mapping.history else None
    if system.strip() or history:
        return _with_history(system, history, question, context, answer)
    return checked_pair(question, context, answer)


def _asked(value: Mapping[str, Any], mapping: ColumnMapping, wording: Templates) -> tuple[str, str]:
    """Instruction and input of a row."""
    question, context = _field(value, mapping.instruction), _field(value, mapping.input)
    if wording.instruction and not wording.input:
        # The template asks; what the row had is the material it works on, unless the template has it in itself.
        used = templates.names(wording.instruction)
        material = [(mapping.instruction, question), (mapping.input, context)]
        context = "\n\n".join(text for name, text in material if text.strip() and name not in used)
        if not question.strip() and not context.strip() and not used:
            return "", ""
    if wording.input:
        context = templates.fill(wording.input, value, _field)
    if wording.instruction:
        question = templates.fill(wording.instruction, value, _field)
    return question, context


def checked_pair(question: str, context: str, answer: str) -> Row:
    """An instruction row. Raises RowError when there is nothing to ask or nothing to learn."""
    for text in (question, context, answer):
        _whole(text)
    if not question.strip() and not context.strip():
        raise RowError("empty_prompt", "instruction and input are both empty")
    if not answer.strip():
        raise RowError("empty_answer", "the answer is empty")
    return {"instruction": question.strip(), "input": context.strip(), "output": answer.strip()}


def continuation(passage: str, wording: Templates = _AS_IT_IS, about: Mapping[str, Any] = _NOTHING) -> Row:
    """The plain-text rule: the first 100 characters are given, the rest is to be written.

    `about` is what templates can name: the other fields of the row, or the file of a document.
    """
    text = passage.strip()
    _whole(text)
    rest = text[OPENING:]
    if not rest.strip():
        raise RowError("too_short", f"{len(text)} characters; the first {OPENING} are the input, nothing is left")
    asked = templates.fill(wording.instruction, about, _field) or CONTINUE
    row = {"instruction": asked, "input": text[:OPENING], "output": rest}
    return _told(row, templates.fill(wording.system, about, _field))


def explanation(passage: Passage, wording: Templates = _AS_IT_IS, source: str = "") -> Row:
    """A section of a documentation: its headings ask, its text answers."""
    *path, heading = passage.headings
    where = " > ".join(title.strip() for title in path)
    about = {"heading": heading.strip(), "path": where, "part": str(passage.part), "file": source}
    row = checked_pair(
        templates.fill(wording.instruction, about, _field) or _question(heading, where, passage.part), "", passage.text
    )
    return _told(row, templates.fill(wording.system, about, _field))


def _question(heading: str, where: str, part: int) -> str:
    asks = heading.rstrip().endswith("?")
    question = heading.strip() if asks else f"Explain: {heading.strip(string.whitespace + '.:')}"
    if where:
        question += f" ({where})"
    return f"{question} Part {part}." if part > 1 else question


def _told(row: Row, system: str) -> Row:
    """The row, as a conversation when there is a system message to begin with."""
    return _with_history(system, None, row["instruction"], row["input"], row["output"]) if system.strip() else row


def prompt_and_answer(row: Row) -> tuple[str, str]:
    """What is asked and what is learned, as two texts: for comparing rows and looking for defects."""
    if "messages" not in row:
        context = row.get("input", "")
        return (f"{row['instruction']}\n\n{context}" if context else row["instruction"]), row["output"]
    asked = [message["content"] for message in row["messages"] if message["role"] != "assistant"]
    answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    return "\n\n".join(asked), "\n\n".join(answers)


def _conversation(value: Mapping[str, Any], mapping: ColumnMapping, system: str, *, replaced: bool) -> Row:
    found = value.get(mapping.messages)
    if mapping.shape == "chat-export" and isinstance(found, dict):
        found = _thread(found, value.get("current_node"))
    if found is None or found == []:
        raise RowError("no_messages", f"{mapping.messages!r} is empty")
    if not isinstance(found, list):
        raise RowError("not_text", f"{mapping.messages!r} is {_kind(found)}, not a list of messages")
    messages = [_message(message, number) for number, message in enumerate(found, 1)]
    if replaced and system.strip() and messages[0]["role"] == "system":
        messages.pop(0)
    if system.strip() and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": system.strip()})
    return checked_messages(messages)


def _thread(nodes: Mapping[str, Any], last: Any) -> list[dict[str, Any]]:
    """The messages of an exported chat up to the one it ended with; branches that were given up are no part of it."""
    found: list[dict[str, Any] | None] = []
    seen: set[str] = set()
    while isinstance(last, str) and last not in seen and isinstance(node := nodes.get(last), dict):
        seen.add(last)
        if isinstance(message := node.get("message"), dict):
            found.append(_exported(message))
        last = node.get("parent")
    return _turns(message for message in reversed(found) if message)


# What of an exported chat was said; the rest is what the service told itself: thoughts, calls of tools, what they gave.
_SAID = frozenset({"text", "multimodal_text"})
# Marks of sources: between private characters in newer exports, 【4†source】 in older ones.
_SOURCES = re.compile("\\s*(?:\ue200[^\ue201]*\ue201|【\\d+[^】]*†[^】]*】)|[\ue200-\ue206]")


def _exported(message: Mapping[str, Any]) -> dict[str, Any] | None:
    """A message as role and content, or None where it was neither said by one side nor to the other."""
    author, content = message.get("author"), message.get("content")
    role = author.get("role") if isinstance(author, dict) else None
    kind = content.get("content_type", "text") if isinstance(content, dict) else "text"
    told, about = message.get("recipient") or "all", message.get("metadata")
    hidden = isinstance(about, dict) and about.get("is_visually_hidden_from_conversation")
    if role == "tool" or kind not in _SAID or told != "all" or hidden:
        return None
    parts = content.get("parts") if isinstance(content, dict) else None
    if isinstance(parts, list):
        parts = [{"text": _SOURCES.sub("", part)} if isinstance(part, str) else part for part in parts if part != ""]
    # The service's own system messages are exported without their text.
    return None if role == "system" and not parts else {"role": role, "content": parts}


def _turns(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with those joined that one side said in a row: what stood between them was no message."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        last = turns[-1] if turns else {}
        if (
            last.get("role") == message["role"]
            and isinstance(last["content"], list)
            and isinstance(message["content"], list)
        ):
            turns[-1] = {"role": message["role"], "content": [*last["content"], {"text": "\n\n"}, *message["content"]]}
        else:
            turns.append(message)
    return turns


def checked_messages(messages: list[dict[str, Any]]) -> Row:
    """A conversation row. Raises RowError when nobody asks or nobody answers."""
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise RowError("no_answer", f"roles are {', '.join(message['role'] for message in messages)}")
    if not any(message["content"].strip() for message in answers):
        raise RowError("empty_answer", "every answer of the conversation is empty")
    spoken = [message for message in messages if message["role"] != "system"]
    if spoken[0]["role"] == "assistant":
        raise RowError("answer_first", "the first message is an answer")
    if not any(message["content"].strip() for message in spoken if message["role"] == "user"):
        raise RowError("empty_prompt", "every question of the conversation is empty")
    return {"messages": messages}


def _message(message: Any, number: int) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RowError("bad_message", f"message {number} is {_kind(message)}, not an object")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if role is None or (content is None and "content" not in message and "value" not in message):
        keys = ", ".join(map(str, message)) or "no keys"
        raise RowError("bad_message", f"message {number} has {keys}; it needs role and content")
    if not isinstance(role, str) or role.strip().lower() not in _ROLES:
        raise RowError("unknown_role", f"message {number} has role {role!r}; valid: system, user, assistant")
    if isinstance(content, list):
        content = _joined_parts(content, number)
    if not isinstance(content, str):
        raise RowError("not_text", f"content of message {number} is {_kind(content)}")
    _whole(content)
    kept: dict[str, Any] = {"role": _ROLES[role.strip().lower()], "content": content.strip()}
    if message.get("weight") == 0:
        kept["weight"] = 0
    return kept


def _joined_parts(parts: list[Any], number: int) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") or part.get("content_type", "unknown") if isinstance(part, dict) else _kind(part)
            raise RowError("not_text", f"message {number} holds a part of type {kind!r}; only text can be trained")
        texts.append(part["text"])
    return "".join(texts)


def _with_history(system: str, history: Any, question: str, context: str, answer: str) -> Row:
    messages: list[dict[str, Any]] = []
    if system.strip():
        messages.append({"role": "system", "content": system.strip()})
    for turn in history or ():
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise RowError("bad_message", "history must be a list of [question, answer] pairs")
        messages += [{"role": "user", "content": turn[0].strip()}, {"role": "assistant", "content": turn[1].strip()}]
    pair = checked_pair(question, context, answer)
    messages.append({"role": "user", "content": "\n\n".join(t for t in (pair["instruction"], pair["input"]) if t)})
    messages.append({"role": "assistant", "content": pair["output"]})
    for message in messages:
        _whole(message["content"])
    return checked_messages(messages)


def _field(value: Mapping[str, Any], name: str, *, needed: bool = False) -> str:
    if not name:
        return ""
    if name not in value:
        if needed:
            raise RowError("missing_field", f"no {name!r}; the row has {', '.join(map(repr, value)) or 'no fields'}")
        return ""
    found = value[name]
    if found is None:
        return ""
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        if isinstance(found, list) and len(found) == 1 and isinstance(found[0], str):
            return found[0]
        raise RowError("not_text", f"{name!r} is {_kind(found)}")
    return found if isinstance(found, str) else str(found)


def _whole(text: str) -> None:
    """JSON escapes can spell half of a surrogate pair, which no file and no tokenizer can hold."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError("half_character", f"half of a character at position {error.start + 1}") from None


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
