"""Uploads: what arrives, what is not sent twice, what is refused, and what a kill costs."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from llmtuner_kit import checksums, runs, uploads
from llmtuner_kit.errors import DataError, IntegrityError, NotFoundError, SettingsError
from llmtuner_kit.settings import UploadSettings
from llmtuner_kit.uploads import Upload
from llmtuner_kit.workspace import Workspace


@pytest.fixture
def send(workspace: Workspace):  # type: ignore[no-untyped-def]
    runs.open_run(workspace, "demo", create=True)

    def run(source: Path, dataset: str = "", **options: object) -> Upload:
        settings = UploadSettings(run_name="demo", user_id=workspace.user_id, source=str(source), dataset=dataset)
        return uploads.upload(workspace, settings, **options)  # type: ignore[arg-type]

    return run


def stored(workspace: Workspace, key: str) -> bytes:
    return workspace.aws.client("s3").get_object(Bucket=workspace.bucket, Key=key)["Body"].read()


def test_a_file_arrives_with_its_checksum_and_is_noted_in_the_run(send, workspace: Workspace, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "Support Tickets.csv"
    file.write_bytes(b"ticket,reply\nhello,hi there\n")
    made = send(file)
    key = f"users/{workspace.user_id}/uploads/support-tickets/Support Tickets.csv"
    assert stored(workspace, key) == file.read_bytes()
    head = workspace.aws.client("s3").head_object(Bucket=workspace.bucket, Key=key, ChecksumMode="ENABLED")
    assert (
        head["ChecksumSHA256"] == made.files[0].sha256 == b64encode(hashlib.sha256(file.read_bytes()).digest()).decode()
    )
    assert head["ServerSideEncryption"] == "AES256"
    noted = runs.open_run(workspace, "demo").result("upload")
    assert noted["dataset"] == "support-tickets"
    assert [item["name"] for item in noted["files"]] == ["Support Tickets.csv"]


def test_a_second_upload_sends_only_what_changed(send, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "data").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "data" / name).write_text('{"prompt": "x", "completion": "y"}\n')
    assert send(tmp_path / "data").bytes_sent == 70
    again = send(tmp_path / "data")
    assert again.bytes_sent == 0
    assert not any(file.sent for file in again.files)
    (tmp_path / "data" / "b.jsonl").write_text('{"prompt": "x", "completion": "z"}\n')
    changed = send(tmp_path / "data")
    assert [file.name for file in changed.files if file.sent] == ["b.jsonl"]


def test_a_folder_tells_what_it_left_out(send, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    files = {
        "a/rows.csv": "q,a\n", "logo.png": "x", ".DS_Store": "x", "empty.txt": "", "a/.git/notes.txt": "x", "a/~$b.docx": "x"
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    made = send(tmp_path / "data")
    assert [file.name for file in made.files] == ["a/rows.csv"]
    assert dict(made.ignored) == {
        ".DS_Store": "hidden file", "a/.git/": "hidden folder", "a/~$b.docx": "hidden file", "logo.png": "no reader for this kind", "empty.txt": "empty file"
    }  # fmt: skip


def test_what_cannot_be_uploaded_is_told_and_nothing_of_the_rest_is_lost(send, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    top = tmp_path / "data"
    deep = Path(*["d" * 200] * 5)
    (top / deep).mkdir(parents=True)
    for name in ("new\nline.csv", "ünï 日本.csv", deep / "rows.csv"):
        (top / name).write_text(f"q,a\n{name},x\n")
    Path(os.fsdecode(os.fsencode(top) + b"/latin\xff.csv")).write_text("q,a\n")
    (top / "loop").symlink_to(top)
    (top / "self.csv").symlink_to(top / "self.csv")
    os.mkfifo(top / "pipe.csv")
    made = send(top)
    assert {file.name for file in made.files} == {"new\nline.csv", "ünï 日本.csv"}
    assert dict(made.ignored) == {
        (deep / "rows.csv").as_posix(): "its path is too long", "latin\\udcff.csv": "its name is not UTF-8",
        "loop/": "linked folder; set source to it", "self.csv": "link that leads nowhere", "pipe.csv": "no regular file",
    }  # fmt: skip


def test_a_folder_without_a_file_to_read_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").touch()
    with pytest.raises(DataError, match=r"left out: rows\.csv \(empty file\)"):
        uploads.find_files(str(tmp_path))


def test_a_folder_that_may_not_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "rows.csv").write_text("q,a\n")
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("theirs"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found, left_out = uploads.find_files(str(tmp_path))
    assert [name for name, _ in found] == ["rows.csv"]
    assert left_out == [("theirs/", "cannot be read: Permission denied")]


def test_a_file_that_went_away_on_the_way_is_named(send, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("q,a\n")
    found = uploads.find_files(str(tmp_path))
    (tmp_path / "b.csv").unlink()
    monkeypatch.setattr(uploads, "find_files", lambda _: found)
    with pytest.raises(DataError, match=r"b\.csv cannot be read: No such file"):
        send(tmp_path)


def test_large_files_go_in_parts_and_are_known_again(send, workspace: Workspace, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "big.jsonl"
    file.write_bytes(os.urandom(checksums.PART * 2 + 12345))
    seen: list[int] = []
    made = send(file, progress=lambda what, done, total: seen.append(done))
    assert made.files[0].sha256.endswith("-3")
    assert made.files[0].sha256 == checksums.checksum_of(file)
    assert seen == sorted(seen)
    assert seen[-1] == file.stat().st_size
    assert stored(workspace, f"users/{workspace.user_id}/uploads/big/big.jsonl") == file.read_bytes()
    assert send(file).bytes_sent == 0


_KILLED = """
import os, signal, sys
from llmtuner_kit import sending, uploads
from llmtuner_kit.settings import UploadSettings
from llmtuner_kit.workspace import open_workspace
sending.THREADS = 2
settings = UploadSettings(run_name="demo", user_id=sys.argv[1], source=sys.argv[2])
def die(what, done, total):
    if done >= total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
