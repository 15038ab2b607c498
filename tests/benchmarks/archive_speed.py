"""How fast a model's archive is packed and unpacked, beside tarfile's own gzip.

    python tests/benchmarks/archive_speed.py [--model FOLDER] [--rounds N]

Packs a model folder (default: the embedded SmolLM2-135M, 270 MB of bf16 weights) as the emulator packs a job's output,
unpacks it as the kit does, and does both with the standard library's gzip at its fastest level.
"""

import argparse
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from llmtuner_local.emulator.shim import trees

from llmtuner_kit import packing

MODEL = Path.home() / ".cache" / "llmtuner" / "models" / "smollm2-135m-instruct"


def best(work: Callable[[], None], rounds: int) -> float:
    """The shortest of some runs, in seconds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    files = {path.name: path for path in sorted(options.model.iterdir()) if path.is_file()}
    size = sum(path.stat().st_size for path in files.values())
    with tempfile.TemporaryDirectory() as scratch:
        fast, plain, folder = (Path(scratch) / name for name in ("fast.tar.gz", "plain.tar.gz", "out"))

        def pack_plain() -> None:
            with tarfile.open(plain, "w:gz", compresslevel=1) as archive:
                for name, path in files.items():
                    archive.add(path, arcname=name)

        def unpack_plain() -> None:
            with tarfile.open(plain) as archive:
                archive.extractall(folder, filter="data")

        def pack_fast() -> None:
            trees.pack(trees.entries(options.model.parent, options.model.name), fast)

        rows = [
            ("kit", fast, pack_fast, lambda: packing.unpack(fast, folder)),
            ("tarfile", plain, pack_plain, unpack_plain),
        ]
        print(f"{size / 1e6:.0f} MB in {len(files)} files, best of {options.rounds}")
        print(f"{'':8} {'pack s':>8} {'unpack s':>9} {'MB':>6}")
        for name, archive, pack, unpack in rows:
            packed, unpacked = best(pack, options.rounds), best(unpack, options.rounds)
            print(f"{name:8} {packed:8.2f} {unpacked:9.2f} {archive.stat().st_size / 1e6:6.0f}")


if __name__ == "__main__":
    main()
