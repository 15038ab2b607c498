"""A host's processes and the signals they get."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "train_src"


def test_a_stop_signal_reaches_processes_whose_python_is_still_starting(tmp_path: Path) -> None:
    """Sent before either process can take it: both take it afterwards, and neither is killed."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        textwrap.dedent(f"""
            import os, pathlib, sys
            os.write(1, b"started\\n")
            os.read(0, 1)
            sys.path.insert(0, {str(SOURCE)!r})
            from folders import Folders
            from stopping import Stop
            os.write(1, b"asked: %d\\n" % Stop(Folders(pathlib.Path({str(tmp_path)!r}))).asked)
        """)
    )
    parent = textwrap.dedent(f"""
        import pathlib, sys
        sys.path.insert(0, {str(SOURCE)!r})
        import launch
        environments = [dict(RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
        sys.exit(launch.run_workers(pathlib.Path({str(worker)!r}), environments))
    """)
    command = [sys.executable, "-c", parent]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stdin
    assert running.stdout
    assert [running.stdout.readline() for _ in range(3)][1:] == ["started\n", "started\n"]
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate("go", timeout=60)
    assert (running.returncode, output.count("asked: 1\n")) == (0, 2), output
