"""Script mode through the SDK's torchrun driver: every rank tells who it is, the first writes the model."""

import argparse
import json
import os
from pathlib import Path

import kit_probe  # from requirements.txt

options = argparse.ArgumentParser()
options.add_argument("--epochs", type=int)
options.add_argument("--note")
given = options.parse_args()
rank, world = os.environ["RANK"], os.environ["WORLD_SIZE"]
rows = (Path(os.environ["SM_CHANNEL_TRAIN"]) / "rows.jsonl").read_text().splitlines()
print(f"rank {rank} of {world}: {len(rows)} rows, {given.epochs} epochs, note {given.note!r}, probe {kit_probe.VALUE}")
if rank == "0":
    (Path(os.environ["SM_MODEL_DIR"]) / "weights.json").write_text(json.dumps({"epochs": given.epochs}))