uploads.upload(open_workspace(settings), settings, die)
"""


def test_after_a_kill_at_most_one_part_a_worker_is_sent_again(send, workspace: Workspace, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file, parts = tmp_path / "big.jsonl", 8
    file.write_bytes(os.urandom(checksums.PART * parts))
    killed = subprocess.run([sys.executable, "-c", _KILLED, workspace.user_id, str(file)], check=False)
    assert killed.returncode == -signal.SIGKILL
    made = send(file)
    # Half had arrived; what the two workers had in hand may or may not have.
    assert made.bytes_sent <= checksums.PART * (parts // 2)
    assert stored(workspace, f"users/{workspace.user_id}/uploads/big/big.jsonl") == file.read_bytes()


def test_an_interrupted_file_that_changed_is_sent_anew(send, workspace: Workspace, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "big.jsonl"
    file.write_bytes(os.urandom(checksums.PART * 4))
    subprocess.run([sys.executable, "-c", _KILLED, workspace.user_id, str(file)], check=False)
    file.write_bytes(os.urandom(checksums.PART * 4))
    assert send(file).bytes_sent == file.stat().st_size
    assert stored(workspace, f"users/{workspace.user_id}/uploads/big/big.jsonl") == file.read_bytes()


@pytest.mark.parametrize("algorithm", ["CRC32", ""])
def test_an_upload_that_another_program_left_is_not_gone_on_with(
    send, workspace: Workspace, tmp_path: Path, algorithm: str
) -> None:  # type: ignore[no-untyped-def]
    """S3 takes no SHA-256 for a part of an upload that was begun with another checksum, or with none."""
    file = tmp_path / "big.jsonl"
    file.write_bytes(os.urandom(checksums.PART * 2))
    key = f"users/{workspace.user_id}/uploads/big/big.jsonl"
    kept = {"ChecksumAlgorithm": algorithm} if algorithm else {}
    workspace.aws.client("s3").create_multipart_upload(Bucket=workspace.bucket, Key=key, **kept)
    assert send(file).bytes_sent == file.stat().st_size
    assert stored(workspace, key) == file.read_bytes()


def grow(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"{}\n")


def rewrite(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


@pytest.mark.parametrize("change", [grow, rewrite])
def test_a_file_that_changes_on_the_way_is_refused(send, tmp_path: Path, change: Callable[[Path], None]) -> None:  # type: ignore[no-untyped-def]
    """Also to another of the same size: part of the one and part of the other is a file that never was."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(os.urandom(checksums.PART + 1))
    with pytest.raises(IntegrityError, match="changed"):
        send(file, progress=lambda *_: change(file))
    send(file)


def test_a_file_whose_disk_fails_is_named(send, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"x" * checksums.PART * 2)

    class Failing(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")  # without a file's name, as Python's own

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *how: Failing() if path == file else opened(path, *how))
    with pytest.raises(DataError, match=r"rows\.jsonl cannot be read: Input/output error"):
        send(file)


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("", None, SettingsError, "source is empty"),
        ("missing.csv", None, NotFoundError, "no file or folder"),
        ("empty.csv", "", DataError, "0 bytes"),
        ("model.exe", "x", DataError, r"\.jsonl"),
        ("folder/", None, DataError, "no files"),
        ("folder/pic.png", "x", DataError, "pic.png"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_with_what_would_be(
    tmp_path: Path, name: str, content: str | None, error: type[Exception], said: str
) -> None:
    path = tmp_path / name
    if name.startswith("folder/"):
        (tmp_path / "folder").mkdir()
    if content is not None:
        path.write_text(content)
    source = "" if not name else str(tmp_path / "folder" if name.startswith("folder/") else path)
    with pytest.raises(error, match=said):
        uploads.find_files(source)


def test_a_misspelt_name_is_answered_with_the_likeliest_of_the_folder(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02d}.md").write_text("x")
    (tmp_path / "tickets.csv").write_text("x")
    (tmp_path / ".hidden").write_text("x")
    with pytest.raises(NotFoundError, match=r"there are: tickets\.csv\n"):
        uploads.find_files(str(tmp_path / "ticket.csv"))
    with pytest.raises(NotFoundError, match=r"there are: 00\.md, 01"):
        uploads.find_files(str(tmp_path / "other"))
