"""A job reaches nothing through what the local cloud reads from it or writes for it."""

from __future__ import annotations

import io
import tarfile

import pytest
from botocore.exceptions import ClientError
from emulator.conftest import BUCKET, Cloud, channel

FOREIGN = "/etc/passwd"


def keys(emulator: Cloud, prefix: str) -> list[str]:
    found = emulator.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return [item["Key"] for item in found]


def test_links_in_a_model_stay_links_and_a_linked_failure_is_not_read(emulator: Cloud) -> None:
    source = f"""
import os, sys
os.symlink({FOREIGN!r}, "/opt/ml/model/passwd")
os.symlink("/etc", "/opt/ml/output/data/etc")
os.symlink({FOREIGN!r}, "/opt/ml/output/failure")
os.symlink({FOREIGN!r}, "/opt/ml/checkpoints/passwd")
sys.exit(int(os.environ.get("FAILS", "0")))
"""
    checkpoints = f"s3://{BUCKET}/links/checkpoints"
    name = emulator.train(source, CheckpointConfig={"S3Uri": checkpoints})
    fails = emulator.train(source, Environment={"FAILS": "4"})
    job = emulator.ended(name)
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    data = emulator.s3.get_object(Bucket=BUCKET, Key=f"out/{name}/output/model.tar.gz")["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (member,) = archive
    assert (member.issym(), member.size) == (True, 0)
    assert keys(emulator, "links/checkpoints") == []
    assert emulator.ended(fails)["FailureReason"] == "AlgorithmError: , exit code: 4"


def test_folder_that_a_job_made_a_link_is_not_uploaded(emulator: Cloud) -> None:
    source = "import os; os.rmdir('/opt/ml/model'); os.symlink('/etc', '/opt/ml/model')"
    output = {"S3OutputPath": f"s3://{BUCKET}/out", "CompressionType": "NONE"}
    for extra in ({}, {"OutputDataConfig": output}):
        job = emulator.ended(emulator.train(source, **extra))
        assert job["TrainingJobStatus"] == "Failed"
        assert job["FailureReason"].startswith("AlgorithmError: /opt/ml/model must stay a folder")
        assert keys(emulator, f"out/{job['TrainingJobName']}/") == []


def test_names_that_climb_out_of_a_channel_are_refused(emulator: Cloud) -> None:
    with pytest.raises(ClientError, match="are no channel names"):
        emulator.train("", channels=[channel("..", emulator.put("climb/a", "x"))])
    emulator.put("climb/../../outside", "x")
    manifest = emulator.put("climb/manifest.json", f'[{{"prefix": "s3://{BUCKET}/climb/"}}, "../../outside"]')
    job = emulator.ended(emulator.train("", channels=[channel("data", manifest, S3DataType="ManifestFile")]))
    assert job["TrainingJobStatus"] == "Failed"
    assert "would leave the channel's folder" in job["FailureReason"]
    assert not list(emulator.home.rglob("outside"))
