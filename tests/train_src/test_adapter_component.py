"""LoRA adapters as inference components on a real archive and its real server, in the local cloud."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from emulator.components import component, delete, make, needs
from emulator.conftest import ROLE, Cloud, clients
from emulator.hosting import IMAGE, deploy, remove, variant
from safetensors.torch import load_file, save_file

QUESTION = {"inputs": "What is the colour of thing 3?", "parameters": {"max_new_tokens": 12}}


def packed(folder: Path) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz", compresslevel=1) as made:
        made.add(folder, arcname=".")
    return data.getvalue()


def without_effect(adapter: Path, folder: Path) -> Path:
    """A copy of an adapter that adds nothing to the base model."""
    shutil.copytree(adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    nothing = {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in weights.items()}
    assert nothing.keys() == weights.keys()
    save_file(nothing, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def answer(cloud: Cloud, endpoint: str, name: str, **more: Any) -> Any:
    body = json.dumps(QUESTION | more).encode()
    found = cloud.runtime.invoke_endpoint(
        EndpointName=endpoint, InferenceComponentName=name, Body=body, ContentType="application/json"
    )
    return json.loads(found["Body"].read())


def test_adapters_answer_beside_their_base_on_the_server_of_a_real_archive(
    cloud: Path, finished: dict[str, Path], tmp_path: Path
) -> None:
    made, archive = clients(cloud), finished["causal"] / "model"
    endpoint = deploy(made, variant(None), ExecutionRoleArn=ROLE)
    uri = made.put(f"models/{endpoint}.tar.gz", packed(archive))
    container = {"Image": IMAGE, "ArtifactUrl": uri, "Environment": {"OMP_NUM_THREADS": "1"}}
    base = make(made, endpoint, {"Container": container, "ComputeResourceRequirements": needs()})
    assert component(made, base)["InferenceComponentStatus"] == "InService", component(made, base)

    def add(folder: Path) -> str:
        adapter_uri = made.put(f"adapters/{made.name()}.tar.gz", packed(folder))
        specification = {"BaseInferenceComponentName": base, "Container": {"ArtifactUrl": adapter_uri}}
        name = make(made, endpoint, specification, copies=None)
        assert component(made, name)["InferenceComponentStatus"] == "InService", component(made, name)
        return name

    same, idle = add(archive / "adapter"), add(without_effect(archive / "adapter", tmp_path / "idle"))
    tuned, untuned = answer(made, endpoint, base), answer(made, endpoint, base, model="base")
    assert tuned != untuned
    assert answer(made, endpoint, same) == tuned
    assert answer(made, endpoint, idle) == untuned
    delete(made, same)
    assert answer(made, endpoint, idle) == untuned
    delete(made, idle)
    delete(made, base)
    remove(made, endpoint)
