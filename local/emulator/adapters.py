"""LoRA adapters as inference components: their files are brought to the copies of the base, whose container loads them.

The container's side: `POST /adapters {"name", "src", "preload", "pin"}` and `DELETE /adapters/{name}`. A request for an
adapter goes to the base's container with the header X-Amzn-SageMaker-Adapter-Identifier.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.operations import inference_components, replicas
from llmtuner_local.emulator.shim import cloud, trees

log = logging.getLogger("llmtuner_local.emulator")
KIND = inference_components.KIND
_LOAD_SECONDS = 120.0
_DONE = (200, 201, 204)


class AdapterError(Exception):
    """The container, or S3, refused an adapter; the words say why."""


async def keep(context: Context) -> None:
    """Load every adapter into the copies that lack it, and unload those that are deleted."""
    for name, _ in context.store.items(KIND):
        document = context.store.get(KIND, name)  # as it is now: loading the one before it may have taken a minute
        if document and "_base" in document:
            await _keep_one(context, document)


async def _keep_one(context: Context, document: dict[str, Any]) -> None:
    name, base = document["InferenceComponentName"], context.store.get(KIND, document["_base"])
    engine = base["_containers"][0].get("engine") if base else None
    copies = [item for item in (base or {"_copies": []})["_copies"] if item["state"] == "InService"]
    loaded = {item["id"]: item["port"] for item in copies if document["_loaded"].get(item["id"]) == item["port"]}
    if document["InferenceComponentStatus"] == "Deleting":
        for copy in copies:
            if copy["id"] in loaded:
                await asyncio.to_thread(_unload, copy["port"], name)
        _store(context, document, {"_loaded": {}})
        return
    if document["InferenceComponentStatus"] == "Failed":
        return
    for copy in copies:
        if copy["id"] not in loaded:
            try:
                await asyncio.to_thread(_load, context, document, copy, engine or context.mode)
            except AdapterError as error:
                log.warning("adapter %s: %s", name, error)
                if document["InferenceComponentStatus"] == "Creating":
                    _store(
                        context, document, {"InferenceComponentStatus": "Failed", "FailureReason": str(error)[:1024]}
                    )
                return
            loaded[copy["id"]] = copy["port"]
    changes: dict[str, Any] = {"_loaded": loaded}
    if document["InferenceComponentStatus"] == "Creating" and loaded:
        changes["InferenceComponentStatus"] = "InService"
    _store(context, document, changes)


def _store(context: Context, document: dict[str, Any], changes: dict[str, Any]) -> None:
    """Change what the adapter is now: it may have been deleted while a container was loading it."""
    current = context.store.get(KIND, document["InferenceComponentName"])
    if current is None or all(current.get(key) == value for key, value in changes.items()):
        return
    if current["InferenceComponentStatus"] == "Deleting":
        changes = {key: value for key, value in changes.items() if key == "_loaded"}
    elif "InferenceComponentStatus" in changes:
        changes["LastModifiedTime"] = context.now()
    context.store.put(KIND, document["InferenceComponentName"], current | changes)


def _load(context: Context, document: dict[str, Any], copy: dict[str, Any], mode: str) -> None:
    """Unpack the adapter's files where the container sees them, and tell it. Blocks."""
    name, uri = document["InferenceComponentName"], document["_specification"]["Container"]["ArtifactUrl"]
    place = replicas.folder(context, document["EndpointName"], copy)
    inside = Path("opt-ml") / "adapters" / name
    archive = place / f"adapter-{name}.tar.gz"
    try:
        cloud.client("s3", context.localstack_url).download_file(*cloud.split_uri(uri), str(archive))
        trees.remove(place / inside)  # of an earlier adapter of this name
        trees.unpack(archive, trees.make_folder(place, str(inside)))
    except Exception as error:
        # S3's, the file system's and tarfile's errors alike: the adapter cannot be had, and the reason is told.
        raise AdapterError(f"The adapter's files at {uri} cannot be brought to the container: {error}") from error
    finally:
        archive.unlink(missing_ok=True)
    source = str(place / inside) if mode == "mapped" else f"/opt/ml/adapters/{name}"
    body = json.dumps({"name": name, "src": source, "preload": True, "pin": False}).encode()
    status, text = _call(copy["port"], "POST", "/adapters", body)
    if status not in _DONE and status != 409:  # 409: it is loaded already
        raise AdapterError(f"The container refused to load the adapter ({status}): {text}")


def _unload(port: int, name: str) -> None:
    _call(port, "DELETE", f"/adapters/{name}", b"")


def _call(port: int, method: str, path: str, body: bytes) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LOAD_SECONDS)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()
