"""Reading what a container has left behind, without following its links: they may point at anything of this machine.

Every path is opened folder by folder from the container's base, which the container cannot replace.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from isal import igzip_threaded

if TYPE_CHECKING:
    import tarfile
else:
    from backports import tarfile  # its filters came with Python 3.11.4; Debian 12 has 3.11.2

_BLOCK = 1 << 20  # bytes that archives are read and written in
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a pipe that nobody writes to must not wait


class TarFile(tarfile.TarFile):
    """A tar file that is moved in large blocks."""

    copybufsize = _BLOCK


class LinkError(ValueError):
    """A folder of the container is a link or a file now."""


@dataclass(frozen=True)
class Entry:
    """A file, folder or link: where it is, and what changes when its content does."""

    base: Path
    path: str  # below the base
    mode: int
    size: int
    modified_ns: int

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


@contextmanager
def open_file(base: Path, path: str) -> Iterator[BinaryIO]:
    """A regular file below `base`; OSError for anything else at its end, LinkError for a link on the way."""
    with _open_parent(base, path) as (folder, last):
        handle = os.open(last, _FILE, dir_fd=folder)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path} is not a regular file.")
        yield file


@contextmanager
def _open_parent(base: Path, path: str) -> Iterator[tuple[int, str]]:
    *folders, last = PurePosixPath(path).parts
    handle = _open_folder(base, folders)
    try:
        yield handle, last
    finally:
        os.close(handle)


def _open_folder(base: Path, parts: list[str]) -> int:
    handle = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    for part in parts:
        try:
            inner = os.open(part, _FOLDER, dir_fd=handle)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise LinkError(f"/opt/ml/{'/'.join(parts)} must stay a folder; what is there now is none.") from None
            raise
        finally:
            os.close(handle)
        handle = inner
    return handle


def entries(base: Path, name: str) -> dict[str, Entry]:
    """What is in the folder `name` below `base`, by its path in there; a folder that is gone is empty.

    Regular files, folders and links; sockets, pipes and devices are left out.
    """
    try:
        top = _open_folder(base, list(PurePosixPath(name).parts))
    except FileNotFoundError:
        return {}
    found = {}
    try:
        for path, folders, files, handle in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            for item in (*folders, *files):
                try:
                    state = os.stat(item, dir_fd=handle, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # the container removed it meanwhile
                if stat.S_IFMT(state.st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                    inside = PurePosixPath(path, item).as_posix()
                    place = PurePosixPath(name, inside).as_posix()
                    found[inside] = Entry(base, place, state.st_mode, state.st_size, state.st_mtime_ns)
    finally:
        os.close(top)
    return dict(sorted(found.items()))


def make_folder(base: Path, name: str) -> Path:
    """Make the folder `name` below `base`, also in a container that runs; a link on the way is a LinkError."""
    path = base
    for part in PurePosixPath(name).parts:
        path = path / part
        path.mkdir(exist_ok=True)
        if path.is_symlink():
            raise LinkError(f"{name} must be a folder; {part} is a link.")
    return path


def pack(found: dict[str, Entry], target: Path) -> None:
    """A tar.gz of entries under their names, deflated by all processors; fast compression: weights hardly shrink.

    Links are kept as links, so nothing from outside gets in; those that name something inside by its full path in
    the container become relative, so that they hold wherever the archive is unpacked.
    """
    with (
        igzip_threaded.open(target, "wb", compresslevel=1, threads=os.cpu_count() or 1) as deflated,
        TarFile.open(fileobj=deflated, mode="w|", bufsize=_BLOCK) as archive,
    ):
        for name, entry in found.items():
            if entry.is_file:
                with open_file(entry.base, entry.path) as file:
                    info = archive.gettarinfo(arcname=name, fileobj=file)
                    archive.addfile(info, file if info.isreg() else None)
                continue
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = stat.S_IMODE(entry.mode), entry.modified_ns // 1_000_000_000
            info.type = tarfile.DIRTYPE
            if stat.S_ISLNK(entry.mode):
                info.type, info.linkname = tarfile.SYMTYPE, _link(name, entry)
            archive.addfile(info)


def _link(name: str, entry: Entry) -> str:
    with _open_parent(entry.base, entry.path) as (folder, last):
        text = os.readlink(last, dir_fd=folder)
    top = entry.path.removesuffix(name)
    for root in (PurePosixPath("/opt/ml", top), PurePosixPath(entry.base, top)):
        if PurePosixPath(text).is_relative_to(root) and ".." not in PurePosixPath(text).parts:
            return os.path.relpath(PurePosixPath(text).relative_to(root), PurePosixPath(name).parent)
    return text


def remove(folder: Path) -> None:
    """Remove a folder of a container, also what the container has made read-only."""

    def open_up(_: object, path: str, __: object) -> None:
        item = Path(path)
        item.parent.chmod(0o700)
        if item.is_dir() and not item.is_symlink():
            item.chmod(0o700)
            shutil.rmtree(item)
        else:
            item.unlink(missing_ok=True)

    if folder.exists():
        shutil.rmtree(folder, onerror=open_up)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar.gz as fast as the disk takes it; names and links that would leave the folder are refused."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        igzip_threaded.open(archive, "rb") as inflated,
        TarFile.open(fileobj=inflated, mode="r|", bufsize=_BLOCK) as opened,
    ):
        opened.extractall(folder, filter="data")
