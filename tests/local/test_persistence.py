"""What LocalStack has acknowledged survives kill -9."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from llmtuner_local import servers
from ways import need

BUCKET = "durable"


class LocalStack:
    """LocalStack alone on a state folder of its own, as `up` starts it."""

    def __init__(self, home: Path) -> None:
        self.home, self.state = home, dict[str, Any]()
        home.mkdir()
        self.start()

    def start(self) -> None:
        servers.start_localstack(self.home, self.state)

    def kill(self) -> None:
        process = servers.localstack_pid(self.home).process()
        assert process
        os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalStack]:
    made = LocalStack(tmp_path / "home")
    yield made
    servers.localstack_pid(made.home).stop(0)


def client(local: LocalStack, service: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=local.state["localstack_url"],
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}),
    )


def crash(local: LocalStack) -> None:
    local.kill()
    local.start()


def test_objects_uploads_versions_and_settings_come_back(local: LocalStack) -> None:
    s3 = client(local, "s3")
    s3.create_bucket(Bucket=BUCKET)
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/no/*"}]}  # fmt: skip
    s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))
    s3.put_object(Bucket=BUCKET, Key="odd key/ä?&+", Body=b"one", Metadata={"k": "v"}, Tagging="a=b")
    s3.put_object(Bucket=BUCKET, Key="over", Body=b"old")
    s3.put_object(Bucket=BUCKET, Key="over", Body=b"new")
    s3.put_object(Bucket=BUCKET, Key="gone", Body=b"x")
    s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "gone"}]})
    s3.copy_object(Bucket=BUCKET, Key="copy", CopySource=f"{BUCKET}/over")
    s3.put_object(Bucket=BUCKET, Key="empty", Body=b"")
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="big")["UploadId"]
    first = s3.upload_part(Bucket=BUCKET, Key="big", UploadId=upload, PartNumber=1, Body=b"a" * 5_242_880)["ETag"]
    s3.create_bucket(Bucket="versioned")
    s3.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    versions = [s3.put_object(Bucket="versioned", Key="k", Body=str(n).encode())["VersionId"] for n in range(3)]
    s3.delete_object(Bucket="versioned", Key="k")
    crash(local)
    s3 = client(local, "s3")
    assert json.loads(s3.get_bucket_policy(Bucket=BUCKET)["Policy"]) == policy
    found = s3.get_object(Bucket=BUCKET, Key="odd key/ä?&+")
    assert (found["Body"].read(), found["Metadata"]) == (b"one", {"k": "v"})
    assert s3.get_object_tagging(Bucket=BUCKET, Key="odd key/ä?&+")["TagSet"] == [{"Key": "a", "Value": "b"}]
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert keys == ["copy", "empty", "odd key/ä?&+", "over"]
    assert s3.get_object(Bucket=BUCKET, Key="copy")["Body"].read() == b"new"
    second = s3.upload_part(Bucket=BUCKET, Key="big", UploadId=upload, PartNumber=2, Body=b"end")["ETag"]
    parts = [{"PartNumber": 1, "ETag": first}, {"PartNumber": 2, "ETag": second}]
    s3.complete_multipart_upload(Bucket=BUCKET, Key="big", UploadId=upload, MultipartUpload={"Parts": parts})
    crash(local)
    s3 = client(local, "s3")
    assert s3.get_object(Bucket=BUCKET, Key="big", Range="bytes=5242878-")["Body"].read() == b"aaend"
    assert not s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads")
    with pytest.raises(ClientError, match="NoSuchKey"):
        s3.get_object(Bucket="versioned", Key="k")
    bodies = [s3.get_object(Bucket="versioned", Key="k", VersionId=item)["Body"].read() for item in versions]
    assert bodies == [b"0", b"1", b"2"]


def test_roles_keys_and_logs_come_back(local: LocalStack) -> None:
    iam, kms, logs = (client(local, name) for name in ("iam", "kms", "logs"))
    document = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    trust = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    iam.create_role(RoleName="worker", AssumeRolePolicyDocument=json.dumps(document | {"Statement": [trust]}))
    iam.put_role_policy(RoleName="worker", PolicyName="p", PolicyDocument=json.dumps(document))
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    sealed = kms.encrypt(KeyId=key, Plaintext=b"secret")["CiphertextBlob"]
    logs.create_log_group(logGroupName="/g")
    logs.create_log_stream(logGroupName="/g", logStreamName="s")
    for n in range(60):  # so many requests that they are written together at a start
        event = {"timestamp": int(time.time() * 1000), "message": f"line {n}"}
        logs.put_log_events(logGroupName="/g", logStreamName="s", logEvents=[event])
    logs.create_log_group(logGroupName="/deleted")
    logs.create_log_stream(logGroupName="/deleted", logStreamName="s")
    logs.put_log_events(logGroupName="/deleted", logStreamName="s", logEvents=[event])
    logs.delete_log_group(logGroupName="/deleted")
    logs.put_retention_policy(logGroupName="/g", retentionInDays=30)
    crash(local)
    crash(local)
    iam, kms, logs = (client(local, name) for name in ("iam", "kms", "logs"))
    assert "p" in iam.list_role_policies(RoleName="worker")["PolicyNames"]
    assert kms.decrypt(CiphertextBlob=sealed)["Plaintext"] == b"secret"
    found = logs.get_log_events(logGroupName="/g", logStreamName="s", startFromHead=True)["events"]
    assert [item["message"] for item in found] == [f"line {n}" for n in range(60)]
    (group,) = logs.describe_log_groups()["logGroups"]
    assert (group["logGroupName"], group["retentionInDays"]) == ("/g", 30)


@pytest.mark.slow
def test_no_acknowledged_write_is_lost_however_often_it_is_killed(local: LocalStack) -> None:
    client(local, "s3").create_bucket(Bucket=BUCKET)
    known: dict[str, bytes | None] = {}
    unsure: set[str] = set()
    draw = random.Random(11)
    for _ in range(3):
        ends = threading.Event()

        def write(worker: int, seed: int, ends: threading.Event = ends) -> None:
            mine, s3 = random.Random(seed), client(local, "s3")
            while not ends.is_set():
                key = f"w{worker}/k{mine.randrange(12)}"
                body = mine.randbytes(mine.choice((0, 10, 5_000, 300_000)))
                unsure.add(key)
                try:
                    if mine.random() < 0.2:
                        s3.delete_object(Bucket=BUCKET, Key=key)
                        known[key] = None
                    else:
                        s3.put_object(Bucket=BUCKET, Key=key, Body=body)
                        known[key] = body
                except (ClientError, BotoCoreError):
                    return  # cut off in the middle: this key may be the old or the new one
                unsure.discard(key)

        workers = [threading.Thread(target=write, args=(n, draw.randrange(10**9))) for n in range(4)]
        for worker in workers:
            worker.start()
        ends.wait(draw.uniform(0.5, 1.5))
        local.kill()
        for worker in workers:
            worker.join()
        local.start()
        s3 = client(local, "s3")
        found = {item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])}
        for key, body in known.items():
            if key in unsure:
                continue
            assert (key in found) == (body is not None), key
            if body is not None:
                assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body
        for key in unsure:  # whole, whichever it is
            if key in found:
                s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
                known[key] = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            else:
                known[key] = None
        unsure.clear()
    assert len(known) > 20
    files = list((local.home / "s3" / "objects").glob("*/*"))
    assert len(files) == sum(body is not None for body in known.values())


def test_what_a_full_disk_cannot_keep_is_not_acknowledged(tmp_path: Path) -> None:
    need("unshare")  # a small disk is mounted in a namespace
    home = tmp_path / "home"
    home.mkdir()
    mount = 'mount -t tmpfs -o size=6m none "$LLMTUNER_HOME"; exec "$@"'
    program = Path(__file__).with_name("full_disk.py")
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", mount, "sh", sys.executable, str(program)],
        env=os.environ | {"LLMTUNER_HOME": str(home)}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    refused = [why for why in told["full"].values() if why != "yes"]
    assert refused
    assert all("Make room on its disk" in why for why in refused)
    assert told["kept"] == [name for name, answer in told["full"].items() if answer == "yes"]
    assert set(told["all"]) == {*told["full"]}  # with room again, everything is
