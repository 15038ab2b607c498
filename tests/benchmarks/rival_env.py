"""An environment for a rival: what this project has installed, and the rival's package on top, in a folder of its own."""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rival_python(*packages: str, constrained: bool = True) -> Path:
    """The interpreter of an environment with the packages: this one if it has them, else one made on first use.

    In the environment made here torch stays the project's own, and so does all else if `constrained`.
    """
    if all(map(_is_installed, packages)):
        return Path(sys.executable)
    cache = Path(os.environ.get("LLMTUNER_CACHE") or Path.home() / ".cache" / "llmtuner")
    folder = cache / "benchmarks" / "-".join(name.partition("=")[0] for name in packages)
    python, complete = folder / "bin" / "python", folder / ".complete"
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    # Written each time: the environment may have been made by another checkout of the project.
    if not complete.exists():
        print(f"making {folder} with {', '.join(packages)}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
    (site / "project.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    if not complete.exists():
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        constraints = ["--constraint", str(ROOT / "constraints.txt")] if constrained else []
        subprocess.run([*pip, *constraints, *packages], check=True)
        complete.touch()
    return python


def _is_installed(package: str) -> bool:
    name, _, version = package.partition("==")
    try:
        return importlib.metadata.version(name) == (version or importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
