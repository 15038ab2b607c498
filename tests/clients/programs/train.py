"""The training program of the journeys: reads a channel, prints a metric, leaves a model with a server in it."""

import json
import shutil
from pathlib import Path

ML = Path("/opt/ml")
rows = (ML / "input/data/train/rows.jsonl").read_text().splitlines()
parameters = json.loads((ML / "input/config/hyperparameters.json").read_text())
for epoch in range(int(parameters["epochs"])):
    print(f"epoch={epoch} loss={1 / (epoch + 1):.3f};", flush=True)
(ML / "model/code").mkdir()
shutil.copy(ML / "input/data/code/serve.py", ML / "model/code/serve.py")
(ML / "model/weights.json").write_text(json.dumps({"rows": len(rows)}))
