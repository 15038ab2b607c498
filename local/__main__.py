"""The local cloud's command line: `python -m llmtuner_local up|down|status|reset|env|fault|docker-image|...`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from llmtuner_local.home import LocalError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. What the user can put right is one message on stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(_COMMANDS[options.command](options) or 0)
    except LocalError as error:
        print(f"llmtuner local: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmtuner local", description="The local cloud of llmtuner_kit.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("up", "start what is not running"), ("status", "what runs, and where")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--json", action="store_true", help="machine-readable")
        if name == "up":
            command.add_argument("--docker", action="store_true", help="also check Docker and build the image")
    commands.add_parser("down", help="stop everything; the state stays")
    commands.add_parser("env", help="export lines for the AWS CLI, boto3 and the SageMaker SDK")
    commands.add_parser("install", help="make LocalStack's own environment")
    commands.add_parser("reset", help="stop everything and delete the state").add_argument(
        "--yes", action="store_true", help="do not ask"
    )
    commands.add_parser("docker-image", help="build the image of target local-docker")
    commands.add_parser("base-model", help="build base models that ship offline").add_argument("model_ids", nargs="+")
    _add_fault(commands.add_parser("fault", help="capacity, quota, throttling, spot and other bad days, on command"))
    return parser


def _add_fault(parser: argparse.ArgumentParser) -> None:
    from llmtuner_local.emulator.faults import KINDS

    actions = parser.add_subparsers(dest="action", required=True)
    kinds = actions.add_parser("set", help="set a fault").add_subparsers(dest="kind", required=True)
    for name, kind in KINDS.items():
        one = kinds.add_parser(name, help=kind.help, description=kind.help)
        if kind.number:
            text = f"default {kind.default:g}, at least {kind.lowest:g}"
            one.add_argument(f"--{kind.number}", dest="number", type=float, metavar="N", help=text)
        one.add_argument("--match", default="*", help="glob on the name of the job, endpoint, operation or bucket")
        one.add_argument("--times", type=int, metavar="N", help="act so often, then be gone (default: always)")
        one.add_argument("--for", dest="seconds", type=float, metavar="SECONDS", help="act so long, then be gone")
    actions.add_parser("list", help="what is set").add_argument("--json", action="store_true", help="machine-readable")
    clear = actions.add_parser("clear", help="remove faults")
    clear.add_argument("kind", nargs="?", default="", choices=["", *KINDS], help="only this kind (default: all)")


def _up(options: argparse.Namespace) -> None:
    from llmtuner_local import stack

    if options.docker:
        from llmtuner_local.docker import image

        image.build(_say)
    found = stack.up()
    if options.json:
        print(json.dumps(found))
        return
    print(f"LocalStack          {found['localstack_url']}")
    print(f"SageMaker emulator  {found['sagemaker_url']}")
    print(f"State               {found['home']}")
    print('Use it from a shell: eval "$(llmtuner local env)"')


def _down(_: argparse.Namespace) -> None:
    from llmtuner_local import stack

    stopped = stack.down()
    print(f"Stopped: {', '.join(stopped)}." if stopped else "Nothing was running.")


def _status(options: argparse.Namespace) -> int:
    from llmtuner_local import stack

    found = stack.status()
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"State: {found['home']}")
    for name in ("localstack", "emulator"):
        part = found[name]
        word = "running" if part["healthy"] else "not answering" if part["running"] else "stopped"
        memory = f", {part['memory_mb']} MB" if part["memory_mb"] else ""
        print(f"{name:11} {word:13} {part['url']}{memory}")
    if all(found[name]["healthy"] for name in ("localstack", "emulator")):
        return 0
    print("Start what is not running: llmtuner local up")
    return 3


def _reset(options: argparse.Namespace) -> int:
    from llmtuner_local import stack
    from llmtuner_local.home import home_folder

    if not options.yes:
        print(f"Everything that the local cloud has stored in {home_folder()} will be deleted, for all users and runs:")
        print(
            "uploads, datasets, run records, tuned models, jobs, endpoints and logs. Copies that you downloaded stay."
        )
        if found := stack.running():
            print(f"Running now, and stopped first: {', '.join(found)}.")
        try:
            answer = input("Type yes to delete it: ")
        except EOFError:  # no terminal
            answer = ""
        if answer.strip().lower() != "yes":
            print("Nothing was deleted. Without a terminal: llmtuner local reset --yes")
            return 1
    stack.reset()
    print("The local cloud is empty.")
    return 0


def _env(_: argparse.Namespace) -> None:
    from llmtuner_local import stack
    from llmtuner_local.home import home_folder

    stack.up()
    print((home_folder() / "aws" / "env").read_text(), end="")


def _install(_: argparse.Namespace) -> None:
    from llmtuner_local import servers

    print(servers.install())


def _base_model(options: argparse.Namespace) -> None:
    from llmtuner_local import base_models

    for model_id in options.model_ids:
        print(base_models.build(model_id))


def _in_words(kind: Any, number: float | None) -> str:
    """What a fault does, with its own number in place of the name of one."""
    value = kind.default if number is None else number
    return str(kind.help.replace(kind.number.upper(), f"{value:g}", 1) if kind.number else kind.help)


def _fault(options: argparse.Namespace) -> None:
    from llmtuner_local.emulator import faults
    from llmtuner_local.home import home_folder

    known = faults.Faults(home_folder())
    if options.action == "set":
        number = getattr(options, "number", None)
        known.set(
            faults.make(options.kind, match=options.match, number=number, times=options.times, seconds=options.seconds)
        )
        print(
            f"Set: {_in_words(faults.KINDS[options.kind], number)}. Remove it: llmtuner local fault clear {options.kind}"
        )
    elif options.action == "clear":
        print(f"Faults removed: {known.clear(options.kind)}.")
    elif options.json:
        print(json.dumps([vars(item) for item in known.all()]))
    else:
        if not known.all():
            print("No fault is set. The kinds there are: llmtuner local fault set --help")
        for item in known.all():
            kind = faults.KINDS[item.kind]
            number = f"{kind.number}={item.number:g}" if kind.number else ""
            times = f"{item.times} more times" if item.times else "always"
            until = f"for {max(0, item.until - time.time()):.0f} s" if item.until else ""
            print("  ".join(part for part in (f"{item.kind:18}", f"on {item.match}", number, times, until) if part))


def _docker_image(_: argparse.Namespace) -> None:
    from llmtuner_local.docker import image

    print(image.build(_say))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


_COMMANDS = {
    "up": _up,
    "down": _down,
    "status": _status,
    "reset": _reset,
    "env": _env,
    "fault": _fault,
    "install": _install,
    "base-model": _base_model,
    "docker-image": _docker_image,
}

if __name__ == "__main__":
    sys.exit(main())
