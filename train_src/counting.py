"""Token counts of dataset rows, the same numbers as encoding.py gives and several times faster.

Most tokenizers of today cut a text into words by a regular expression before anything else, and most chat templates
copy the messages as they stand. Then a conversation's count is that of the template plus that of its words, and a word
that was counted once need never be counted again. Whether both hold is found out, not assumed: the template's own
syntax tree must show that content is only ever copied, and the pieces around it must be where the tokenizer cuts
anyway. Any row, template or tokenizer for which this cannot be shown goes through encoding.py itself.

    python3 counting.py --tokenizer DIR --family causal --max-length 512 < rows.jsonl
    [180,61,0,0]

One line for each row: tokens, trained tokens, and how many of each fall past the limit; or {"error": "..."}.
"""

import argparse
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from conversations import RowError, row_messages, trained_answers
from encoding import FAMILIES, EncodedRow, Encoder

try:
    import regex  # reads \p{L}; comes with transformers
except ImportError:  # rows with other than ASCII characters then take the slow way
    regex = None

Counts = tuple[int, int, int, int]
ROWS_PER_BATCH = 2048
WORDS_KEPT = 1_000_000

# The regular expressions of the common byte-level tokenizers: as they stand in tokenizer.json, for `regex`, and the
# same for ASCII text only, for `re`, which is three times as fast.
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


# Names that hold no message.
_HARMLESS = frozenset(
    {
        "loop", "add_generation_prompt", "generation_mark", "tools", "documents", "raise_exception", "strftime_now",
        "bos_token", "eos_token", "pad_token", "unk_token", "none", "true", "false",
    }
)  # fmt: skip


class Counter:
    """Counts rows for one base model."""

    def __init__(self, folder: Path | str, family: str = "causal", max_length: int = 0) -> None:
        self.encoder = Encoder(folder, family)
        self.max_length = max_length
        self._frames: dict[tuple[Any, ...], _Frame | None] = {}
        self._words = _Words(self.encoder)
        self._copies = family == "causal" and self._words.usable and copies_content(self.encoder.chat_template)
        self._added = re.compile(
            "|".join(map(re.escape, [t.content for t in self.encoder.tokenizer.get_added_tokens_decoder().values()]))
            or r"(?!)"
        )

    def count(self, rows: Iterable[Any]) -> Iterator[Counts | RowError]:
        """One result for each row, in order."""
        rows = iter(rows)
        while batch := list(itertools.islice(rows, ROWS_PER_BATCH)):
            quick = [self._quick(row) for row in batch]
            slow = (row for row, result in zip(batch, quick, strict=True) if result is None)
            encoded = self.encoder.encode(slow)
            for result in quick:
                yield result if result is not None else self._counted(next(encoded))

    def _quick(self, row: Any) -> Counts | RowError | None:
        """The counts from words alone, or None when only the encoder can tell."""
        if not self._copies:
            return None
        try:
            messages = row_messages(row)
        except RowError as error:
            return error
        wanted = iter(trained_answers(row))
        learned = [message["role"] == "assistant" and next(wanted) for message in messages]
        signature = tuple(zip((message["role"] for message in messages), learned, strict=True))
        if signature not in self._frames:
            self._frames[signature] = self._frame(messages, learned)
        frame = self._frames[signature]
        if frame is None:
            return None
        tokens, trained = frame.tokens, frame.trained
        for message, is_learned in zip(messages, learned, strict=True):
            text = message["content"]
            if not text or text[0].isspace() or text[-1].isspace() or self._added.search(text):
                return None
            size = self._words.count(text)
            if size is None:
                return None
            tokens += size
            trained += size if is_learned else 0
        return (tokens, trained, 0, 0) if not self.max_length or tokens <= self.max_length else None

    def _frame(self, messages: list[dict[str, str]], learned: list[bool]) -> "_Frame | None":
        """What a conversation of these roles costs besides its contents, measured on one whose contents are `x`."""
        probe = [
            message | {"content": "x", "weight": int(item)} for message, item in zip(messages, learned, strict=True)
        ]
        marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
        marked = [message | {"content": mark} for message, mark in zip(messages, marks, strict=True)]
        shown, encoded = self.encoder.encode([{"messages": marked}, {"messages": probe}])
        if isinstance(shown, RowError) or isinstance(encoded, RowError):
            return None
        text = "".join(shown.pieces)
        for mark in marks:
            start = text.find(mark)
            if text.count(mark) != 1 or not self._words.cuts_around(text, start, start + len(mark), self._added):
                return None
        size = self._words.count("x") or 0
        own_trained = sum(encoded.trained) - size * sum(learned)
        # Every answer must be trained from its first token on, or the template does something this cannot see.
        if own_trained < 0 or not _answers_trained(encoded, sum(learned)):
            return None
        return _Frame(len(encoded.ids) - size * len(messages), own_trained)

    def _counted(self, encoded: EncodedRow | RowError) -> Counts | RowError:
        if isinstance(encoded, RowError):
            return encoded
        kept = encoded.cut(self.max_length)
        trained = sum(encoded.trained)
        return len(encoded), trained, len(encoded) - len(kept), trained - sum(kept.trained)


