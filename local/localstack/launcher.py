"""Starts LocalStack with what the kit needs changed. Run by the Python of LocalStack's own environment.

Changed at its seams, before LocalStack imports them:
- the server listens on 127.0.0.1 only (its Twisted server takes every interface whatever it is told), and ends when it
  cannot (it would live on without a port, and whoever has the port would be taken for it);
- objects are kept in files below the state folder and survive kill -9 (`persistence.py` beside this file);
- nothing is written outside of the state folder;
- SimulatePrincipalPolicy evaluates policies (`simulation.py`); the fault `s3-outage` acts (`outage.py`);
- FilterLogEvents heeds the prefix of stream names (`log_streams.py`).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def listen_on_loopback_only() -> None:
    """Make every IPv4 server endpoint of Twisted bind 127.0.0.1, or end the process."""
    from twisted.internet import endpoints

    class LoopbackEndpoint(endpoints.TCP4ServerEndpoint):
        def __init__(self, reactor: Any, port: int, backlog: int = 50, interface: str = "127.0.0.1") -> None:
            super().__init__(reactor, port, backlog, interface or "127.0.0.1")

        def listen(self, factory: Any) -> Any:
            return super().listen(factory).addErrback(end)

    def end(failure: Any) -> None:
        print(f"LocalStack cannot listen: {failure.getErrorMessage()}", file=sys.stderr, flush=True)
        os._exit(1)

    endpoints.TCP4ServerEndpoint = LoopbackEndpoint


def keep_lock() -> None:
    """As `llmtuner_local.processes.keep_lock`, which this environment has not: the lock says that we live."""
    if lock := os.environ.pop("LLMTUNER_LOCK_FD", ""):
        os.set_inheritable(int(lock), False)
        os.pwrite(int(lock), json.dumps({"pid": os.getpid()}).encode(), 0)


def main() -> None:
    """Patch, then hand over to LocalStack's own main."""
    keep_lock()
    listen_on_loopback_only()
    import log_streams
    import outage
    import persistence
    import simulation

    persistence.install()
    simulation.install()
    outage.install()
    log_streams.install()
    from localstack.runtime.main import main as run

    run()


if __name__ == "__main__":
    main()
