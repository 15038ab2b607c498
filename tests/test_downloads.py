"""Downloads: what arrives is what S3 has, a kill costs what was under way, and nothing half is ever called whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmtuner_kit import checksums, downloads, runs, uploads
from llmtuner_kit.errors import DataError, IntegrityError, NotFoundError
from llmtuner_kit.sending import Sender
from llmtuner_kit.settings import UploadSettings
from llmtuner_kit.workspace import Workspace


@pytest.fixture
def client(workspace: Workspace) -> Any:
    return workspace.aws.client("s3")


@pytest.fixture
def prefix(workspace: Workspace) -> str:
    return f"{workspace.paths.root}uploads/{uuid.uuid4().hex[:8]}/"


def put(workspace: Workspace, prefix: str, source: Path, size: int) -> str:
    """A file of random bytes, sent as the kit sends; its key."""
    source.write_bytes(os.urandom(size))
    with Sender(workspace.aws.client("s3"), workspace.bucket) as sender:
        return sender.send([(prefix + source.name, source)], prefix)[0].key


@pytest.mark.parametrize("size", [0, 5, checksums.PART * 2 + 77])
def test_every_size_arrives_verified_and_is_kept_the_next_time(
    workspace: Workspace, client: Any, prefix: str, tmp_path: Path, size: int
) -> None:
    key = put(workspace, prefix, tmp_path / "source", size)
    seen: list[int] = []
    made = downloads.fetch(client, workspace.bucket, key, tmp_path / "new" / "copy", seen.append)
    assert made.path.read_bytes() == (tmp_path / "source").read_bytes()
    assert (made.verified_by, made.bytes_received, sum(seen)) == ("SHA256", size, size)
    assert [item.name for item in made.path.parent.iterdir()] == ["copy"]
    assert downloads.fetch(client, workspace.bucket, key, made.path).bytes_received == 0


def test_objects_of_other_writers_are_verified_by_what_s3_keeps(
    workspace: Workspace, client: Any, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(os.urandom(20 << 20))
    client.upload_file(str(tmp_path / "source"), workspace.bucket, prefix + "plain")  # boto3's own parts and CRC-32
    made = downloads.fetch(client, workspace.bucket, prefix + "plain", tmp_path / "copy")
    assert made.path.read_bytes() == (tmp_path / "source").read_bytes()
    assert made.verified_by == "CRC32"


_KILLED = """
import os, signal, sys
from pathlib import Path
from llmtuner_kit import downloads
from llmtuner_kit.settings import StartSettings
from llmtuner_kit.workspace import open_workspace
downloads.THREADS = 2
workspace = open_workspace(StartSettings(user_id=sys.argv[1]))
seen = 0
def die(count):
    global seen
    seen += count
    if seen >= int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
