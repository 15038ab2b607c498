"""How training data reaches the container: input modes, data types, shares of several hosts and instance groups."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from botocore.exceptions import ClientError
from emulator.conftest import BUCKET, Cloud, archive, channel

WRITE = "import json, pathlib; save = lambda name, value: pathlib.Path('/opt/ml/model', name).write_text(json.dumps(value))\n"


def result(emulator: Cloud, source: str, **request: Any) -> dict[str, Any]:
    """Run a program that saves JSON files; what it saved, by name."""
    job = emulator.ended(emulator.train(WRITE + source, **request))
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    return {name: json.loads(body) for name, body in archive(emulator, job).items()}


def test_fastfile_channel_cannot_be_changed_and_its_prefix_is_a_folder(emulator: Cloud) -> None:
    emulator.put("fast/train/a.txt", "a")
    emulator.put("fast/train-2/b.txt", "b")
    source = """
import os
def attempt(path):
    try:
        open(path, "a").write("x")
    except OSError as error:
        return error.strerror
save("names", sorted(os.listdir("/opt/ml/input/data/train")))
save("errors", [attempt("/opt/ml/input/data/train/a.txt"), attempt("/opt/ml/input/data/train/new")])
save("config", json.loads(open("/opt/ml/input/config/inputdataconfig.json").read())["train"]["TrainingInputMode"])
"""
    data = channel("train", f"s3://{BUCKET}/fast/train") | {"InputMode": "FastFile"}
    found = result(emulator, source, channels=[data])
    assert found == {"names": ["a.txt"], "errors": ["Read-only file system"] * 2, "config": "FastFile"}
    with pytest.raises(ClientError, match='No S3 objects found under S3 URL "s3://emulator-tests/fast/tr"'):
        emulator.train("", channels=[channel("train", f"s3://{BUCKET}/fast/tr") | {"InputMode": "FastFile"}])


def test_pipe_channel_streams_every_epoch_in_a_new_order(emulator: Cloud) -> None:
    for number in range(12):
        emulator.put(f"pipe/{number:02}", f"{number:02}\n")
    source = """
import os
folder = "/opt/ml/input/data/"
save("listed", sorted(os.listdir(folder)))
epochs = [open(f"{folder}train_{epoch}").read().split() for epoch in range(3)]
save("epochs", epochs)
with open(folder + "train_3") as early:
    early.readline()  # an algorithm may leave in the middle of an epoch
save("after", sorted(open(folder + "train_4").read().split()))
save("plain", [open(f"{folder}plain_{epoch}").read().split() for epoch in range(2)])
"""
    data = channel("train", f"s3://{BUCKET}/pipe/") | {"InputMode": "Pipe", "ShuffleConfig": {"Seed": 7}}
    plain = channel("plain", f"s3://{BUCKET}/pipe/") | {"InputMode": "Pipe"}
    found = result(emulator, source, channels=[data, plain])
    names = [f"{number:02}" for number in range(12)]
    assert found["listed"] == ["code", "plain_0", "train_0"]
    assert [sorted(epoch) for epoch in found["epochs"]] == [names] * 3
    assert len({tuple(epoch) for epoch in found["epochs"]}) == 3
    assert found["after"] == names
    assert found["plain"] == [names, names]


def test_pipe_channel_unpacks_gzip_and_wraps_objects_as_recordio(emulator: Cloud) -> None:
    emulator.put("zipped/a", gzip.compress(b"hello"))
    emulator.put("zipped/b", gzip.compress(b"four"))
    source = "save('hex', open('/opt/ml/input/data/train_0', 'rb').read().hex())"
    data = channel("train", f"s3://{BUCKET}/zipped/") | {
        "InputMode": "Pipe",
        "CompressionType": "Gzip",
        "RecordWrapperType": "RecordIO",
    }
    head = "0a23d7ce"  # RecordIO's magic number, lowest byte first
    expected = f"{head}05000000{b'hello'.hex()}000000{head}04000000{b'four'.hex()}"
    assert result(emulator, source, channels=[data]) == {"hex": expected}


def test_augmented_manifest_streams_the_named_attributes(emulator: Cloud) -> None:
    lines = [
        {"source-ref": emulator.put(f"augmented/{letter}", f"<{letter}>"), "label": number}
        for number, letter in enumerate("ab")
    ]
    uri = emulator.put("augmented.manifest", "\n".join(json.dumps(line) for line in lines))
    data = channel("train", uri, S3DataType="AugmentedManifestFile", AttributeNames=["source-ref", "label"])
    source = "save('text', open('/opt/ml/input/data/train_0').read())"
    assert result(emulator, source, channels=[data | {"InputMode": "Pipe"}]) == {"text": "<a>0<b>1"}
    with pytest.raises(ClientError, match="AugmentedManifestFile needs the input mode Pipe, not File"):
        emulator.train("", channels=[data])


def test_instance_groups_share_the_hosts_and_the_channels(emulator: Cloud) -> None:
    for letter in "abcd":
        emulator.put(f"groups/{letter}", letter)
    source = """
