"""The conversation a dataset row stands for, and what makes a row one that can be trained on."""

from collections.abc import Sequence
from typing import Any

ROLES = ("system", "user", "assistant")


class RowError(ValueError):
    """A row that cannot be trained on; the text says what is wrong with it."""


def row_messages(row: Any) -> list[dict[str, str]]:
    """The conversation a row stands for. Raises RowError for anything that is not a trainable row."""
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError(f"a row must be a JSON object, this is {_kind(row)}")
    if "messages" in row:
        return _checked_messages(row["messages"])
    missing = [key for key in ("instruction", "output") if key not in row]
    if missing:
        raise RowError(f"no {' and no '.join(map(repr, missing))} in the row, which has {sorted(row) or 'no keys'}")
    instruction = _text(row["instruction"], "instruction")
    context = _text(row.get("input") or "", "input")
    output = _text(row["output"], "output")
    if not (instruction.strip() or context.strip()):
        raise RowError("instruction and input are both empty")
    if not output.strip():
        raise RowError("the output is empty: there is nothing to learn from this row")
    prompt = f"{instruction}\n\n{context}" if instruction and context else instruction or context
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": output}]


def prompt_messages(row: Any) -> list[dict[str, str]]:
    """The conversation of a row up to its last answer."""
    messages = row_messages(row)
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last]


def seq2seq_source(messages: Sequence[dict[str, str]]) -> str:
    """What an encoder-decoder model reads: the one question as it stands, a longer conversation with its speakers."""
    if len(messages) == 1:
        return messages[0]["content"]
    names = {"system": "System", "user": "User", "assistant": "Assistant"}
    return "\n\n".join(f"{names[message['role']]}: {message['content']}" for message in messages)


def _checked_messages(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise RowError("'messages' must be a list with at least one question and one answer")
    checked = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise RowError(f"message {number} must be an object with 'role' and 'content'")
        if message["role"] not in ROLES:
            raise RowError(f"message {number} has role {message['role']!r}, it can be {', '.join(ROLES)}")
        checked.append({"role": message["role"], "content": _text(message["content"], f"content of message {number}")})
    answers = [message["content"] for message in checked if message["role"] == "assistant"]
    if not answers:
        raise RowError("no message has role 'assistant': there is nothing to learn from this row")
    if not any(answer.strip() for answer in answers):
        raise RowError("every answer is empty: there is nothing to learn from this row")
    if not any(_weighted(messages)):
        raise RowError("every answer has weight 0: there is nothing to learn from this row")
    return checked


def trained_answers(row: dict[str, Any]) -> list[bool]:
    """For each answer of a trainable row whether it is trained on: OpenAI's `"weight": 0` on a message says no."""
    return _weighted(row["messages"]) if "messages" in row else [True]


def _weighted(messages: list[dict[str, Any]]) -> list[bool]:
    return [message.get("weight", 1) != 0 for message in messages if message["role"] == "assistant"]


def _text(value: Any, name: str) -> str:
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        value = "".join(str(part.get("text", "")) for part in value)
    if not isinstance(value, str):
        raise RowError(f"{name} must be text, this is {_kind(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"{name} holds half a character at position {error.start} (a lone surrogate)") from error
    return value


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
