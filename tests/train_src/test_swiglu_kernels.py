"""The GPU's kernels give what PyTorch's own steps give, also where sizes do not fill a tile."""

import json
import os
import subprocess
import sys
from pathlib import Path

SIZES = [(64, 128, 16), (70, 200, 4), (33, 300, 20), (1, 5, 1)]  # tokens, width, rank


def test_each_kernel_equals_the_steps() -> None:
    command = [sys.executable, str(Path(__file__).with_name("kernels_driver.py")), *map(json.dumps, SIZES)]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, stdout=subprocess.PIPE, check=True, timeout=240
    )
    differences = json.loads(done.stdout)
    assert [len(each) for each in differences] == [4] * len(SIZES)
    assert max(max(each) for each in differences) < 1e-5
