"""Near duplicates: MinHash over word shingles, found by bands, proved by the exact overlap of two texts.

A shingle is the 16 bytes from the start of a word in the normalised text, about three words. Everything runs on
whole chunks at once in numpy; numbers are the same on every machine and in every run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIMILAR = 0.8
"""Two texts are near duplicates when they share at least this part of all their shingles (Jaccard)."""

BANDS, ROWS = 16, 4
# Two texts at 0.8 meet in a band with probability 1 - (1 - 0.8^4)^16 = 0.9998; at 0.3 with 0.12.
_SHINGLE = 16
_BLOCK = 512
_RANDOM = np.random.Generator(np.random.PCG64(20_240_229))
_XORS = _RANDOM.integers(0, 2**32, BANDS * ROWS, dtype=np.uint32)
_FACTORS = _RANDOM.integers(0, 2**32, BANDS * ROWS, dtype=np.uint32) | np.uint32(1)
_SPACES = bytes(32 if c < 48 or 57 < c < 65 or 90 < c < 97 or 122 < c < 128 else c for c in range(256))
# Apostrophes and hyphens go without leaving a gap: don't = dont, e-mail = email.
_DROPPED = b"'-`"


def normalise(text: str) -> bytes:
    """Lower case, words only, one blank between them: texts that differ in nothing else are the same."""
    return b" ".join(text.lower().encode("utf-8", "replace").translate(_SPACES, _DROPPED).split())


def bands(texts: list[bytes]) -> NDArray[np.uint32]:
    """Band hashes of normalised texts, shape (BANDS, number of texts). Empty texts share nothing with anyone."""
    found = np.empty((BANDS, len(texts)), np.uint32)
    for start in range(0, len(texts), _BLOCK):
        found[:, start : start + _BLOCK] = _bands(texts[start : start + _BLOCK])
    return found


def similarity(one: bytes, other: bytes) -> float:
    """Jaccard overlap of the shingles of two normalised texts, 0 to 1."""
    left, right = (set(_shingles([text])[0].tolist()) for text in (one, other))
    return len(left & right) / len(left | right) if left and right else 0.0


def _shingles(texts: list[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Hashes of all shingles of all texts, and where each text's begin."""
    joined = b"".join(b" " + text + b"\0" * _SHINGLE for text in texts)
    data = np.frombuffer(joined, np.uint8)
    starts = np.flatnonzero((data[:-1] == 32) & (data[1:] > 32)) + 1
    wide = np.lib.stride_tricks.sliding_window_view(data, 8)
    first = np.ascontiguousarray(wide[starts]).view(np.uint64).ravel()
    second = np.ascontiguousarray(wide[np.minimum(starts + 8, len(wide) - 1)]).view(np.uint64).ravel()
    mixed = first * np.uint64(0x9E3779B97F4A7C15) ^ second * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1 + _SHINGLE
    begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return (mixed >> np.uint64(32)).astype(np.uint32), np.searchsorted(starts, begins)


def _bands(texts: list[bytes]) -> NDArray[np.uint32]:
    hashes, begins = _shingles(texts)
    counts = np.diff(np.append(begins, len(hashes)))
    found = np.zeros((BANDS, len(texts)), np.uint32)
    some = np.flatnonzero(counts)
    if len(some):
        for band in range(BANDS):
            mix = np.zeros(len(some), np.uint32)
            for number in range(band * ROWS, band * ROWS + ROWS):
                permuted = (hashes ^ _XORS[number]) * _FACTORS[number]
                # The low bits of a product know only the low bits of its factors.
                permuted ^= permuted >> np.uint32(15)
                mix = (mix ^ np.minimum.reduceat(permuted, begins[some])) * np.uint32(0x01000193)
            found[band, some] = mix
    # An empty text gets a hash of its own in each band.
    empty = np.flatnonzero(counts == 0)
    found[:, empty] = (empty * 2 + 1).astype(np.uint32)
    return found
