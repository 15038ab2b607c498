"""A Python of the container's own, over the one the local cloud runs on: it has every package of it, and what a job
installs (`requirements.txt`) goes into the container and ends with it, as on AWS. Without it `pip install` in a job
would change the user's own environment.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

FOLDER = "python"
_PIP = '#!/bin/sh\nexec "$(dirname "$0")/python3" -m pip "$@"\n'


def prepare(base: Path) -> None:
    """Make the environment below a container's /opt/ml; a few links and files, under a millisecond."""
    folder = base / FOLDER
    if folder.exists():
        return
    programs, packages = folder / "bin", base / _packages()
    programs.mkdir(parents=True)
    packages.mkdir(parents=True)
    real = Path(sys._base_executable)  # type: ignore[attr-defined]
    version = ".".join(map(str, sys.version_info[:3]))
    (folder / "pyvenv.cfg").write_text(
        f"home = {real.parent}\ninclude-system-site-packages = false\nversion = {version}\n"
    )
    for name in ("python", "python3"):
        (programs / name).symlink_to(real)
    for name in ("pip", "pip3"):
        (programs / name).write_text(_PIP)
        (programs / name).chmod(0o755)
    # As a site folder, not as a plain path: packages installed for editing are found through .pth files there.
    parent = sysconfig.get_paths()["purelib"]
    (packages / "_local_cloud.pth").write_text(f"import site; site.addsitedir({parent!r})\n")


def variables(environment: dict[str, str]) -> dict[str, str]:
    """PATH and PYTHONPATH that put it first. Programs of the Python below, such as torchrun, see its packages too."""
    path = ["/opt/ml/" + FOLDER + "/bin", str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]
    modules = [f"/opt/ml/{_packages()}", environment.get("PYTHONPATH", "")]
    return {"PATH": os.pathsep.join(path), "PYTHONPATH": os.pathsep.join(filter(None, modules))}


def _packages() -> str:
    return f"{FOLDER}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
