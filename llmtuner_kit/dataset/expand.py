"""Compressed files and archives -> plain files in a scratch folder, streamed, whatever their size.

Members are written under numbers, never under their own names, so no name in an archive can lead anywhere. What
cannot be opened becomes a source that says why: it is rejected with its reason, like any broken row. Its original is
the file as it came; of a member that cannot be taken out, its archive.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, cast

import zstandard

from llmtuner_kit.dataset import kinds
from llmtuner_kit.dataset.chunks import Source

_BLOCK = 1 << 20
# A text compresses to a tenth; what grows a thousandfold was made to fill a disk.
_GROWTH, _HARMLESS = 200, 256 << 20
_DEEPEST = 4
_ERRORS = (
    OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError, zlib.error,
    lzma.LZMAError, zstandard.ZstdError,
)  # fmt: skip


class _TooMuchError(ValueError):
    """An archive holds more than it may."""


@dataclass
class _Scratch:
    folder: Path
    allowed: int
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def keep(self, stream: IO[bytes]) -> tuple[Path, int, str]:
        """Write a stream to a file of its own: path, size, SHA-256. Raises _TooMuchError past the limits."""
        path = self.folder / f"{next(self.numbers):06d}"
        digest, size = hashlib.sha256(), 0
        with path.open("wb") as file:
            while block := stream.read(_BLOCK):
                size += len(block)
                self.allowed -= len(block)
                if self.allowed < 0 or shutil.disk_usage(self.folder).free < len(block) + (1 << 30):
                    path.unlink()
                    raise _TooMuchError("it unpacks to more than this machine's disk, or a sane archive, holds")
                digest.update(block)
                file.write(block)
        return path, size, digest.hexdigest()


def expand(sources: list[Source], folder: Path) -> list[Source]:
    """The sources with every compressed file and archive replaced by the plain files in it, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for source in sources:
        found += _opened(source, folder, 0)
    return found


def _opened(source: Source, folder: Path, depth: int) -> list[Source]:
    compression, kind = kinds.compression_of(source.name), source.kind
    if source.broken or (not compression and kind not in ("zip", "tar")):
        return [source]
    if depth >= _DEEPEST:
        return [replace(source, broken=f"archives are nested more than {_DEEPEST} deep")]
    place = f"{depth}-{hashlib.sha256(source.name.encode()).hexdigest()[:16]}"
    scratch = _Scratch(folder / place, max(_HARMLESS, source.size * _GROWTH))
    scratch.folder.mkdir(parents=True, exist_ok=True)
    made: list[Source] = []
    try:
        if kind == "zip":
            made += _zip(source, scratch)
        elif kind == "tar":
            with _decompressed(source.path, compression) as stream:
                made += _tar(source, stream, scratch)
        else:
            with _decompressed(source.path, compression) as stream:
                path, size, checksum = scratch.keep(stream)
            # A plain file now; its name keeps the suffix that the user knows it by.
            return [replace(source, path=path, size=size, checksum=checksum)]
    except _ERRORS as error:
        made.append(replace(source, broken=f"{type(error).__name__.strip('_')}: {error}"))
    if not made:
        made.append(replace(source, broken="there are no files in it"))
    return [item for member in made for item in _opened(member, folder, depth + 1)]


def _decompressed(path: Path, compression: str) -> IO[bytes]:
    if compression == "gzip":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if compression == "zstd":
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True))
    return path.open("rb")


def _zip(source: Source, scratch: _Scratch) -> Iterator[Source]:
    with zipfile.ZipFile(source.path) as archive:
        for member in sorted(archive.infolist(), key=lambda item: item.filename):
            name = f"{source.name}/{member.filename}"
            if member.is_dir() or kinds.is_hidden(member.filename):
                continue
            if not kinds.kind_of(member.filename):
                yield Source(name, source.path, 0, "", broken="no reader for this kind of file")
                continue
            try:
                with archive.open(member) as stream:
                    yield Source(name, *scratch.keep(stream))
            except _TooMuchError:
                raise
            except _ERRORS as error:
                yield Source(name, source.path, 0, "", broken=f"{type(error).__name__}: {error}")


def _tar(source: Source, stream: IO[bytes], scratch: _Scratch) -> Iterator[Source]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = f"{source.name}/{member.name}"
            if not member.isfile() or kinds.is_hidden(member.name):
                continue
            if not kinds.kind_of(member.name):
                yield Source(name, source.path, 0, "", broken="no reader for this kind of file")
                continue
            inner = archive.extractfile(member)
            assert inner is not None
            yield Source(name, *scratch.keep(inner))
