"""Tokens as the model will see them: counts and masks from the training code itself, run as a process.

train_src/encoding.py decides what a row looks like to the model. It is run, never imported, so that preparation and
training cannot drift apart.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtuner_kit import catalog, job_code
from llmtuner_kit.errors import KitError
from llmtuner_kit.model_names import TOKENIZER_FILES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The modules of train_src that decide what a row becomes.
_PROGRAMS = ("encoding.py", "chat_template.py", "conversations.py")


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens of one row: all, those trained on, and how many of each fall past the limit. Or the reason why not."""

    tokens: int = 0
    trained: int = 0
    cut_tokens: int = 0
    cut_trained: int = 0
    error: str = ""


@dataclass(frozen=True)
class MaskedRow:
    """One row as the model sees it: pieces of text, and for each whether it is trained on.

    For encoder-decoder models `source` is what the encoder reads; `pieces` is the answer. `number` counts the rows of
    the split from 1.
    """

    number: int
    pieces: tuple[str, ...]
    trained: tuple[bool, ...]
    source: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    source_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Encoding:
    """A base model's tokenizer and template, as a folder the training code can read."""

    folder: Path
    family: str
    max_length: int
    model_id: str = ""

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """Hash of tokenizer and template: whatever decides about counts and masks."""
        digest = hashlib.sha256()
        for name in _PROGRAMS:
            digest.update((job_code.folder() / name).read_bytes())
        for name in TOKENIZER_FILES:
            path = self.folder / name
            digest.update(f"{name}:{path.stat().st_size if path.exists() else -1}\n".encode())
            digest.update(path.read_bytes() if path.exists() else b"")
        return digest.hexdigest()

    def measure(self, texts: list[str]) -> list[int]:
        """Tokens of plain texts, without any template."""
        return [len(item.ids) for item in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    @cached_property
    def control_tokens(self) -> re.Pattern[str] | None:
        """Matches the tokenizer's own special tokens, which must not stand in anybody's text."""
        # A token like <unk> or </s> may be legal HTML or XML in data for some other model; here it is a control token.
        names = [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None

    def masks(self, rows: Mapping[int, Mapping[str, Any]]) -> list[MaskedRow]:
        """Rows by their number, as trained on, token by token, after cutting at the limit."""
        lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows.values()]
        return [
            MaskedRow(
                number,
                tuple(answer["pieces"]),
                tuple(map(bool, answer["trained"])),
                tuple(answer.get("source_pieces", ())),
                tuple(answer["ids"]),
                tuple(answer.get("source_ids", ())),
            )
            for number, answer in zip(rows, self._masks(lines), strict=True)
            if "error" not in answer
        ]

    def counting_command(self) -> list[str]:
        """The training code's own counting program, reading rows from standard input."""
        return self._command("counting.py")

    def _command(self, program: str) -> list[str]:
        options = ["--tokenizer", str(self.folder), "--family", self.family, "--max-length", str(self.max_length)]
        return [sys.executable, str(job_code.folder() / program), *options]

    def _masks(self, rows: Iterable[bytes]) -> list[dict[str, Any]]:
        command = [*self._command("encoding.py"), "--output", "masks"]
        given = b"".join(row + b"\n" for row in rows)
        done = subprocess.run(
            command, input=given, capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": "utf-8"}
        )
        if done.returncode:
            raise KitError(
                f"The rows could not be encoded for the model: {done.stderr.decode(errors='replace').strip()[-500:]}",
                fix=f"check the tokenizer in {self.folder}",
            )
        return [json.loads(line) for line in done.stdout.decode().splitlines()]


def open_encoding(model: catalog.BaseModel, folder: Path, max_length: int) -> Encoding:
    """The encoding of a base model whose tokenizer is in `folder`; `max_length` 0: what it can read, at most 2048."""
    return Encoding(folder, model.family, min(max_length or 2048, model.context), model.model_id)
