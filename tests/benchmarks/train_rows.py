"""What the training benchmarks train on: the same rows, in the same steps, on every side."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TICKETS = ROOT / "notebooks" / "samples" / "support-tickets" / "tickets.csv"
DOCUMENTS = ROOT / "notebooks" / "samples" / "product-docs"
LONGEST = 512
SEED = 42

sys.path.insert(0, str(ROOT / "train_src"))


def instruction_rows() -> list[dict[str, str]]:
    """Tickets with their replies, paragraphs of a manual, and conversations of two tickets: 40 to 512 tokens."""
    with TICKETS.open(encoding="utf-8", newline="") as file:
        tickets = [{"instruction": each["ticket"], "output": each["reply"]} for each in csv.DictReader(file)]
    rows = tickets[0::2]
    for one, two in zip(tickets[1::4], tickets[3::4], strict=False):
        question = f"Answer both letters.\n\n{one['instruction']}\n\n{two['instruction']}"
        rows.append({"instruction": question, "output": f"{one['output']}\n\n{two['output']}"})
    for page in sorted(DOCUMENTS.glob("[0-9]*.md")):
        title, *sections = page.read_text(encoding="utf-8").split("\n## ")
        for section in sections:
            heading, _, body = section.partition("\n")
            question = f"What does the manual say about {heading.strip().lower()} ({title.splitlines()[0][2:]})?"
            rows.append({"instruction": question, "output": body.strip()})
    return [row for row in rows if row["output"]]


def write_channel(base: Path, model: Path, **hyperparameters: Any) -> None:
    """A SageMaker base folder with these rows as channel `train`."""
    data = base / "input" / "data" / "train"
    data.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in instruction_rows())
    (data / "train.jsonl").write_text(lines, encoding="utf-8")
    (base / "input" / "data" / "model").symlink_to(model.resolve())
    config = base / "input" / "config"
    config.mkdir()
    text = json.dumps({name: str(value) for name, value in hyperparameters.items()})
    (config / "hyperparameters.json").write_text(text, encoding="utf-8")


def planned_steps(model: Path, family: str, steps: int, tokens: int, folder: Path) -> list[list[Any]]:
    """The encoded rows of each step, exactly as train.py takes them."""
    from data import load_channel
    from encoding import Encoder
    from sampler import iterate_steps

    rows = load_channel(folder, Encoder(model, family), max_length=LONGEST, long_rows="cut").rows
    plan = iterate_steps(rows, batch_tokens=tokens, seed=SEED)
    return [[rows[number] for number in next(plan)] for _ in range(steps)]


def step_tokens(steps: list[list[Any]]) -> list[int]:
    """Real tokens of each step, padding not counted."""
    return [sum(map(len, rows)) for rows in steps]


def labels_of(row: Any) -> list[int]:
    """The row's ids where it is trained on, -100 elsewhere."""
    return np.where(row.trained, row.ids, -100).tolist()
