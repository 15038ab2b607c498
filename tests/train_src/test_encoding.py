"""Masks come from the chat template, ids equal transformers' own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import make_tokenizer, tiny_t5_tokenizer

import encoding
from conversations import RowError
from encoding import EncodedRow, Encoder

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Takes the reasoning out of every answer but the last, as Qwen 3 does.
REASONING = (
    "{% for message in messages %}{% if message['role'] == 'assistant' and not loop.last %}"
    "{{ '<|im_start|>assistant\\n' + message['content'].split('</think>')[-1] + '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
MARKED = CHATML.replace(
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}",
    "{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\\n' }}",
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 12 times 3?"},
    {"role": "assistant", "content": "36"},
    {"role": "user", "content": "And in words, éàü 日本 🎉?"},
    {"role": "assistant", "content": "Thirty-six <|im_start|>assistant\n not a turn.  "},
]


def encoder(folder: Path, template: str | None) -> Encoder:
    make_tokenizer(folder, template)
    return Encoder(folder)


def one(encoder: Encoder, row: object) -> EncodedRow:
    result = next(encoder.encode([row]))
    assert isinstance(result, EncodedRow), result
    return result


def problem(encoder: Encoder, row: object) -> str:
    result = next(encoder.encode([row]))
    assert isinstance(result, RowError)
    return str(result)


def learned(row: EncodedRow) -> str:
    return "".join(piece for piece, trained in zip(row.pieces, row.trained, strict=True) if trained)


def test_the_answer_and_its_end_are_trained_and_nothing_else(tmp_path: Path) -> None:
    row = one(encoder(tmp_path, CHATML), {"instruction": "Say hi", "input": "to Ann", "output": "Hi Ann"})
    assert learned(row) == "Hi Ann<|im_end|>"
    assert "".join(row.pieces).startswith("<|im_start|>user\nSay hi\n\nto Ann<|im_end|>")


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_every_answer_of_a_conversation_is_trained(tmp_path: Path, template: str) -> None:
    row = one(encoder(tmp_path, template), {"messages": TALK})
    assert learned(row) == "36<|im_end|>Thirty-six <|im_start|>assistant\n not a turn.  <|im_end|>"


def test_an_answer_with_weight_0_is_read_but_not_learned(tmp_path: Path) -> None:
    talk = [*TALK[:2], {**TALK[2], "weight": 0}, *TALK[3:]]
    row = one(encoder(tmp_path, CHATML), {"messages": talk})
    assert learned(row).startswith("Thirty-six")
    assert "36<|im_end|>" in "".join(row.pieces)


def test_a_template_without_a_generation_prompt_still_shows_its_answers(tmp_path: Path) -> None:
    row = one(encoder(tmp_path, LLAMA2), {"instruction": "Name a colour", "output": "blue"})
    assert learned(row) == " blue <|im_end|>"


def test_an_answer_the_template_rewrites_later_is_left_out_of_training(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm</think>first"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "<think>\nso</think>second"},
    ]
    row = one(encoder(tmp_path, REASONING), {"messages": talk})
    assert learned(row).endswith("so</think>second<|im_end|>")
    assert "hm" not in learned(row)


def test_a_broken_template_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chat template of the tokenizer is broken"):
        next(encoder(tmp_path, "{% for %}").encode([{"instruction": "a", "output": "b"}]))


def test_what_the_template_refuses_is_an_error_of_that_row_only(tmp_path: Path) -> None:
    picky = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML
    results = list(encoder(tmp_path, picky).encode([{"messages": TALK}, {"instruction": "a", "output": "b"}]))
    assert "no system turn" in str(results[0])
    assert isinstance(results[1], EncodedRow)


def test_a_base_model_without_template_gets_the_default_one(tmp_path: Path) -> None:
    made = encoder(tmp_path, None)
    row = one(made, {"instruction": "Greet", "output": "Hello"})
    assert "".join(row.pieces) == "<|im_start|>### Instruction:\nGreet\n\n### Response:\nHello<|im_end|>"
    assert learned(row) == "Hello<|im_end|>"
    assert made.prompt_text([{"role": "user", "content": "Greet"}]) == "".join(row.pieces)[: -len("Hello<|im_end|>")]


@pytest.mark.parametrize("template", [CHATML, LLAMA2, MARKED, None])
def test_ids_equal_those_of_transformers(tmp_path: Path, template: str | None) -> None:
    from transformers import AutoTokenizer

    made = encoder(tmp_path, template)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    for messages in (TALK[1:3], TALK):
        options = {"chat_template": made.chat_template, "return_dict": True}
        expected = reference.apply_chat_template(messages, **options)["input_ids"]
        assert one(made, {"messages": messages}).ids == expected
        prompt = reference.apply_chat_template(messages[:-1], add_generation_prompt=True, **options)["input_ids"]
        assert made.prompt_ids(messages[:-1]) == prompt


def test_pieces_join_to_the_rendered_text_whatever_the_characters(tmp_path: Path) -> None:
    text = "tab\t nbsp\u00a0 e\u0301 👩‍👩‍👧 日本語 \u2028 end"
    row = one(encoder(tmp_path, CHATML), {"instruction": text, "output": text})
    assert "".join(row.pieces) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>\n"
    assert learned(row) == f"{text}<|im_end|>"


def test_seq2seq_trains_the_whole_target_and_reads_the_source(tmp_path: Path) -> None:
    tiny_t5_tokenizer(tmp_path)
    made = Encoder(tmp_path, "seq2seq")
    row = one(made, {"instruction": "Translate", "input": "good day", "output": "guten Tag"})
    assert row.trained == [1] * len(row.ids)
    assert row.pieces[-1] == "</s>"
    assert row.source_pieces is not None
    assert "".join(row.source_pieces[:-1]) == "Translate\n\ngood day"
    assert row.source_ids == made.prompt_ids([{"role": "user", "content": "Translate\n\ngood day"}])


def test_cutting_keeps_the_beginning_and_an_encoders_closing_token(tmp_path: Path) -> None:
    tiny_t5_tokenizer(tmp_path)
    row = one(Encoder(tmp_path, "seq2seq"), {"instruction": "one two three four five", "output": "six seven"})
    short = row.cut(4)
    assert row.source_ids is not None
    assert short.ids == row.ids[:4]
    assert short.source_ids == [*row.source_ids[:3], row.source_ids[-1]]
    assert row.cut(0) is row
    assert row.cut(1000) is row


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (5, "a row must be a JSON object, this is a number"),
        ({"instruction": "a"}, "no 'output' in the row"),
        ({"instruction": "a", "output": " \n"}, "the output is empty"),
        ({"instruction": "", "input": "", "output": "b"}, "instruction and input are both empty"),
        ({"instruction": ["a"], "output": "b"}, "instruction must be text, this is a list"),
        ({"instruction": "a", "output": "\ud800"}, "half a character at position 0"),
        ({"messages": []}, "at least one question and one answer"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "role 'robot', it can be system, user, assistant"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no message has role 'assistant'"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
            "every answer has weight 0",
        ),
    ],
)
def test_a_bad_row_says_what_is_wrong_with_it(tmp_path: Path, row: object, reason: str) -> None:
    assert reason in problem(encoder(tmp_path, CHATML), row)


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        Encoder(tmp_path)


def run_program(folder: Path, lines: list[str], *options: str) -> list[dict[str, object]]:
    command = [sys.executable, encoding.__file__, "--tokenizer", str(folder), *options]
    done = subprocess.run(command, input="".join(lines), capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_program_counts_one_line_for_each_line_in_order(tmp_path: Path) -> None:
    made = encoder(tmp_path, CHATML)
    rows = [{"instruction": f"number {i}", "output": "word " * i} for i in range(1, 700)]
    lines = [json.dumps(row) + "\n" for row in rows]
    lines[3] = "{broken\n"
    counts = run_program(tmp_path, lines, "--max-length", "50")
    assert len(counts) == len(rows)
    assert "not JSON" in str(counts[3]["error"])
    last = one(made, rows[-1])
    assert counts[-1] == {
        "tokens": len(last),
        "trained": sum(last.trained),
        "cut_tokens": len(last) - 50,
        "cut_trained": sum(last.trained) - sum(last.cut(50).trained),
    }


def test_the_program_shows_masks(tmp_path: Path) -> None:
    made = encoder(tmp_path, CHATML)
    row = {"instruction": "Say é", "output": "é"}
    (shown,) = run_program(tmp_path, [json.dumps(row)], "--output", "masks")
    expected = one(made, row)
    assert shown == {"pieces": expected.pieces, "ids": expected.ids, "trained": expected.trained}


def test_the_program_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    check = "import sys, encoding; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    folder = Path(encoding.__file__).parent
    done = subprocess.run([sys.executable, "-c", check], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
