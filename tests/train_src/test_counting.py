"""Quick counts are the encoder's counts, for every row, template and tokenizer; what is not certain is not quick."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import counting
from conversations import RowError
from counting import Counter, copies_content
from encoding import Encoder
from llmtuner_kit import catalog

TEXTS = [
    "Hello there, how are you?", "It's 12:30 — we'll go; don't worry!", "line one\nline two\n\nline four", "def f(x):\n\treturn x",
    "Zürich ß ÅØ naïve", "日本語のテキスト 한국어", "emoji 😀👩‍👩‍👧 done", "² ½ Ⅷ ①", "a" * 300, "<|end|> inside", "  blank before",
    "trailing ", "x", "'s 't 're", "1234567890", "…“quoted” text", "\u00a0nbsp", "tab\there", "mixed CASE words 42nd",
]  # fmt: skip


def rows(count: int, seed: int = 3) -> list[Any]:
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choice(TEXTS) for _ in range(draw.randint(1, 4)))

    made: list[Any] = []
    for number in range(count):
        if number % 3 == 0:
            made.append({"instruction": text(), "input": text() if number % 2 else "", "output": text()})
            continue
        turns: list[dict[str, Any]] = [
            {"role": role, "content": text()} for _ in range(draw.randint(1, 3)) for role in ("user", "assistant")
        ]
        if number % 4 == 1:
            turns[1]["weight"] = draw.choice([0, 1])
        made.append({"messages": ([{"role": "system", "content": text()}] if number % 5 == 0 else []) + turns})
    return [*made, {"messages": []}, {"instruction": "a"}, "text", {"messages": [{"role": "user", "content": "q"}]}]


def model(tmp_path: Path, *, template: str | None = None, edit: Any = None) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(catalog.base_model_folder("tiny-llama"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    if edit is not None:
        document = json.loads((folder / "tokenizer.json").read_text())
        edit(document)
        (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


def by_encoder(folder: Path, family: str, limit: int, given: list[Any]) -> list[Any]:
    found = []
    for result in Encoder(folder, family).encode(given):
        if isinstance(result, RowError):
            found.append(str(result))
            continue
        kept, trained = result.cut(limit), sum(result.trained)
        found.append((len(result), trained, len(result) - len(kept), trained - sum(kept.trained)))
    return found


def by_counter(folder: Path, family: str, limit: int, given: list[Any]) -> list[Any]:
    results = Counter(folder, family, limit).count(given)
    return [str(item) if isinstance(item, RowError) else tuple(item) for item in results]


@pytest.mark.parametrize("limit", [0, 64])
@pytest.mark.parametrize(("name", "family"), [("tiny-llama", "causal"), ("tiny-t5", "seq2seq")])
def test_counts_equal_those_of_the_encoder(name: str, family: str, limit: int) -> None:
    folder, given = catalog.base_model_folder(name), rows(300)
    assert by_counter(folder, family, limit, given) == by_encoder(folder, family, limit, given)


TEMPLATES = {
    "trimmed": "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}<|end|>\n{% endfor %}",
    "read": "{% for message in messages %}{% if 'x' in message['content'] %}!{% endif %}<|{{ message.role }}|>\n"
    "{{ message.content }}<|end|>\n{% endfor %}",
    "handed on": "{% for message in messages %}<|{{ message.role }}|>\n{{ message | tojson }}<|end|>\n{% endfor %}",
    "glued": "{% for message in messages %}{{ message.role }}: {{ message.content }} ;{% endfor %}",
    "upper": "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content | upper }}<|end|>\n{% endfor %}",
    "first only": "{% for message in messages %}<|{{ message.role }}|>\n{{ messages[0]['content'] }}<|end|>\n{% endfor %}",
    "default": None,
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_counts_equal_those_of_the_encoder_whatever_the_template_does(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path, template=TEMPLATES[name])
    if TEMPLATES[name] is None:
        (folder / "chat_template.jinja").unlink()
    given = rows(120)
    assert by_counter(folder, "causal", 0, given) == by_encoder(folder, "causal", 0, given)


def prefix(document: dict[str, Any]) -> None:
    document["pre_tokenizer"]["add_prefix_space"] = True


def normalised(document: dict[str, Any]) -> None:
    document["normalizer"] = {"type": "NFKC"}


def stripping(document: dict[str, Any]) -> None:
    document["added_tokens"][-1]["lstrip"] = True


def split_by_llama3(document: dict[str, Any]) -> None:
    pattern = {"type": "Split", "pattern": {"Regex": counting._LLAMA3}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern, byte_level]}


@pytest.mark.parametrize("edit", [prefix, normalised, stripping, split_by_llama3])
def test_counts_equal_those_of_the_encoder_whatever_the_tokenizer_does(tmp_path: Path, edit: Any) -> None:
    folder, given = model(tmp_path, edit=edit), rows(120)
    assert by_counter(folder, "causal", 0, given) == by_encoder(folder, "causal", 0, given)


def test_most_rows_are_counted_the_quick_way() -> None:
    counter = Counter(catalog.base_model_folder("tiny-llama"))
    plain = [{"instruction": f"Tell me about {n}", "output": f"It is the number {n}."} for n in range(50)]
    assert all(counter._quick(row) is not None for row in plain)


@pytest.mark.parametrize(
    ("template", "copies"),
    [
        (TEMPLATES["trimmed"], True),
        (TEMPLATES["read"], False),
        (TEMPLATES["handed on"], False),
        (TEMPLATES["upper"], False),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", True),
        ("{% for m in messages %}{% set c = m.content %}{{ c }}{% endfor %}", False),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", False),
        ("{{ messages[-1]['content'][:3] }}", False),
        ("{% for m in messages %}{{ m[key] }}{% endfor %}{{ messages | length }}", False),
        ("{% broken", False),
    ],
)
def test_it_sees_whether_a_template_only_copies_content(template: str, copies: bool) -> None:
    assert copies_content(template) is copies


def test_the_program_answers_block_by_block() -> None:
    command = [sys.executable, counting.__file__, "--tokenizer", str(catalog.base_model_folder("tiny-llama"))]
    block = b'{"instruction": "a", "output": "b"}\nnot json\n\n{"instruction": "c", "output": "d"}\n'
    done = subprocess.run(command, input=block, capture_output=True, check=True)
    first, broken, last = (json.loads(line) for line in done.stdout.splitlines())
    assert first == last
    assert len(first) == 4
    assert "not JSON" in broken["error"]
