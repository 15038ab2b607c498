"""/opt/ml as a training container finds it: folders, config files, channels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.shim import channels
from llmtuner_local.emulator.shim.channels import Channel
from llmtuner_local.emulator.shim.hosts import Host, resource_config
from llmtuner_local.emulator.shim.pipes import Pipe

FOLDERS = ("input/config", "input/data", "model", "output/data", "code", "checkpoints")


def stage(s3: Any, request: dict[str, Any], hosts: list[Host], check: Callable[[], None]) -> list[Pipe]:
    """Fill /opt/ml of every host; the streams of Pipe channels, which the caller closes."""
    pipes: list[Pipe] = []
    found = channels.channels(request)
    items = {channel.name: channel.items(s3) for channel in found if channel.mode != "Pipe"}
    for host in hosts:
        for name in FOLDERS:
            (host.base / name).mkdir(parents=True, exist_ok=True)
        mine = [channel for channel in found if channel.on(host.group)]
        config = host.base / "input" / "config"
        write_json(config / "hyperparameters.json", request.get("HyperParameters", {}))
        write_json(config / "inputdataconfig.json", {channel.name: channel.config() for channel in mine})
        write_json(config / "resourceconfig.json", resource_config(host, hosts))
        for channel in mine:
            number, count = _place(host, hosts, channel)
            data = host.base / "input" / "data"
            if channel.mode == "Pipe":
                pipes.append(Pipe(s3, channel, data, number, count))
            else:
                share = channels.share(items[channel.name], channel.distribution, number, count)
                channels.download(s3, share, data / channel.name, check)
    return pipes


def _place(host: Host, hosts: list[Host], channel: Channel) -> tuple[int, int]:
    """The host's number among those that get the channel, and how many these are."""
    getting = [item.name for item in hosts if channel.on(item.group)]
    return getting.index(host.name), len(getting)


def read_only(request: dict[str, Any], host: Host) -> list[str]:
    """Folders below /opt/ml that a host sees but cannot change: FastFile channels are mounts of S3."""
    return [
        f"input/data/{channel.name}"
        for channel in channels.channels(request)
        if channel.mode == "FastFile" and channel.on(host.group)
    ]


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
