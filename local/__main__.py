"""The local cloud's command line: `python -m llmtuner_local up|down|status|reset|env|install|base-model`."""

from __future__ import annotations

import argparse
import json
import sys

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
        commands.add_parser(name, help=text).add_argument("--json", action="store_true", help="machine-readable")
    commands.add_parser("down", help="stop everything; the state stays")
    commands.add_parser("env", help="export lines for the AWS CLI, boto3 and the SageMaker SDK")
    commands.add_parser("install", help="make LocalStack's own environment")
    commands.add_parser("reset", help="stop everything and delete the state").add_argument(
        "--yes", action="store_true", help="do not ask"
    )
    commands.add_parser("base-model", help="build a base model that ships offline").add_argument("model_id")
    return parser


def _up(options: argparse.Namespace) -> None:
    from llmtuner_local import stack

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
    return 0 if all(found[name]["healthy"] for name in ("localstack", "emulator")) else 3


def _reset(options: argparse.Namespace) -> int:
    from llmtuner_local import stack
    from llmtuner_local.home import home_folder

    if not options.yes:
        answer = input(f"Delete everything the local cloud has stored in {home_folder()}? Type yes: ")
        if answer.strip().lower() != "yes":
            print("Nothing was deleted.")
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
    from llmtuner_local import stack

    print(stack.install())


def _base_model(options: argparse.Namespace) -> None:
    from llmtuner_local import base_models

    print(base_models.build(options.model_id))


_COMMANDS = {
    "up": _up,
    "down": _down,
    "status": _status,
    "reset": _reset,
    "env": _env,
    "install": _install,
    "base-model": _base_model,
}

if __name__ == "__main__":
    sys.exit(main())
