"""Rows longer than the model's limit -> several rows that fit and together hold the whole answer."""

from __future__ import annotations

from itertools import pairwise

from llmtuner_kit.dataset import conversion, passages
from llmtuner_kit.dataset.conversion import Row
from llmtuner_kit.dataset.passages import Measure
from llmtuner_kit.dataset.tokens import Count

_LEAST_ANSWER = 16
# Pieces are measured one by one; joined, or behind another prompt, they may take a few tokens more.
_SLACK = 8


def split(row: Row, count: Count, limit: int, measure: Measure) -> list[Row]:
    """The rows to write in place of `row`; empty when even the question leaves no room.

    An answer is cut between paragraphs or sentences; each later part is asked for by the plain-text rule, with the
    last 100 characters before it. A conversation is cut between its turns, and each part keeps the system message.
    """
    if "messages" in row:
        return _conversation(row, limit, measure)
    room = limit - (count.tokens - count.trained) - _SLACK
    if room < _LEAST_ANSWER:
        return []
    # Later parts come with a prompt of their own: the instruction and 100 characters.
    opening = measure([conversion.CONTINUE + "\n\n" + row["output"][: conversion.OPENING]])[0]
    frame = count.tokens - count.trained - sum(measure([_prompt(row)]))
    later = limit - frame - 2 * opening - _SLACK
    parts = passages.cut(row["output"], max(_LEAST_ANSWER, min(room, later)), measure)
    rows = [row | {"output": parts[0]}]
    rows += [
        {"instruction": conversion.CONTINUE, "input": before[-conversion.OPENING :], "output": part}
        for before, part in pairwise(parts)
    ]
    return rows


def _prompt(row: Row) -> str:
    return conversion.prompt_and_answer(row)[0]


def _conversation(row: Row, limit: int, measure: Measure) -> list[Row]:
    system = [message for message in row["messages"] if message["role"] == "system"][:1]
    turns: list[list[dict[str, str]]] = []
    for message in row["messages"]:
        if message["role"] == "user" and not (turns and turns[-1][-1]["role"] == "user"):
            turns.append([])
        if message["role"] != "system" and turns:
            turns[-1].append(message)
    frame = 16  # tokens that a template puts around a message, at most, for the templates of the catalogue
    sizes = [sum(measure([message["content"] for message in turn])) + frame * len(turn) for turn in turns]
    base = sum(measure([message["content"] for message in system])) + 2 * frame
    groups: list[list[dict[str, str]]] = []
    used = limit
    for turn, size in zip(turns, sizes, strict=True):
        if used + size > limit - base or not groups:
            groups.append([])
            used = 0
        groups[-1] += turn
        used += size
    return [{"messages": [*system, *group]} for group in groups if any(m["role"] == "assistant" for m in group)]
