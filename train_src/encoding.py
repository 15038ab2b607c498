"""Rows of a dataset -> token ids, and which of them the model is trained on.

The one place where training, preparation and serving agree on what a row looks like to the model: conversations.py
reads the row, chat_template.py makes it text, and here it becomes ids. It needs only `tokenizers` and `jinja2`, starts
in a tenth of a second, and gives the ids that transformers' `apply_chat_template` gives.

As a program it counts or shows tokens, one output line for each input line:

    python3 encoding.py --tokenizer DIR --family causal --max-length 512 --output counts < rows.jsonl
    {"tokens": 180, "trained": 61, "cut_tokens": 0, "cut_trained": 0}

It does not batch, pad or know about tensors; data.py does.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer, processors

from chat_template import ChatTemplate, read_chat_template
from conversations import RowError, row_messages, seq2seq_source, trained_answers

FAMILIES = ("causal", "seq2seq")
ROWS_PER_BATCH = 512


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


class Encoder:
    """Encodes rows and prompts with the tokenizer in a model folder.

    Raises FileNotFoundError when the folder has no tokenizer.json, ValueError when it is damaged. `chat_template` is the
    text of the template in use, the kit's default one when the folder has none.
    """

    def __init__(self, folder: Path | str, family: str = "causal") -> None:
        if family not in FAMILIES:
            raise ValueError(f"family is {family!r}, it can be {' or '.join(FAMILIES)}")
        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(f"{folder} has no tokenizer.json, which every supported base model has")
        self.family = family
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"{folder / 'tokenizer.json'} is damaged: {error}") from error
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        config = _read_json(folder / "tokenizer_config.json")
        names = {**_read_json(folder / "special_tokens_map.json"), **config}
        self.special_tokens = {
            key: value["content"] if isinstance(value, dict) else value
            for key, value in names.items()
            if key.endswith("_token") and isinstance(value, (str, dict))
        }
        self.chat_template = read_chat_template(folder, config)
        if family == "causal":
            # A template writes every special token itself. Without a post-processor the offsets also keep the blanks
            # that belong to a token, which byte-level tokenizers would trim off.
            self.tokenizer.post_processor = processors.Sequence([])

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens such as the end of a turn."""
        return frozenset(number for number, token in self.tokenizer.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.chat_template, self.special_tokens)

    def prompt_text(self, messages: Sequence[dict[str, str]]) -> str:
        """The text before the answer, exactly as in training."""
        if self.family == "seq2seq":
            return seq2seq_source(messages)
        return self._template.render(messages, open_answer=True)

    def prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of the text before the answer, exactly as in training."""
        return self.text_ids(self.prompt_text(messages))

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text as it stands, with an encoder's closing token."""
        # As a batch of one: only batches let Python's other threads go on, and a long text takes seconds.
        return self.tokenizer.encode_batch([text], add_special_tokens=self.family == "seq2seq")[0].ids

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
                drafts.append(self._template.answer_spans(messages, trained_answers(row)))
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
                if not trained_answers(row)[-1]:
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


def _pieces(text: str, encoding: Encoding) -> list[str]:
    """The text of each token. Bytes of one character that became several tokens: the first has it, the rest nothing."""
    pieces, position = [], 0
    for token, (_, end), added in zip(encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True):
        pieces.append(token if added else text[position:end])
        position = max(position, end)
    return pieces


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


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