downloads.fetch(workspace.aws.client("s3"), workspace.bucket, sys.argv[2], Path(sys.argv[3]), die)
"""


def killed_half_way(workspace: Workspace, key: str, target: Path, after: int) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, workspace.user_id, key, str(target), str(after)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()


def test_after_a_kill_only_what_was_under_way_comes_again(
    workspace: Workspace, client: Any, prefix: str, tmp_path: Path
) -> None:
    key = put(workspace, prefix, tmp_path / "source", checksums.PART * 6)
    target = tmp_path / "copy"
    killed_half_way(workspace, key, target, checksums.PART * 3)
    with (tmp_path / "copy.part.jsonl").open("a") as journal:
        journal.write("[8388")  # as a kill in the middle of a line leaves it
    made = downloads.fetch(client, workspace.bucket, key, target)
    assert made.bytes_received <= checksums.PART * 3
    assert target.read_bytes() == (tmp_path / "source").read_bytes()
    assert sorted(item.name for item in tmp_path.glob("copy*")) == ["copy"]


def test_the_rest_of_another_version_is_not_used(
    workspace: Workspace, client: Any, prefix: str, tmp_path: Path
) -> None:
    key = put(workspace, prefix, tmp_path / "source", checksums.PART * 4)
    killed_half_way(workspace, key, tmp_path / "copy", checksums.PART)
    put(workspace, prefix, tmp_path / "source", checksums.PART * 4)
    made = downloads.fetch(client, workspace.bucket, key, tmp_path / "copy")
    assert made.bytes_received == made.bytes
    assert made.path.read_bytes() == (tmp_path / "source").read_bytes()


class _Meddling:
    """A client that does something before each range is asked for, or changes what comes."""

    def __init__(self, client: Any, before: Any = None, change: Any = None) -> None:
        self._client, self._before, self._change = client, before, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_object(self, **options: Any) -> Any:
        if self._before:
            self._before()
        answer = self._client.get_object(**options)
        return self._change(answer) if self._change else answer


def test_an_object_that_is_replaced_on_the_way_is_refused(
    workspace: Workspace, client: Any, prefix: str, tmp_path: Path
) -> None:
    key = put(workspace, prefix, tmp_path / "source", 1000)
    meddling = _Meddling(client, before=lambda: put(workspace, prefix, tmp_path / "source", 1000))
    with pytest.raises(IntegrityError, match="replaced"):
        downloads.fetch(meddling, workspace.bucket, key, tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))


class _Damaged:
    def __init__(self, answer: dict[str, Any]) -> None:
        self._data = bytearray(answer["Body"].read())
        self._data[3] ^= 1

    def iter_chunks(self, _: int) -> Any:
        yield bytes(self._data)


class _Unsummed(_Meddling):
    """S3 as it keeps what SageMaker has written: with no checksum that is known here."""

    def head_object(self, **options: Any) -> Any:
        head = self._client.head_object(**options)
        return {name: value for name, value in head.items() if not name.startswith("Checksum")}


@pytest.mark.parametrize("size", [5, 20 << 20])
def test_what_has_no_known_checksum_is_kept_by_its_etag(
    workspace: Workspace, client: Any, prefix: str, tmp_path: Path, size: int
) -> None:
    """An archive of 7B weights is not fetched again each time a notebook runs."""
    (tmp_path / "source").write_bytes(os.urandom(size))
    client.upload_file(str(tmp_path / "source"), workspace.bucket, prefix + "plain")
    unsummed, target = _Unsummed(client), tmp_path / "copy"
    made = downloads.fetch(unsummed, workspace.bucket, prefix + "plain", target)
    assert (made.verified_by, made.bytes_received) == ("size", size)
    again = downloads.fetch(unsummed, workspace.bucket, prefix + "plain", target)
    assert (again.verified_by, again.bytes_received) == ("MD5", 0)
    with target.open("r+b") as file:
        file.write(b"other")
    assert downloads.fetch(unsummed, workspace.bucket, prefix + "plain", target).bytes_received == size
    assert target.read_bytes() == (tmp_path / "source").read_bytes()


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    workspace: Workspace, client: Any, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = put(workspace, prefix, tmp_path / "source", 1000)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(DataError, match=r"takes 0\.0 MB more; the disk of .* has 0\.0 MB"):
        downloads.fetch(client, workspace.bucket, key, tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))


def test_damaged_bytes_are_never_given_the_files_name(
    workspace: Workspace, client: Any, prefix: str, tmp_path: Path
) -> None:
    key = put(workspace, prefix, tmp_path / "source", 1000)
    damaging = _Meddling(client, change=lambda answer: {"Body": _Damaged(answer)})
    with pytest.raises(IntegrityError, match="another SHA256"):
        downloads.fetch(damaging, workspace.bucket, key, tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))


def test_a_broken_connection_goes_on_where_it_broke(
    workspace: Workspace, client: Any, prefix: str, tmp_path: Path
) -> None:
    key = put(workspace, prefix, tmp_path / "source", 3_000_000)
    asked: list[str] = []

    class Breaking:
        def __init__(self, body: Any) -> None:
            self._body = body

        def iter_chunks(self, size: int) -> Any:
            blocks = self._body.iter_chunks(size)
            yield next(blocks)
            if len(asked) == 1:
                raise downloads.BROKEN_BODY[0](actual_bytes=size, expected_bytes=3_000_000)
            yield from blocks

    class Client(_Meddling):
        def get_object(self, **options: Any) -> Any:
            asked.append(options["Range"])
            return {"Body": Breaking(client.get_object(**options)["Body"])}

    made = downloads.fetch(Client(client), workspace.bucket, key, tmp_path / "copy")
    assert made.path.read_bytes() == (tmp_path / "source").read_bytes()
    assert asked == ["bytes=0-2999999", "bytes=1048576-2999999"]


def test_a_folder_comes_back_as_it_went(workspace: Workspace, client: Any, tmp_path: Path) -> None:
    runs.open_run(workspace, "demo", create=True)
    source = tmp_path / "data"
    for name in ("a/one.txt", "a/b/two words.txt", "three.jsonl"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / "large.txt").write_bytes(os.urandom(checksums.PART + 9))
    settings = UploadSettings(run_name="demo", user_id=workspace.user_id, source=str(source))
    made = uploads.upload(workspace, settings)
    seen: list[tuple[int, int]] = []
    fetched = downloads.fetch_folder(client, made.uri, tmp_path / "back", lambda done, all_: seen.append((done, all_)))
    assert seen[-1] == (made.bytes, made.bytes)
    assert {item.path.relative_to(tmp_path / "back") for item in fetched} == {
        path.relative_to(source) for path in source.rglob("*") if path.is_file()
    }
    assert all((source / item.path.relative_to(tmp_path / "back")).read_bytes() == item.path.read_bytes() for item in fetched)  # fmt: skip


def test_what_is_not_there_and_what_would_leave_the_folder_are_refused(
    workspace: Workspace, client: Any, prefix: str, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="no object"):
        downloads.fetch(client, workspace.bucket, prefix + "none", tmp_path / "copy")
    with pytest.raises(NotFoundError, match="nothing below"):
        downloads.fetch_folder(client, f"s3://{workspace.bucket}/{prefix}", tmp_path / "back")
    client.put_object(Bucket=workspace.bucket, Key=prefix + "a/../../out.txt", Body=b"x")
    with pytest.raises(DataError, match="no file name"):
        downloads.fetch_folder(client, f"s3://{workspace.bucket}/{prefix}", tmp_path / "back")
    assert not list(tmp_path.rglob("out.txt"))
