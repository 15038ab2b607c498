"""Prompts that begin as an earlier one did: their first keys and values are remembered and not computed again.

A system prompt, a fixed instruction or the earlier turns of a conversation are read once. What is remembered are whole
blocks of a prompt, each known by the tokens up to its end and the adapters it was read with; what was not used for
longest is forgotten first. A prompt is always read in these blocks, so that what is remembered has the bits that
reading it again would give, and so has the answer.
"""

import hashlib
import itertools
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

Key = tuple[Any, bytes]  # the adapters, and a digest of all tokens up to the block's end


class Prefixes:
    """Blocks of `block` tokens, `most_bytes` of them in all (0 remembers nothing). Safe to use from any thread."""

    def __init__(self, block: int) -> None:
        self.block, self.most_bytes = block, 0
        self._blocks: OrderedDict[Key, Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def find(self, shares: Any, ids: Sequence[int]) -> list[Tensor]:
        """The blocks that a prompt begins with, in order. Its last token is never among them: it must be read anew."""
        with self._lock:
            keys = itertools.takewhile(self._blocks.__contains__, self._keys(shares, ids[:-1]))
            return [self._blocks[key] for key in self._touch(list(keys))]

    def keep(self, shares: Any, ids: Sequence[int], cache: Tensor) -> None:
        """Remember the whole blocks of a prompt that was read into `cache` (layers, 2, heads, room, size)."""
        size = cache[:, :, :, : self.block].numel() * cache.element_size()
        keys = list(itertools.islice(self._keys(shares, ids), self.most_bytes // size))
        with self._lock:
            for number, key in enumerate(keys):
                if key not in self._blocks:
                    self._blocks[key] = cache[:, :, :, number * self.block : (number + 1) * self.block].clone()
                    self._bytes += size
            self._touch(keys)
            while self._bytes > self.most_bytes:
                self._bytes -= self._blocks.popitem(last=False)[1].nbytes

    def forget(self, adapter: Any) -> None:
        """Drop what was read with an adapter."""
        with self._lock:
            for key in [key for key in self._blocks if any(each is adapter for each, _ in key[0])]:
                self._bytes -= self._blocks.pop(key).nbytes

    def _touch(self, keys: list[Key]) -> list[Key]:
        """Mark as used just now, the first block last: without it those behind it are of no use."""
        for key in reversed(keys):
            self._blocks.move_to_end(key)
        return keys

    def _keys(self, shares: Any, ids: Sequence[int]) -> Iterator[Key]:
        digest = hashlib.sha256()
        for start in range(0, len(ids) - self.block + 1, self.block):
            digest.update(array("q", ids[start : start + self.block]).tobytes())
            yield shares, digest.digest()