class _Frame(NamedTuple):
    """The template's own share for one sequence of roles."""

    tokens: int
    trained: int


class _Words(dict[str, int]):
    """Counts texts by their words, remembering each word. `usable` is False for tokenizers that do not cut by words."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._tokenizer = encoder.tokenizer
        description = json.loads(encoder.tokenizer.to_str())
        self._pattern = _word_pattern(description)
        added = description.get("added_tokens") or []
        plain = not any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added)
        self.usable = bool(self._pattern) and plain and description.get("normalizer") is None
        # In these patterns a line break ends a word only where the word is not punctuation.
        self._breaks_cut = self._pattern == _GPT2
        self._find_ascii: Callable[[str], list[str]] = re.compile(_ascii(self._pattern)).findall
        self._find_any: Callable[[str], list[str]] | None = regex.compile(self._pattern).findall if regex else None

    def __missing__(self, word: str) -> int:
        if len(self) >= WORDS_KEPT:
            self.clear()
        size = self[word] = len(self._tokenizer.encode(word, add_special_tokens=False).ids)
        return size

    def count(self, text: str) -> int | None:
        """Tokens of a text that stands between two cuts, or None when it cannot be told from words."""
        if text.isascii():
            return sum(map(self.__getitem__, self._find_ascii(text)))
        return sum(map(self.__getitem__, self._find_any(text))) if self._find_any else None

    def cuts_around(self, text: str, start: int, end: int, added: "re.Pattern[str]") -> bool:
        """Whether the tokenizer cuts at both ends of text[start:end], whatever (unblank) text stands there."""
        before, after = text[:start], text[end:]
        if before and not before.endswith("\n") and not _ends_with(added, before):
            return False
        return not after or bool(added.match(after)) or (self._breaks_cut and after.startswith("\n"))


def _ends_with(pattern: "re.Pattern[str]", text: str) -> bool:
    return any(match.end() == len(text) for match in pattern.finditer(text[-200:], 0))


def _answers_trained(encoded: EncodedRow, answers: int) -> bool:
    runs = sum(1 for one, two in itertools.pairwise([0, *encoded.trained]) if two and not one)
    return runs == answers


def _word_pattern(description: dict[str, Any]) -> str:
    """The regular expression that a tokenizer cuts by, when it is one of the known ones; else empty."""
    pre = description.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
    kinds = [step.get("type") for step in steps]
    if any(step.get("add_prefix_space") for step in steps) or kinds[-1:] != ["ByteLevel"]:
        return ""
    if kinds == ["ByteLevel"]:
        return _GPT2 if steps[0].get("use_regex", True) else ""
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        split = steps[0]
        written = split["pattern"].get("Regex", "")
        known = written in (_LLAMA3, _QWEN2) and split["behavior"] == "Isolated" and not split.get("invert")
        return written if known else ""
    return ""


def _ascii(pattern: str) -> str:
    return (
        pattern.replace(r"[^\s\p{L}\p{N}]", r"[^\sA-Za-z0-9]")
        .replace(r"[^\r\n\p{L}\p{N}]", r"[^\r\nA-Za-z0-9]")
        .replace(r"\p{L}", "[A-Za-z]")
        .replace(r"\p{N}", "[0-9]")
    )


def copies_content(template: str) -> bool:
    """Whether a chat template only ever writes a message's content out as it stands (or trimmed)."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Loops, _Marks])
    try:
        return _copies(environment.parse(template), written=False)
    except jinja2.TemplateSyntaxError:
        return False


