"""A model's chat template: how a conversation becomes text, and where in that text the answers stand.

The mask of what is trained comes from the template itself: the conversation is rendered with and without each answer,
and what differs is the answer. Nothing is searched for as a string, so an answer that quotes a marker of the template
cannot move the mask.
"""

import itertools
import json
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from conversations import RowError

# For base models that come without a chat template. Plain words, so that it needs no new tokens in any vocabulary.
DEFAULT_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '### System:\\n' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)


class ChatTemplate:
    """A chat template, compiled the way transformers compiles it, that can tell where the answers are."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        # A random mark cannot be in anyone's data.
        self._mark = f"\x00{secrets.token_hex(8)}\x00"
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise, strftime_now=_now)
        self._special_tokens = special_tokens
        self._environment = environment
        try:
            self._compiled = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template of the tokenizer is broken: {error}") from error

    def render(self, messages: Sequence[dict[str, str]], *, open_answer: bool = False, mark: str = "") -> str:
        """The conversation as text, with an answer opened at its end when asked. Raises RowError on refusal."""
        try:
            return self._compiled.render(
                **self._special_tokens,
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=open_answer,
                generation_mark=mark,
            )
        except jinja2.TemplateError as error:
            raise RowError(f"the model's chat template refuses this conversation: {error}") from error

    def answer_spans(self, messages: list[dict[str, str]], wanted: Sequence[bool]) -> tuple[str, list[tuple[int, int]]]:
        """The rendered conversation, and where in it (from, to) the wanted answers stand.

        `wanted` says for each answer whether it is trained on. Raises RowError when no such answer is found.

        A template that marks its answers (`{% generation %}`) is believed. For any other, the text rendered up to an
        answer must begin the whole text. Some templates rewrite earlier answers (they take the reasoning out): such
        answers are not trained on, the last one still is.
        """
        marked = self.render(messages, mark=self._mark)
        parts = marked.split(self._mark)
        text = "".join(parts)
        if len(parts) > 1:
            ends = list(itertools.accumulate(map(len, parts)))
            marked_spans = list(zip(ends[0::2], ends[1::2], strict=False))
            if len(marked_spans) != len(wanted):
                raise RowError(f"the chat template marks {len(marked_spans)} answers, the row has {len(wanted)}")
            return text, [span for span, is_wanted in zip(marked_spans, wanted, strict=True) if is_wanted]
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        found = [self._span_of(i, messages, text) for i, is_wanted in zip(answers, wanted, strict=True) if is_wanted]
        spans = [span for span in found if span]
        if not spans:
            raise RowError("the model's chat template does not show where the answer begins in this conversation")
        return text, spans

    def _span_of(self, index: int, messages: list[dict[str, str]], text: str) -> tuple[int, int] | None:
        before = self.render(messages[:index]) if index else ""
        if not text.startswith(before):
            return None
        # What opens an answer may hold more than this answer has (an empty reasoning block): what both share counts.
        start = _common_length(self.render(messages[:index], open_answer=True), text) if index else 0
        is_last = index == len(messages) - 1
        end = len(text) if is_last else _common_length(self.render(messages[: index + 1]), text)
        return (start, end) if len(before) <= start < end else None


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: puts `generation_mark` on both sides of what it holds."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads the attribute from the class)

    def parse(self, parser: Any) -> list[Any]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        mark = jinja2.nodes.Output([jinja2.nodes.Name("generation_mark", "load")]).set_lineno(line)
        return [mark, *body, mark]


def read_chat_template(folder: Path, config: dict[str, Any]) -> str:
    """The template in the folder: its own file first, as transformers does, then the tokenizer's configuration."""
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template or DEFAULT_CHAT_TEMPLATE


def _common_length(one: str, other: str) -> int:
    if other.startswith(one):
        return len(one)
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
