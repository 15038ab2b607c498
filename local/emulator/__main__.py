"""Run the emulator: `python -m llmtuner_local.emulator --home DIR --port N --localstack-url URL`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import uvicorn
from llmtuner_local.emulator import wire
from llmtuner_local.emulator.app import App
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.direct_door import DirectProtocol
from llmtuner_local.emulator.store import Store
from llmtuner_local.processes import keep_lock


def main() -> None:
    """Serve on 127.0.0.1 until SIGTERM."""
    keep_lock()
    parser = argparse.ArgumentParser(prog="python -m llmtuner_local.emulator")
    parser.add_argument("--home", type=Path, required=True, help="state folder of the local cloud")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--localstack-url", required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for name in ("botocore", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    wire.service_model("sagemaker")  # read before the first request, not during it
    store = Store(options.home / "sagemaker.db")
    context = Context(options.home, store, options.localstack_url)
    config = uvicorn.Config(
        App(context),
        host="127.0.0.1",
        port=options.port,
        access_log=False,
        http=DirectProtocol,
        proxy_headers=False,
        log_config=None,  # ours is set already; uvicorn's own would drop it
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
