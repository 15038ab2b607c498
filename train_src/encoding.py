"""Rows of a dataset -> token ids, and which of them the model is trained on.

The one place where training, preparation and serving agree on what a row looks like to the model. It needs only
`tokenizers` and `jinja2`, starts in a tenth of a second, and gives the ids that transformers' `apply_chat_template`
gives. The mask comes from the chat template itself: the conversation is rendered with and without each answer, and the
tokens of the difference are the answer. Nothing is searched for as a string, so an answer that quotes a marker of the
template cannot move the mask.

As a program it counts or shows tokens, one output line for each input line:

    python3 encoding.py --tokenizer DIR --family causal --max-length 512 --output counts < rows.jsonl
    {"tokens": 180, "trained": 61, "cut_tokens": 0, "cut_trained": 0}

It does not batch, pad or know about tensors; data.py does.
"""

import argparse
import itertools
import json
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Encoding, Tokenizer, processors

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
FAMILIES = ("causal", "seq2seq")
ROLES = ("system", "user", "assistant")
ROWS_PER_BATCH = 512


class RowError(ValueError):
    """A row that cannot be trained on; the text says what is wrong with it."""


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of one row. For seq2seq, `ids` are the decoder's target and `source_ids` the encoder's input.

    `trained` has 1 for each id that the loss is computed on. `pieces` are the stretches of text behind the ids; joined
    they give the rendered text back. Both follow the order of `ids`.
    """

    ids: list[int]
    trained: list[int]
    pieces: list[str]
    source_ids: list[int] | None = None
    source_pieces: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids) + len(self.source_ids or ())

    def cut(self, max_length: int) -> "EncodedRow":
        """The row with at most `max_length` ids (for seq2seq: on each side); the end goes. 0 means no limit.

        An encoder input keeps its closing token, which T5-like encoders expect. An answer that was cut loses its own:
        the model is not taught to stop in the middle of a sentence.
        """
        if not max_length or max(len(self.ids), len(self.source_ids or ())) <= max_length:
            return self
        source_ids, source_pieces = self.source_ids, self.source_pieces
        if source_ids is not None and source_pieces is not None and len(source_ids) > max_length:
            source_ids = [*source_ids[: max_length - 1], source_ids[-1]]
            source_pieces = [*source_pieces[: max_length - 1], source_pieces[-1]]
        return EncodedRow(
            self.ids[:max_length], self.trained[:max_length], self.pieces[:max_length], source_ids, source_pieces
        )


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


class Encoder:
    """Encodes rows and prompts with the tokenizer in a model folder.

    Raises FileNotFoundError when the folder has no tokenizer.json. `chat_template` is the text of the template in use,
    the kit's default one when the folder has none.
    """

    def __init__(self, folder: Path | str, family: str = "causal") -> None:
        if family not in FAMILIES:
            raise ValueError(f"family is {family!r}, it can be {' or '.join(FAMILIES)}")
        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(f"{folder} has no tokenizer.json, which every supported base model has")
        self.family = family
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        config = _read_json(folder / "tokenizer_config.json")
        names = {**_read_json(folder / "special_tokens_map.json"), **config}
        self.special_tokens = {
            key: value["content"] if isinstance(value, dict) else value
            for key, value in names.items()
            if key.endswith("_token") and isinstance(value, (str, dict))
        }
        self.chat_template = _chat_template(folder, config)
        if family == "causal":
            # A template writes every special token itself. Without a post-processor the offsets also keep the blanks
            # that belong to a token, which byte-level tokenizers would trim off.
            self.tokenizer.post_processor = processors.Sequence([])

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens such as the end of a turn."""
        return frozenset(number for number, token in self.tokenizer.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def _template(self) -> "_Template":
        return _Template(self.chat_template, self.special_tokens)

    def prompt_text(self, messages: Sequence[dict[str, str]]) -> str:
        """The text before the answer, exactly as in training."""
        if self.family == "seq2seq":
            return seq2seq_source(messages)
        return self._template.render(messages, open_answer=True)

    def prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of the text before the answer, exactly as in training."""
        return self.tokenizer.encode(self.prompt_text(messages), add_special_tokens=self.family == "seq2seq").ids

    def encode(self, rows: Iterable[Any]) -> Iterator[EncodedRow | RowError]:
        """One result for each row, in order; a bad row gives its RowError instead of ending the run."""
        encode_batch = self._encode_causal if self.family == "causal" else self._encode_seq2seq
        rows = iter(rows)
        while batch := list(itertools.islice(rows, ROWS_PER_BATCH)):
            yield from encode_batch(batch)

    def _encode_causal(self, rows: list[Any]) -> Iterator[EncodedRow | RowError]:
        drafts: list[tuple[str, list[tuple[int, int]]] | RowError] = []
        for row in rows:
            try:
                messages = row_messages(row)
                wanted = _weights(row["messages"]) if "messages" in row else [True]
                drafts.append(self._template.answer_spans(messages, wanted))
            except RowError as error:
                drafts.append(error)
        texts = [draft[0] for draft in drafts if not isinstance(draft, RowError)]
        encodings = iter(self.tokenizer.encode_batch(texts, add_special_tokens=False))
        for draft in drafts:
            if isinstance(draft, RowError):
                yield draft
                continue
            text, spans = draft
            encoding = next(encodings)
            trained = self._trained(encoding, text, spans)
            yield EncodedRow(encoding.ids, trained, _pieces(text, encoding))

    def _trained(self, encoding: Encoding, text: str, spans: list[tuple[int, int]]) -> list[int]:
        """1 for each token that begins inside an answer, up to the token that ends the turn.

        Templates put a line break after that token; no server ever generates it, so it is not trained.
        """
        ids, offsets = encoding.ids, encoding.offsets
        trained = [0] * len(ids)
        position = 0
        for start, end in spans:
            while position < len(ids) and offsets[position][0] < start:
                position += 1
            first = position
            while position < len(ids) and offsets[position][0] < end:
                position += 1
            closing = next((i for i in reversed(range(first, position)) if ids[i] in self.special_ids), None)
            last = position
            if closing is not None and not text[offsets[closing][1] : end].strip():
                last = closing + 1
            trained[first:last] = [1] * (last - first)
        return trained

    def _encode_seq2seq(self, rows: list[Any]) -> Iterator[EncodedRow | RowError]:
        drafts: list[tuple[str, str] | RowError] = []
        for row in rows:
            try:
                messages = row_messages(row)
                while messages[-1]["role"] != "assistant":
                    messages.pop()
                if "messages" in row and not _weights(row["messages"])[-1]:
                    raise RowError("the last answer has weight 0, and an encoder-decoder model learns only that one")
                if len(messages) == 1:
                    raise RowError("the answer has no question before it")
                drafts.append((seq2seq_source(messages[:-1]), messages[-1]["content"]))
            except RowError as error:
                drafts.append(error)
        texts = [text for draft in drafts if not isinstance(draft, RowError) for text in draft]
        encodings = iter(self.tokenizer.encode_batch(texts, add_special_tokens=True))
        for draft in drafts:
            if isinstance(draft, RowError):
                yield draft
                continue
            source, target = next(encodings), next(encodings)
            yield EncodedRow(
                target.ids,
                [1] * len(target.ids),
                _pieces(draft[1], target),
                source.ids,
                _pieces(draft[0], source),
            )


class _Template:
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


def _chat_template(folder: Path, config: dict[str, Any]) -> str:
    """The template in the folder: its own file first, as transformers does, then the tokenizer's configuration."""
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template or DEFAULT_CHAT_TEMPLATE


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
    if not any(_weights(messages)):
        raise RowError("every answer has weight 0: there is nothing to learn from this row")
    return checked


def _weights(messages: list[dict[str, Any]]) -> list[bool]:
    """For each answer whether it is trained on: OpenAI's `"weight": 0` on a message says no."""
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


def _pieces(text: str, encoding: Encoding) -> list[str]:
    """The text of each token. Bytes of one character that became several tokens: the first has it, the rest nothing."""
    pieces, position = [], 0
    for token, (_, end), added in zip(encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True):
        pieces.append(token if added else text[position:end])
        position = max(position, end)
    return pieces


def _common_length(one: str, other: str) -> int:
    if other.startswith(one):
        return len(one)
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _lines(stream: Iterable[str]) -> Iterator[Any]:
    for line in stream:
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            yield RowError(f"not JSON: {error}")


def _as_json(result: EncodedRow | RowError, output: str, max_length: int) -> dict[str, Any]:
    if isinstance(result, RowError):
        return {"error": str(result)}
    kept = result.cut(max_length)
    if output == "counts":
        return {
            "tokens": len(result),
            "trained": sum(result.trained),
            "cut_tokens": len(result) - len(kept),
            "cut_trained": sum(result.trained) - sum(kept.trained),
        }
    shown: dict[str, Any] = {"pieces": kept.pieces, "ids": kept.ids, "trained": kept.trained}
    if kept.source_ids is not None:
        shown |= {"source_ids": kept.source_ids, "source_pieces": kept.source_pieces}
    return shown


def main() -> int:
    """Read rows from standard input, write one JSON line for each to standard output."""
    parser = argparse.ArgumentParser(description="Count or show the tokens of dataset rows.")
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder of the base model")
    parser.add_argument("--family", choices=FAMILIES, default="causal")
    parser.add_argument("--max-length", type=int, default=0, help="tokens a row may have; 0: no limit")
    parser.add_argument("--output", choices=("counts", "masks"), default="counts")
    arguments = parser.parse_args()
    try:
        encoder = Encoder(arguments.tokenizer, arguments.family)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for result in encoder.encode(_lines(sys.stdin)):
        print(json.dumps(_as_json(result, arguments.output, arguments.max_length), ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
