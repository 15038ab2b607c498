"""The fault `s3-outage` inside LocalStack: S3 answers as AWS's does when it is overloaded."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any


def install() -> None:
    """Refuse S3 requests while the fault is set."""
    from localstack.aws import handlers
    from localstack.aws.api import CommonServiceException

    _share_package()
    from llmtuner_local.emulator.faults import Faults

    faults = Faults(Path(os.environ["LLMTUNER_FAULTS_FOLDER"]))

    def refuse(_chain: Any, context: Any, _response: Any) -> None:
        if context.service is None or context.service.service_name != "s3":
            return
        if faults.take("s3-outage", (context.service_request or {}).get("Bucket", "")):
            raise CommonServiceException("SlowDown", "Please reduce your request rate.", status_code=503)

    handlers.serve_custom_service_request_handlers.append(refuse)


def _share_package() -> None:
    """Make `llmtuner_local` importable in LocalStack's environment, where it is not installed."""
    folder = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location(
        "llmtuner_local", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["llmtuner_local"] = module
    spec.loader.exec_module(module)
