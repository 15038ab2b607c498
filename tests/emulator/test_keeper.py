"""The background work beside requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from emulator.inside import context
from llmtuner_local.emulator import adapters
from llmtuner_local.emulator.async_inference import AsyncInvocations
from llmtuner_local.emulator.keeper import Keeper
from llmtuner_local.emulator.operations import endpoints
from llmtuner_local.emulator.runtime import Runtime


def endpoint(name: str) -> dict[str, Any]:
    """An endpoint in service whose only instance has no container."""
    variant = {"VariantName": "v", "DesiredWeight": 1.0, "DesiredInstanceCount": 1, "_startup": 1, "_containers": []}
    return {
        "EndpointName": name,
        "EndpointArn": f"arn:aws:sagemaker:us-east-1:000000000000:endpoint/{name}",
        "EndpointConfigName": name,
        "EndpointStatus": "InService",
        "CreationTime": 1.0,
        "LastModifiedTime": 1.0,
        "_settings": {},
        "_variants": [variant],
        "_shadows": [],
        "_replicas": [{"variant": "v", "id": "i-1", "state": "InService", "offset": 0, "bare": True}],
    }


def test_others_are_followed_while_a_container_loads_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = context(tmp_path)

    async def scenario() -> None:
        loading, gone = asyncio.Event(), asyncio.Event()

        async def load(_: object) -> None:
            loading.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(adapters, "keep", load)
        runtime = Runtime(made)
        monkeypatch.setattr(runtime, "forget_gone", lambda: made.store.get(endpoints.KIND, "ep") or gone.set())
        keeping = asyncio.create_task(Keeper(made, runtime, AsyncInvocations(made, runtime)).run())
        await loading.wait()
        made.store.put(endpoints.KIND, "ep", endpoint("ep") | {"EndpointStatus": "Deleting"})
        gone.clear()  # before it was there
        await asyncio.wait_for(gone.wait(), 10)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await runtime.close()

    asyncio.run(scenario())
    made.store.close()


def test_what_a_request_changes_while_others_are_looked_at_stays_changed(tmp_path: Path) -> None:
    made = context(tmp_path)
    for name in ("looked-at", "deleted-meanwhile"):
        made.store.put(endpoints.KIND, name, endpoint(name))

    async def scenario() -> None:
        runtime = Runtime(made)
        keeper = Keeper(made, runtime, AsyncInvocations(made, runtime))
        following = asyncio.create_task(keeper._follow())
        await asyncio.sleep(0)  # it has looked at the first one, and lets requests go first
        endpoints.delete(made, {"EndpointName": "deleted-meanwhile"})
        await following
        await runtime.close()

    asyncio.run(scenario())
    assert [item["EndpointName"] for item in made.store.all(endpoints.KIND)] == ["looked-at"]
