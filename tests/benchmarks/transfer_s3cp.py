"""Upload and download of one large file against `aws s3 cp`, all to and from the local cloud, in turn, and after a kill.

    python tests/benchmarks/transfer_s3cp.py --megabytes 5000 --rounds 2 [--aws path/to/aws]

`aws` is taken from the path, else from an environment of its own that is made in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from llmtuner_kit import aws, checksums, downloads, sending
from llmtuner_kit.settings import StartSettings
from llmtuner_kit.workspace import Workspace, open_workspace

# A transfer in a process of its own that tells the bytes of each request before it is sent; argv: way, user, key, file.
_TRANSFER = """
import os, sys
from pathlib import Path
from llmtuner_kit import downloads
from llmtuner_kit.sending import Sender
from llmtuner_kit.settings import StartSettings
from llmtuner_kit.workspace import open_workspace

class Telling:
    def __init__(self, client):
        self.client = client
    def __getattr__(self, name):
        return getattr(self.client, name)
    def upload_part(self, **options):
        os.write(1, f"{len(options['Body'])}\\n".encode())
        return self.client.upload_part(**options)
    def get_object(self, **options):
        start, end = options["Range"].removeprefix("bytes=").split("-")
        os.write(1, f"{int(end) + 1 - int(start)}\\n".encode())
        return self.client.get_object(**options)

way, user, key, file = sys.argv[1:]
workspace = open_workspace(StartSettings(user_id=user))
client = Telling(workspace.aws.client("s3"))
if way == "up":
    with Sender(client, workspace.bucket) as sender:
        sender.send([(key, Path(file))], key)
else:
    downloads.fetch(client, workspace.bucket, key, Path(file))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--aws", default=shutil.which("aws") or "")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"LLMTUNER_LOCALSTACK_PORT": "0", "LLMTUNER_SAGEMAKER_PORT": "0", "LLMTUNER_HOME": name + "/home"}
        try:
            _measure(folder, options.megabytes, options.rounds, options.aws or _install_aws(folder))
        finally:
            subprocess.run([sys.executable, "-m", "llmtuner_local", "down"], check=True, stdout=subprocess.DEVNULL)


def _install_aws(folder: Path) -> str:
    subprocess.run([sys.executable, "-m", "venv", str(folder / "aws")], check=True)
    subprocess.run([str(folder / "aws/bin/pip"), "install", "--quiet", "awscli"], check=True)
    return str(folder / "aws" / "bin" / "aws")


def _measure(folder: Path, megabytes: int, rounds: int, program: str) -> None:
    file = folder / "rows.jsonl"
    block = os.urandom(1 << 20)
    with file.open("wb") as opened:
        for number in range(megabytes * 1_000_000 >> 20):
            opened.write(number.to_bytes(8) + block[8:])
    workspace = open_workspace(StartSettings(user_id=f"bench-{uuid.uuid4().hex[:8]}"))
    client, prefix = workspace.aws.client("s3"), workspace.paths.root
    cloud = aws.start_local_cloud()
    environment = os.environ | {
        "AWS_CONFIG_FILE": cloud["config_file"],
        "AWS_SHARED_CREDENTIALS_FILE": cloud["credentials_file"],
        "AWS_PROFILE": cloud["profile"],
    }

    def ours_up() -> None:
        with sending.Sender(client, workspace.bucket) as sender:
            sender.send([(prefix + "ours", file)], prefix)

    def ours_down() -> None:
        downloads.fetch(client, workspace.bucket, prefix + "ours", folder / "ours")

    def theirs(*ends: str) -> None:
        subprocess.run([program, "s3", "cp", "--only-show-errors", *ends], env=environment, check=True)

    there = f"s3://{workspace.bucket}/{prefix}theirs"
    ways: list[tuple[str, Callable[[], None], Callable[[], None]]] = [
        ("upload", ours_up, lambda: theirs(str(file), there)),
        ("download", ours_down, lambda: theirs(there, str(folder / "theirs"))),
    ]
    size = file.stat().st_size
    print(f"{size / 1e6:,.0f} MB             llmtuner_kit          aws s3 cp         ratio")
    for word, our, their in ways:
        for _ in range(rounds):
            mine, other = _seconds(our), _seconds(their)
            speeds = f"{mine:7.1f} s {size / mine / 1e6:6.0f} MB/s {other:7.1f} s {size / other / 1e6:6.0f} MB/s"
            print(f"{word:16} {speeds}   {other / mine:5.2f}x")
            for made in ("ours", "theirs"):
                (folder / made).unlink(missing_ok=True)
            if word == "upload":
                client.delete_object(Bucket=workspace.bucket, Key=prefix + "ours")
        ours_up()
    for way in ("up", "down"):
        _after_a_kill(workspace, file, way, folder / "killed")


def _after_a_kill(workspace: Workspace, file: Path, way: str, copy: Path) -> None:
    """Kill a transfer at a random moment, finish it, and count what went over the wire a second time."""
    size, key = file.stat().st_size, f"{workspace.paths.root}ours"
    client = workspace.aws.client("s3")
    if way == "up":
        client.delete_object(Bucket=workspace.bucket, Key=key)
    stop_at = random.randint(size // 10, size * 9 // 10)
    command = [sys.executable, "-c", _TRANSFER, way, workspace.user_id, key, str(file if way == "up" else copy)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    begun = 0
    while begun < stop_at:
        begun += int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    begun += sum(int(line) for line in child.communicate()[0].splitlines())
    if way == "up":
        with sending.Sender(client, workspace.bucket) as sender:
            second = sender.send([(key, file)], key)[0].bytes_sent
    else:
        second = downloads.fetch(client, workspace.bucket, key, copy).bytes_received
    part, workers = checksums.part_size(size), sending.THREADS if way == "up" else downloads.THREADS
    twice = (begun + second - size) / part
    print(f"{way:4} killed at {begun / 1e6:,.0f} MB: {twice:.1f} parts went twice; {workers} workers, one part each")


def _seconds(act: Callable[[], None]) -> float:
    started = time.monotonic()
    act()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
