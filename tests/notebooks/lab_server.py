"""JupyterLab on a copy of the notebooks, as a person would start it, for those that look at it in a browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmtuner_local.servers import answers

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_START_SECONDS = 60


@contextmanager
def running(folder: Path, *, without: str = "", **environment: str) -> Iterator[str]:
    """The server's address; the notebooks and all that Jupyter keeps are in `folder`. `without`: a glob not copied."""
    ignored = shutil.ignore_patterns(without) if without else None
    shutil.copytree(NOTEBOOKS, folder / "notebooks", ignore=ignored)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--IdentityProvider.token=", "--ServerApp.port_retries=0"]
    command.append(f"--ServerApp.root_dir={folder / 'notebooks'}")
    if os.geteuid() == 0:
        command.append("--allow-root")
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_WORKSPACES_DIR": str(folder / "ws"), "JUPYTER_PATH": f"{sys.prefix}/share/jupyter"}
    log = folder / "lab.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, env=os.environ | own | environment, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not answers(f"{url}/api/status"):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)  # a server gives no other sign of being ready than its answer
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)
