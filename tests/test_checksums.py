"""Parts and checksums are those that S3 makes of the same bytes, on every machine."""

from __future__ import annotations

import pytest

from llmtuner_kit import checksums

MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "part"),
    [(1, 16 * MIB), (10_000 * 16 * MIB, 16 * MIB), (10_000 * 16 * MIB + 1, 32 * MIB), (10_000 * 64 * MIB, 64 * MIB)],
)
def test_parts_grow_only_where_ten_thousand_would_not_hold_the_file(size: int, part: int) -> None:
    assert checksums.part_size(size) == part


def test_the_first_of_the_known_checksums_of_an_object_counts() -> None:
    assert checksums.of_object({"ChecksumCRC32": "c", "ChecksumSHA256": "s"}) == ("SHA256", "s")
    assert checksums.of_object({"ChecksumCRC64NVME": "c"}) == ("", "")
