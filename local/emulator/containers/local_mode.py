"""Writes the compose file of a job or a replica, with SageMaker local mode's own container classes.

    python -m llmtuner_local.emulator.containers.local_mode < wanted.json

A process of its own because the SageMaker SDK takes seconds and 200 MB to import: it is started early, imports, then
waits for its input. Local mode lays out images, entry points, /opt/ml, environment and hosts; what a supervisor needs
besides (labels, names, one network a job, ports of loopback only, all of /opt/ml) is laid over it here.

The input: `kind` ("train" or "serve"), `name`, `image`, `root` (where the compose file goes), `hosts` (name -> its
/opt/ml: for training the folder of that name in the root), `environment`, `entrypoint`, `arguments`, `network` ("" for the engine's bridge), `labels`, `container_names`
and `read_only` (host -> folders below /opt/ml). Of a serving container, PORT_VARIABLE names the port when it is started.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PORT_VARIABLE = "LLMTUNER_PORT"
COMPOSE_FILE = "docker-compose.yaml"  # the SDK's name for it


def compose(wanted: dict[str, Any]) -> dict[str, Any]:
    """The content of the compose file, as local mode makes it and with our additions."""
    content = _training(wanted) if wanted["kind"] == "train" else _serving(wanted)
    content.pop("version", None)
    content.pop("networks", None)
    network = wanted["network"]
    if network:
        content["networks"] = {"job": {"external": True, "name": network}}
    for host, service in content["services"].items():
        base = wanted["hosts"][host]
        # The whole /opt/ml first: channels, checkpoints and home lie in it; local mode mounts parts of it again.
        own = [f"{base}:/opt/ml", *(f"{base}/{name}:/opt/ml/{name}:ro" for name in wanted["read_only"].get(host, []))]
        service["volumes"] = own[:1] + [item for item in service["volumes"] if item not in own] + own[1:]
        service["labels"] = wanted["labels"]
        service["hostname"] = host
        service["container_name"] = wanted["container_names"][host]
        service["tty"] = False  # a terminal would turn \n into \r\n and make programs draw colours
        service.pop("networks", None)
        if network:
            service["networks"] = {"job": {"aliases": [host]}}
        else:
            service["network_mode"] = "bridge"
        # Compose would put variables of this machine where a value has a dollar sign.
        for name in ("environment", "entrypoint", "command"):
            if name in service:
                service[name] = _escaped(service[name])
    return content


def _training(wanted: dict[str, Any]) -> dict[str, Any]:
    from sagemaker.train.local.local_container import _LocalContainer

    entrypoint, arguments = wanted["entrypoint"], wanted["arguments"]
    container = _LocalContainer(
        training_job_name=wanted["name"],
        instance_type="local_cpu",
        instance_count=len(wanted["hosts"]),
        image=wanted["image"],
        container_root=wanted["root"],
        input_data_config=[],  # staged already, below each host's input folder
        environment=wanted["environment"],
        hyper_parameters={},
        container_entrypoint=entrypoint or None,
        # Local mode can add arguments to an entry point only; without one they are the command.
        container_arguments=arguments if entrypoint else None,
    )
    content = container._generate_compose_file(container.environment, [])
    if arguments and not entrypoint:
        for service in content["services"].values():
            service["command"] = arguments
    return content


def _serving(wanted: dict[str, Any]) -> dict[str, Any]:
    from sagemaker.core.local.image import _SageMakerContainer

    # A session for settings alone: no credentials are looked for, and nothing is sent to AWS.
    port = f"127.0.0.1:${{{PORT_VARIABLE}}}"
    session = SimpleNamespace(boto_session=None, config={"local": {"serving_port": port}})
    container = _SageMakerContainer("local", 1, wanted["image"], session)
    container.hosts = list(wanted["hosts"])
    container.container_root = wanted["root"]
    return container._generate_compose_file("serve", additional_env_vars=wanted["environment"])


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("$", "$$")
    return [_escaped(item) for item in value]


def main() -> None:
    """Import, read what is wanted, write the compose file."""
    # jsonschema's optional checker of IRIs takes as long to import as all the rest; local mode checks none.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    import sagemaker.core.local.image
    import sagemaker.train.local.local_container  # noqa: F401 - imported before the input is there
    import yaml

    logging.disable(logging.INFO)
    text = sys.stdin.read()
    if not text:
        return  # the supervisor has ended before it needed containers
    wanted = json.loads(text)
    content = compose(wanted)
    (Path(wanted["root"]) / COMPOSE_FILE).write_text(yaml.safe_dump(content, sort_keys=False))


if __name__ == "__main__":
    main()