class _Loops(jinja2.ext.loopcontrols):
    """`{% break %}` and `{% continue %}`."""


class _Marks(jinja2.ext.Extension):
    """`{% generation %}`: templates that have it are left to the encoder."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads the attribute from the class)

    def parse(self, parser: Any) -> nodes.Node:
        raise jinja2.TemplateSyntaxError("marks its answers itself", next(parser.stream).lineno)


def _copies(node: nodes.Node, *, written: bool) -> bool:
    if isinstance(node, nodes.Getitem | nodes.Getattr) and _is_content(node):
        return written
    if isinstance(node, nodes.Getitem) and not isinstance(node.arg, nodes.Const):
        return False  # a part of a text, or a key that is only known later
    if isinstance(node, nodes.Output):
        return all(_copies(child, written=True) for child in node.nodes)
    if isinstance(node, nodes.Add | nodes.Concat) and written:
        return all(_copies(child, written=True) for child in node.iter_child_nodes())
    if isinstance(node, nodes.Filter) and written and node.name == "trim" and not node.args and node.node is not None:
        return _copies(node.node, written=True)
    # A message handed on whole (to a filter, a macro, under another name) may be read out of sight.
    if isinstance(node, nodes.Name) and node.ctx == "load":
        return node.name in _HARMLESS
    if isinstance(node, nodes.Getitem | nodes.Getattr) and isinstance(node.node, nodes.Name):
        return all(_copies(child, written=False) for child in node.iter_child_nodes() if child is not node.node)
    if isinstance(node, nodes.For) and isinstance(node.iter, nodes.Name) and node.iter.name == "messages":
        return all(_copies(child, written=False) for child in node.iter_child_nodes() if child is not node.iter)
    return all(_copies(child, written=False) for child in node.iter_child_nodes())


def _is_content(node: nodes.Getitem | nodes.Getattr) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node.arg, nodes.Const) and node.arg.value == "content"


def _rows(stream: Iterable[str]) -> Iterator[Any]:
    for line in stream:
        try:
            yield json.loads(line)
        except ValueError as error:
            yield RowError(f"not JSON: {error}")


def main() -> int:
    """Read rows from standard input, write the counts of each to standard output. An empty line asks for a flush."""
    parser = argparse.ArgumentParser(description="Count the tokens of dataset rows.")
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder of the base model")
    parser.add_argument("--family", choices=FAMILIES, default="causal")
    parser.add_argument("--max-length", type=int, default=0, help="tokens a row may have; 0: no limit")
    arguments = parser.parse_args()
    try:
        counter = Counter(arguments.tokenizer, arguments.family, arguments.max_length)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    source = sys.stdin.buffer
    while block := _block(source):
        results = counter.count(_rows(line.decode("utf-8", "surrogatepass") for line in block))
        answers = [json.dumps({"error": str(item)} if isinstance(item, RowError) else item) for item in results]
        sys.stdout.write("\n".join(answers) + "\n")
        sys.stdout.flush()
    return 0


def _block(source: Any) -> list[bytes]:
    """Lines up to the next empty line or the end of the input."""
    lines: list[bytes] = []
    for line in source:
        if line == b"\n":
            break
        lines.append(line)
    return lines


if __name__ == "__main__":
    sys.exit(main())
