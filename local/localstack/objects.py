"""Objects of LocalStack's S3 as files: every write goes to a new one, so committed bytes are never touched."""

from __future__ import annotations

import base64
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

CHUNK = 1024 * 1024


def store_class() -> Any:
    """The file store, as a class of LocalStack's own base classes (which exist only inside its environment)."""
    from localstack.services.s3.storage.core import LimitedStream, S3ObjectStore, S3StoredMultipart, S3StoredObject
    from localstack.services.s3.utils import get_s3_checksum

    class StoredFile(S3StoredObject):
        """One object (or part) as a file of its own."""

        def __init__(self, s3_object: Any, path: Path, mode: str) -> None:
            super().__init__(s3_object, mode)
            self.file = path.open("w+b" if mode == "w" else "rb")
            self.checksum_hash: Any = None

        def close(self) -> None:
            self.file.close()
            self.closed = True

        def write(self, stream: Any) -> int:
            source = stream or BytesIO()
            algorithm = self.s3_object.checksum_algorithm
            self.checksum_hash = get_s3_checksum(algorithm) if algorithm else None
            digest = hashlib.md5(usedforsecurity=False)
            size = 0
            while data := source.read(CHUNK):
                self.file.write(data)
                digest.update(data)
                if self.checksum_hash:
                    self.checksum_hash.update(data)
                size += len(data)
            self.file.flush()
            self.s3_object.size = size
            self.s3_object.etag = digest.hexdigest()
            self.s3_object.internal_last_modified = time.time_ns()
            self.file.seek(0)
            return size

        def append(self, part: Any) -> int:
            size = os.fstat(part.file.fileno()).st_size
            self.file.flush()
            position = os.fstat(self.file.fileno()).st_size
            moved = 0
            while moved < size:
                moved += os.copy_file_range(
                    part.file.fileno(), self.file.fileno(), size - moved, moved, position + moved
                )
            self.s3_object.size = position + size
            self.s3_object.internal_last_modified = time.time_ns()
            return size

        def read(self, s: int = -1) -> bytes:
            return self.file.read(s)

        def seek(self, offset: int, whence: int = 0) -> int:
            return self.file.seek(offset, whence)

        def truncate(self, size: int | None = None) -> int:
            return self.file.truncate(size)

        @property
        def last_modified(self) -> int:
            return self.s3_object.internal_last_modified

        @property
        def checksum(self) -> str | None:
            if not self.s3_object.checksum_algorithm:
                return None
            if self.checksum_hash is None:
                self.checksum_hash = get_s3_checksum(self.s3_object.checksum_algorithm)
                self._each(self.checksum_hash.update)
            return base64.b64encode(self.checksum_hash.digest()).decode()

        @property
        def etag(self) -> str:
            if self._mode == "w":
                return str(self.s3_object.etag)
            digest = hashlib.md5(usedforsecurity=False)
            self._each(digest.update)
            return digest.hexdigest()

        def _each(self, use: Any) -> None:
            position = self.file.tell()
            self.file.seek(0)
            while data := self.file.read(CHUNK):
                use(data)
            self.file.seek(position)

        def __iter__(self) -> Iterator[bytes]:
            while data := self.file.read(CHUNK):
                yield data

    class StoredUpload(S3StoredMultipart):
        """The parts of an unfinished upload; each part knows its own file."""

        def open(self, s3_part: Any, mode: str = "r") -> StoredFile:
            return self._s3_store.open(self.bucket, s3_part, mode)

        def remove_part(self, s3_part: Any) -> None:
            self._s3_store.remove(self.bucket, s3_part)

        def complete_multipart(self, parts: list[Any]) -> None:
            with self._s3_store.open(self.bucket, self.s3_multipart.object, mode="w") as whole:
                for part in parts:
                    with self.open(part) as stored:
                        whole.append(stored)

        def close(self) -> None:
            return  # the files go when the commit no longer names them

        def copy_from_object(self, s3_part: Any, src_bucket: str, src_s3_object: Any, range_data: Any) -> None:
            with self._s3_store.open(src_bucket, src_s3_object) as source, self.open(s3_part, "w") as stored:
                stored.write(LimitedStream(source, range_data=range_data) if range_data else source)
                if s3_part.checksum_algorithm:
                    s3_part.checksum_value = stored.checksum

    class FileStore(S3ObjectStore):
        """Objects as files of one folder; an S3 object carries the name of its file."""

        def __init__(self, folder: Path) -> None:
            self.folder = folder
            self.root_directory = str(folder)

        def path(self, name: str) -> Path:
            return self.folder / name[:2] / name

        def open(self, bucket: str, s3_object: Any, mode: str = "r") -> StoredFile:
            del bucket
            if mode == "w":
                s3_object._file = uuid.uuid4().hex
                self.path(s3_object._file).parent.mkdir(exist_ok=True)
            return StoredFile(s3_object, self.path(s3_object._file), mode)

        def remove(self, bucket: str, s3_object: Any) -> None:
            # The commit that drops the row drops the file: an answer that is never sent must lose nothing.
            return

        def copy(self, src_bucket: str, src_object: Any, dest_bucket: str, dest_object: Any) -> StoredFile:
            if src_object is dest_object:
                return self.open(dest_bucket, dest_object)
            with self.open(src_bucket, src_object) as source:
                target = self.open(dest_bucket, dest_object, mode="w")
                target.write(source)
            return target

        def get_multipart(self, bucket: str, s3_multipart: Any) -> StoredUpload:
            return StoredUpload(self, bucket, s3_multipart)

        def remove_multipart(self, bucket: str, s3_multipart: Any) -> None:
            return

        def unlink(self, name: str) -> None:
            self.path(name).unlink(missing_ok=True)

        def has_all(self, names: list[str]) -> bool:
            return all(self.path(name).exists() for name in names)

        def sweep(self, named: set[str]) -> None:
            for path in self.folder.glob("*/*"):
                if path.name not in named:
                    path.unlink(missing_ok=True)

    return FileStore