import os
resources = json.loads(open("/opt/ml/input/config/resourceconfig.json").read())
data = pathlib.Path("/opt/ml/input/data")
names = {folder.name: sorted(os.listdir(folder)) for folder in data.iterdir() if folder.name != "code"}
save(resources["current_host"], {"resources": resources, "data": names})
assert resources["network_interface_name"] in os.listdir("/sys/class/net")
"""
    groups = [
        {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "InstanceGroupName": "gpu"},
        {"InstanceType": "ml.c5.xlarge", "InstanceCount": 1, "InstanceGroupName": "cpu"},
    ]
    request = emulator.request(WRITE + source, ResourceConfig={"InstanceGroups": groups, "VolumeSizeInGB": 10})
    code = request["InputDataConfig"][0]
    sharded = {"S3DataDistributionType": "ShardedByS3Key", "InstanceGroupNames": ["gpu"]}
    request["InputDataConfig"].append(channel("train", f"s3://{BUCKET}/groups/", **sharded))
    with pytest.raises(
        ClientError, match=r"Some channels have assigned instance groups: \[train\] while others not: \[code\]"
    ):
        emulator.sagemaker.create_training_job(**request)
    code["DataSource"]["S3DataSource"]["InstanceGroupNames"] = ["gpu", "cpu"]
    emulator.sagemaker.create_training_job(**request)
    job = emulator.ended(request["TrainingJobName"])
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    seen = {name: json.loads(body) for name, body in archive(emulator, job).items()}
    assert [seen[f"algo-{number}"]["data"] for number in (1, 2, 3)] == [
        {"train": ["a", "c"]},
        {"train": ["b", "d"]},
        {},
    ]
    told = seen["algo-3"]["resources"]
    told.pop("network_interface_name")
    assert told == {
        "current_host": "algo-3",
        "current_instance_type": "ml.c5.xlarge",
        "current_group_name": "cpu",
        "hosts": ["algo-1", "algo-2", "algo-3"],
        "instance_groups": [
            {"instance_group_name": "gpu", "instance_type": "ml.g5.xlarge", "hosts": ["algo-1", "algo-2"]},
            {"instance_group_name": "cpu", "instance_type": "ml.c5.xlarge", "hosts": ["algo-3"]},
        ],
        "topology": None,
    }


def test_data_that_has_gone_fails_the_job_in_sagemakers_words(emulator: Cloud) -> None:
    uri = emulator.put("bad.manifest", json.dumps([{"prefix": f"s3://{BUCKET}/groups/"}, "never-there"]))
    job = emulator.ended(emulator.train("", channels=[channel("train", uri, S3DataType="ManifestFile")]))
    assert job["TrainingJobStatus"] == "Failed"
    assert (
        job["FailureReason"] == "ClientError: Data download failed:NoSuchKey (404): The specified key does not exist."
    )


def test_stream_that_breaks_off_fails_the_job_although_it_saw_an_end(emulator: Cloud) -> None:
    emulator.put("broken/a", "a")
    uri = emulator.put("broken.manifest", json.dumps([{"prefix": f"s3://{BUCKET}/broken/"}, "a", "gone"]))
    source = "[open(f'/opt/ml/input/data/train_{epoch}').read() for epoch in range(2)]"
    data = channel("train", uri, S3DataType="ManifestFile") | {"InputMode": "Pipe"}
    job = emulator.ended(emulator.train(source, channels=[data]))
    assert job["TrainingJobStatus"] == "Failed"
    assert (
        job["FailureReason"] == "ClientError: Data download failed:NoSuchKey (404): The specified key does not exist."
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"InputMode": "FastFile", "S3DataType": "ManifestFile"}, "FastFile needs the data type S3Prefix"),
        ({"CompressionType": "Gzip"}, "CompressionType is used in the input mode Pipe only"),
        ({"InstanceGroupNames": ["other"]}, "names the instance group 'other', which the job has not"),
    ],
)
def test_combinations_that_cannot_be_are_refused(emulator: Cloud, change: dict[str, Any], text: str) -> None:
    emulator.put("combination/x", "x")
    source = {name: change.pop(name) for name in ("S3DataType", "InstanceGroupNames") if name in change}
    with pytest.raises(ClientError, match=text):
        emulator.train("", channels=[channel("train", f"s3://{BUCKET}/combination/x", **source) | change])
