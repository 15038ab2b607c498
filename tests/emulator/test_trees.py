"""What a container leaves is read without following its links."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from llmtuner_local.emulator.shim import trees


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A container's /opt/ml with a model, and a secret beside it."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "opt-ml" / "model" / "sub").mkdir(parents=True)
    (tmp_path / "opt-ml" / "model" / "sub" / "weights").write_text("1")
    return tmp_path / "opt-ml"


def packed(base: Path) -> dict[str, tarfile.TarInfo]:
    target = base.parent / "made.tar.gz"
    trees.pack(trees.entries(base, "model"), target)
    with tarfile.open(target) as archive:
        return {item.name: item for item in archive}


def test_links_are_packed_as_links_and_full_paths_inside_become_relative(base: Path) -> None:
    model = base / "model"
    (model / "latest").symlink_to("/opt/ml/model/sub/weights")
    (model / "sub" / "up").symlink_to(base / "model" / "latest")
    (model / "out").symlink_to(base.parent / "secret")
    (model / "folder-out").symlink_to(base.parent)
    found = packed(base)
    assert list(found) == ["folder-out", "latest", "out", "sub", "sub/up", "sub/weights"]
    assert found["latest"].linkname == "sub/weights"
    assert found["sub/up"].linkname == "../latest"
    assert found["out"].issym()
    assert found["out"].size == 0
    assert found["folder-out"].issym()


def test_archive_whose_links_leave_it_is_not_unpacked(base: Path, tmp_path: Path) -> None:
    (base / "model" / "out").symlink_to(base.parent / "secret")
    packed(base)
    with pytest.raises(trees.tarfile.FilterError):
        trees.unpack(base.parent / "made.tar.gz", tmp_path / "target")
    data = tarfile.TarInfo("../outside")
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as archive:
        archive.addfile(data, io.BytesIO())
    with pytest.raises(trees.tarfile.FilterError):
        trees.unpack(tmp_path / "bad.tar.gz", tmp_path / "target")
    assert not (tmp_path / "outside").exists()


def test_pipes_and_sockets_are_left_out_and_hold_nothing_up(base: Path) -> None:
    os.mkfifo(base / "model" / "pipe")
    assert list(packed(base)) == ["sub", "sub/weights"]
    with pytest.raises(OSError, match="not a regular file"), trees.open_file(base, "model/pipe"):
        pass


def test_hard_links_are_kept_once(base: Path) -> None:
    (base / "model" / "twin").hardlink_to(base / "model" / "sub" / "weights")
    found = packed(base)
    assert found["twin"].islnk() != found["sub/weights"].islnk()


@pytest.mark.parametrize("place", ["model", "output"])
def test_folder_that_became_a_link_is_refused(base: Path, place: str) -> None:
    (base / "real").mkdir()
    if place == "model":
        (base / "model").rename(base / "moved")
    (base / place).symlink_to(base.parent)
    with pytest.raises(trees.LinkError, match=f"/opt/ml/{place}.* must stay a folder"):
        trees.entries(base, "model" if place == "model" else "output/data")


def test_file_that_became_a_link_is_not_read(base: Path) -> None:
    (base / "failure").symlink_to(base.parent / "secret")
    with pytest.raises(OSError, match="symbolic"), trees.open_file(base, "failure"):
        pass


def test_folder_that_is_gone_is_empty(base: Path) -> None:
    assert trees.entries(base, "checkpoints") == {}


def test_read_only_folders_are_removed_and_links_in_them_not_followed(base: Path) -> None:
    kept = base.parent / "kept"
    kept.mkdir(mode=0o500)
    (base / "model" / "sub" / "link").symlink_to(kept)
    (base / "model" / "sub").chmod(0o500)
    trees.remove(base)
    assert not base.exists()
    assert kept.stat().st_mode & 0o777 == 0o500
