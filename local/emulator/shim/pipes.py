"""Pipe mode: a channel as a stream. Each pass over the data is a FIFO `<channel>_<epoch>` that the job reads once."""

from __future__ import annotations

import gzip
import json
import os
import random
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llmtuner_local.emulator.shim import channels, cloud
from llmtuner_local.emulator.shim.channels import Channel

_CHUNK = 1 << 20
_MAGIC = 0xCED7230A  # of MXNet's RecordIO
_LONGEST_RECORD = (1 << 29) - 1


@dataclass(frozen=True)
class _Part:
    """What becomes one record: an object of S3, or a text from an augmented manifest."""

    item: channels.Item | None = None
    text: bytes = b""


class Pipe:
    """Feeds one channel of one host, epoch after epoch, until it is closed. `error` tells what went wrong."""

    def __init__(self, s3: Any, channel: Channel, folder: Path, number: int, count: int) -> None:
        self.error: Exception | None = None
        self._s3, self._channel, self._folder = s3, channel, folder
        self._number, self._count = number, count
        self._epoch = 0
        self._closing = False
        self._contents = self._units()  # now: what cannot be listed is told before the job waits for it
        folder.mkdir(parents=True, exist_ok=True)
        os.mkfifo(self._path(0))
        self._thread = threading.Thread(target=self._run, name=f"pipe-{channel.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop feeding; a feeder that waits for a reader gets one."""
        self._closing = True
        while self._thread.is_alive():
            try:
                reader = os.open(self._path(self._epoch), os.O_RDONLY | os.O_NONBLOCK)
            except FileNotFoundError:
                reader = -1  # between two epochs
            self._thread.join(0.05)
            if reader >= 0:
                os.close(reader)

    def _path(self, epoch: int) -> Path:
        return self._folder / f"{self._channel.name}_{epoch}"

    def _run(self) -> None:
        try:
            while not self._closing:
                with self._path(self._epoch).open("wb", buffering=0) as sink:  # waits for a reader
                    os.mkfifo(self._path(self._epoch + 1))  # a reader may ask for it as soon as this one ends
                    self._feed(sink, self._order(self._contents))
                self._path(self._epoch).unlink(missing_ok=True)
                self._epoch += 1
        except Exception as error:
            self.error = error

    def _feed(self, sink: IO[bytes], units: list[list[_Part]]) -> None:
        try:
            for unit in units:
                for part in unit:
                    for piece in self._pieces(part):
                        if self._closing:
                            return
                        sink.write(piece)
        except BrokenPipeError:
            return  # the job has seen enough of this epoch

    def _units(self) -> list[list[_Part]]:
        """What is shuffled and shared out: objects, or lines of an augmented manifest with one part an attribute."""
        if self._channel.data_type != "AugmentedManifestFile":
            return [[_Part(item)] for item in self._channel.items(self._s3)]
        bucket, key = cloud.split_uri(self._channel.uri)
        lines = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read().splitlines()
        return [self._attributes(json.loads(line)) for line in lines if line.strip()]

    def _attributes(self, entry: dict[str, Any]) -> list[_Part]:
        parts = []
        for name in self._channel.attributes:
            value = entry[name]
            if name.endswith("-ref"):
                bucket, key = cloud.split_uri(value)
                parts.append(_Part(channels.Item(bucket, key, key)))
            else:
                parts.append(_Part(text=(value if isinstance(value, str) else json.dumps(value)).encode()))
        return parts

    def _order(self, units: list[list[_Part]]) -> list[list[_Part]]:
        """One order an epoch, the same on every host, so that each unit goes to exactly one of them when sharded."""
        if self._channel.seed is not None:
            units = list(units)
            random.Random(f"{self._channel.seed}-{self._epoch}").shuffle(units)  # noqa: S311 - an order, no secret
        return channels.share(units, self._channel.distribution, self._number, self._count)

    def _pieces(self, part: _Part) -> Iterator[bytes]:
        if self._channel.wrapper == "RecordIO":
            yield _record(b"".join(self._content(part)))
        else:
            yield from self._content(part)

    def _content(self, part: _Part) -> Iterator[bytes]:
        if part.item is None:
            yield part.text
            return
        body = self._s3.get_object(Bucket=part.item.bucket, Key=part.item.key)["Body"]
        source = gzip.GzipFile(fileobj=body) if self._channel.compression == "Gzip" else body
        while piece := source.read(_CHUNK):
            yield piece


def _record(data: bytes) -> bytes:
    """One RecordIO record: magic, length, data, padded to four bytes."""
    if len(data) > _LONGEST_RECORD:
        raise ValueError(f"An object of {len(data)} bytes does not fit a RecordIO record ({_LONGEST_RECORD} at most).")
    return struct.pack("<II", _MAGIC, len(data)) + data + b"\0" * (-len(data) % 4)
