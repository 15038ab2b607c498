"""OpenMP's threads are told how long to wait before torch loads them, and a user's own setting is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import threads

# OMP_DISPLAY_ENV has the library print, as it is loaded, what it goes by.
PROGRAM = "import threads; threads.wait_briefly(); import torch"


def _loaded_with(**environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name not in threads.SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(threads.__file__).parent,
        env={**inherited, "OMP_DISPLAY_ENV": "verbose", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def test_the_library_takes_it() -> None:
    assert f"GOMP_SPINCOUNT = '{threads.SPINS}'" in _loaded_with()


@pytest.mark.parametrize("name", threads.SETTINGS)
def test_what_the_user_has_set_is_kept(name: str) -> None:
    environment = {name: "7"}
    threads.wait_briefly(environment)
    assert environment == {name: "7"}


@pytest.mark.parametrize("script", ["train.py", "serve.py"])
def test_torch_is_not_loaded_before(script: str) -> None:
    program = f"""
import runpy, sys, threads
def told(): raise SystemExit("torch" in sys.modules)
threads.wait_briefly = told
runpy.run_path({script!r}, run_name="__main__")
"""
    folder = Path(threads.__file__).parent
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
