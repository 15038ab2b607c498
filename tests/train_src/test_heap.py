"""Memory that is freed is used again without the system's help."""

import subprocess
import sys
from pathlib import Path

import pytest

import heap

PROGRAM = """
import resource, heap
assert heap.keep_freed_memory()
for number in range(20):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytes(8 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_not_asked_of_the_system_again() -> None:
    folder = Path(heap.__file__).parent
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=folder, capture_output=True, text=True, check=True)
    pages = 18 * (8 << 20) // 4096
    assert int(done.stdout) < pages / 100


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert not heap.keep_freed_memory()
