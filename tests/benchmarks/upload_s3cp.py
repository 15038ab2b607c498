"""Upload of one large file against `aws s3 cp`, both to the local cloud, side by side.

python tests/benchmarks/upload_s3cp.py --megabytes 2000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

from llmtuner_kit import aws, runs, uploads
from llmtuner_kit.settings import UploadSettings
from llmtuner_kit.workspace import open_workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000)
    size = parser.parse_args().megabytes * 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("wb") as file:
            block = os.urandom(1 << 20)
            for number in range(size >> 20):
                file.write(number.to_bytes(8) + block[8:])
        settings = UploadSettings(user_id=f"bench-{uuid.uuid4().hex[:8]}", run_name="bench", source=str(path))
        workspace = open_workspace(settings)
        runs.open_run(workspace, "bench", create=True)
        started = time.monotonic()
        uploads.upload(workspace, settings)
        ours = time.monotonic() - started
        started = time.monotonic()
        assert uploads.upload(workspace, settings).bytes_sent == 0
        again = time.monotonic() - started
        cloud = aws.start_local_cloud()
        environment = os.environ | {
            "AWS_CONFIG_FILE": cloud["config_file"],
            "AWS_SHARED_CREDENTIALS_FILE": cloud["credentials_file"],
            "AWS_PROFILE": cloud["profile"],
        }
        target = f"s3://{workspace.bucket}/users/{settings.user_id}/uploads/cp/rows.jsonl"
        started = time.monotonic()
        subprocess.run(["aws", "s3", "cp", "--only-show-errors", str(path), target], env=environment, check=True)
        theirs = time.monotonic() - started
        megabytes = path.stat().st_size / 1e6
        print(f"llmtuner_kit  {ours:6.1f} s  {megabytes / ours:6.0f} MB/s   unchanged, again: {again:.1f} s")
        print(f"aws s3 cp     {theirs:6.1f} s  {megabytes / theirs:6.0f} MB/s")


if __name__ == "__main__":
    main()
