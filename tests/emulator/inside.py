"""An emulator inside the test's own process: for tests of its parts, and to add operations to it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import uvicorn
from llmtuner_local.emulator.app import App
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.gate import BoundedProtocol
from llmtuner_local.emulator.store import Store

NOWHERE = "http://127.0.0.1:9"  # no LocalStack: what needs one fails


def context(home: Path) -> Context:
    home.mkdir(parents=True, exist_ok=True)
    return Context(home, Store(home / "sagemaker.db"), NOWHERE)


@contextmanager
def served(home: Path) -> Iterator[tuple[Context, Any]]:
    """A context and a boto3 client of the emulator that serves it."""
    made = context(home)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(App(made), http=BoundedProtocol, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        try:
            yield made, boto3.client("sagemaker", endpoint_url=url, region_name="us-east-1", **keys)
        finally:
            server.should_exit = True
            thread.join()
            made.store.close()
