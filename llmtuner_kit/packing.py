"""Packed archives: read at the speed of the disk, and never trusted.

ISA-L inflates in a thread of its own while the files are written. Members are looked at before a byte of them is
written: links, devices, names that leave the folder, pickles and bombs are refused.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from isal import igzip_threaded, isal_zlib

from llmtuner_kit.errors import IntegrityError

if TYPE_CHECKING:
    import tarfile
else:
    from backports import tarfile  # its filters came with Python 3.11.4; Debian 12 has 3.11.2

BLOCK = 1 << 20
_InflateError = cast("type[Exception]", isal_zlib.error)  # its stubs call it an instance
# Far above any archive of a model this kit tunes; a bomb is larger, has more members, or shrinks far better than weights.
MOST_MEMBERS = 2_000
MOST_BYTES = 400 * 10**9
BEST_RATIO = 30
SMALL_BYTES = 100 * 10**6  # below, no ratio is looked at
_UNPACKING = ".unpacking"
PICKLES = (".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib")


class _TarFile(tarfile.TarFile):
    copybufsize = BLOCK  # what is moved to the disk at once; tarfile's own 16 KB make it the slowest part


class _Inflated:
    """The bytes of an archive, as many as one of a model may have: tarfile reads a header into memory however long."""

    def __init__(self, file: IO[bytes], archive: Path) -> None:
        self._file, self._archive, self._left = file, archive, _most_bytes(archive)

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _bomb(self._archive)
        return data


def _most_bytes(archive: Path) -> int:
    return min(MOST_BYTES, max(SMALL_BYTES, BEST_RATIO * archive.stat().st_size))


def _bomb(archive: Path) -> IntegrityError:
    return IntegrityError(f"{archive.name} unpacks to more than an archive of a model can.", fix="do not use it")


@contextmanager
def members(archive: Path) -> Iterator[tarfile.TarFile]:
    """The archive as a stream of members, each to be read before the next. Raises IntegrityError when it is damaged."""
    try:
        with (
            igzip_threaded.open(archive, "rb") as inflated,
            _TarFile.open(fileobj=cast("IO[bytes]", _Inflated(inflated, archive)), mode="r|", bufsize=BLOCK) as opened,
        ):
            yield opened
    except (tarfile.ReadError, _InflateError, EOFError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, tarfile.ReadError) and error.errno is not None:
            raise
        raise IntegrityError(
            f"{archive.name} is damaged or no tar.gz: {error}", fix="download the archive again"
        ) from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpack into a fresh folder that takes its name at the end. Raises IntegrityError for what must not be unpacked."""
    most = _most_bytes(archive)
    free = shutil.disk_usage(folder.parent).free
    with tempfile.TemporaryDirectory(_UNPACKING, f".{folder.name}-", folder.parent) as work, _lock(Path(work)):
        with members(archive) as opened:
            size = 0
            for count, item in enumerate(opened, 1):
                size += item.size
                _check(archive, item)
                if count > MOST_MEMBERS or size > most:
                    raise _bomb(archive)
                if size > free:
                    raise IntegrityError(
                        f"{archive.name} unpacks to {size / 1e9:.1f} GB or more; {folder.parent} has {free / 1e9:.1f} GB free.",
                        fix="choose a folder on another disk",
                    )
                try:
                    opened.extract(item, work, filter="data")
                except tarfile.FilterError as error:
                    raise IntegrityError(f"{archive.name}: {error}", fix="do not use it") from None
        shutil.rmtree(folder, ignore_errors=True)
        Path(work).rename(folder)
        Path(work).mkdir()  # TemporaryDirectory removes it again


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes have unpacked for a folder; what another one is unpacking now is left alone."""
    for work in folder.parent.glob(f".{glob.escape(folder.name)}-*{_UNPACKING}"):
        with _lock(work) as abandoned:
            if abandoned:
                shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Lock a folder until the end, that of the process at the latest; False where it cannot be locked.

    Another one holds it, has just renamed it or is another user, or the file system has no locks.
    """
    with ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        except OSError:
            is_locked = False
        yield is_locked


def _check(archive: Path, item: tarfile.TarInfo) -> None:
    if not (item.isfile() or item.isdir()):
        raise IntegrityError(f"{archive.name} holds {item.name!r}, which is a link or a device.", fix="do not use it")
    if item.name.lower().endswith(PICKLES):
        raise IntegrityError(f"{archive.name} holds {item.name!r}, a pickle.", fix="do not load it")
