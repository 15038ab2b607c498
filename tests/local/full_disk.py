"""Run on a small disk of its own: which changes LocalStack acknowledges while that is full, and which of them are kept."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

HOME = Path(os.environ["LLMTUNER_HOME"])
COUNT = 12


def local(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "llmtuner_local", *arguments], check=True, stdout=subprocess.DEVNULL)


def client(service: str) -> Any:
    url = json.loads((HOME / "local.json").read_text())["localstack_url"]
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0})
    return boto3.client(service, endpoint_url=url, config=config, **keys)


def fill() -> None:
    with (HOME / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def changes() -> dict[str, str]:
    """Every change -> "yes" where it was acknowledged, else why it was refused."""
    s3, iam, logs, said = client("s3"), client("iam"), client("logs"), {}
    trust = json.dumps({"Version": "2012-10-17", "Statement": []})
    asked = {f"delete {number}": (s3.delete_object, {"Bucket": "small", "Key": str(number)}) for number in range(COUNT)}
    asked |= {"role": (iam.create_role, {"RoleName": "mine", "AssumeRolePolicyDocument": trust})}
    asked |= {"group": (logs.create_log_group, {"logGroupName": "mine"})}
    for name, (call, request) in asked.items():
        try:
            call(**request)
            said[name] = "yes"
        except ClientError as error:
            said[name] = str(error)
    return said


def kept() -> list[str]:
    """The changes that are there."""
    there = {item["Key"] for item in client("s3").list_objects_v2(Bucket="small").get("Contents", [])}
    found = [f"delete {number}" for number in range(COUNT) if str(number) not in there]
    found += ["role"] * any(item["RoleName"] == "mine" for item in client("iam").list_roles()["Roles"])
    found += ["group"] * bool(client("logs").describe_log_groups(logGroupNamePrefix="mine")["logGroups"])
    return found


def crash() -> None:
    os.kill(json.loads((HOME / "localstack.pid").read_text())["pid"], signal.SIGKILL)
    local("up")


local("up")
try:
    client("s3").create_bucket(Bucket="small")
    for number in range(COUNT):
        client("s3").put_object(Bucket="small", Key=str(number), Body=b"x")
    fill()
    told = {"full": changes()}
    (HOME / "filler").unlink()
    crash()
    told["kept"] = kept()
    told["again"] = changes()
    crash()
    told["all"] = kept()
    print(json.dumps(told))
finally:
    local("down")
