"""The image that jobs and endpoints of target local-docker run in: built once, from the same versions as run here.

The wheels are fetched on this machine, by its pip with its configuration, and go into the build context: so one
Dockerfile works on an open network, behind a proxy and with a package mirror alike.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import certifi
from llmtuner_local.docker.engine import EngineError, docker, has_image, require
from llmtuner_local.home import LocalError, cache_folder, locked

REPOSITORY = "llmtuner-local"
BASE = "debian:bookworm-slim"
OWN_BASE = "llmtuner-base:bookworm"
_FOLDER = Path(__file__).parent
_FILES = ("Dockerfile", "train", "serve")
_PYTHON = "3.11"  # bookworm's
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_NEWEST_GLIBC = 36  # bookworm has glibc 2.36
_CPU_BUILDS = "https://download.pytorch.org/whl/cpu"  # PyTorch's own index of builds without CUDA

Say = Callable[[str], None]


def build(say: Say) -> str:
    """Make sure that the image exists; returns its name. Tells its progress, and nothing when there is nothing to do.

    Raises LocalError when no engine answers or a step fails.
    """
    require()
    name = image_name()
    if has_image(name):
        return name
    folder = cache_folder() / "docker"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        if not has_image(name):
            _build(name, folder, say)
    return name


def image_name() -> str:
    """The image's name: its tag follows from everything that it is made of."""
    parts = [(_FOLDER / name).read_bytes() for name in _FILES] + ["\n".join(requirements()).encode()]
    return f"{REPOSITORY}:{hashlib.sha256(b'|'.join(parts)).hexdigest()[:12]}"


def requirements() -> list[str]:
    """What train_src asks for, and PyTorch, at the versions that are installed here; `name==version` each.

    Without the mark of a build behind the version (`+cpu`), which another build of the same version meets as well.
    """
    lines = (line.partition("#")[0].strip() for line in _requirements_file().read_text().splitlines())
    names = ["torch", *(re.split(r"[<>=!~\[; ]", line)[0] for line in lines if line)]
    try:
        return [f"{name}=={_public(importlib.metadata.version(name))}" for name in names]
    except importlib.metadata.PackageNotFoundError as error:
        raise LocalError(
            f"{error.name} is not installed here, so its version for the image is not known. Run `make setup`, or "
            'install llmtuner-kit with its extra "train".'
        ) from None


def _public(version: str) -> str:
    return version.partition("+")[0]


def _requirements_file() -> Path:
    spec = importlib.util.find_spec("train_src")
    folders = [_FOLDER.parents[1] / "train_src", *map(Path, (spec.submodule_search_locations or []) if spec else [])]
    for folder in folders:
        if (folder / "train.py").is_file():
            return folder / "requirements.txt"
    raise LocalError("train_src is not installed beside the local cloud. Install the project again.")


def _build(name: str, folder: Path, say: Say) -> None:
    started = time.monotonic()
    say(f"Building the image {name} (once; a few minutes, 1 GB).")
    base = _base(say)
    say("Fetching the packages of train_src.")
    wheels = _fetch_wheels(folder, say)
    say("Building: installing and compiling the packages.")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        context = Path(work)
        for item in _FILES:
            shutil.copy(_FOLDER / item, context / item)
        (context / "requirements.txt").write_text("\n".join(requirements()) + "\n")
        # The certificates this machine trusts: behind a proxy with its own, containers need them too.
        shutil.copy(ssl.get_default_verify_paths().cafile or certifi.where(), context / "ca-certificates.crt")
        shutil.copytree(wheels, context / "wheels", copy_function=_link)
        try:
            docker("build", "--quiet", "--build-arg", f"BASE={base}", "--tag", name, work, seconds=1800)
        except EngineError as error:
            raise LocalError(f"The image {name} could not be built: {str(error)[-1500:]}") from None
    # The stage that held the wheels has done its work; the older builder would keep it for good.
    docker("image", "prune", "--force", "--filter", "label=llmtuner.stage=packages")
    say(f"The image is ready after {time.monotonic() - started:.0f} s.")


def _base(say: Say) -> str:
    """An image with Debian bookworm: from the registry, else made here."""
    for known in (BASE, OWN_BASE):
        if has_image(known):
            return known
    try:
        docker("pull", "--quiet", BASE, seconds=300)
        return BASE
    except EngineError as error:
        reason = str(error)
    if not shutil.which("debootstrap"):
        raise LocalError(
            f"{BASE} cannot be pulled ({reason}), and debootstrap, which could make a base image, is not installed "
            f"(Debian and Ubuntu: apt-get install debootstrap). Or bring an image yourself: docker tag IMAGE {OWN_BASE}"
        )
    say("No registry can be reached: making the base image with debootstrap.")
    done = subprocess.run([str(_FOLDER / "build-base"), OWN_BASE], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LocalError(f"The base image could not be made: {(done.stderr + done.stdout).strip()[-1500:]}")
    return OWN_BASE


def _fetch_wheels(folder: Path, say: Say) -> Path:
    """Wheels for the container's Python and machine, in the cache; what was fetched before is kept."""
    arch = docker("version", "--format", "{{.Server.Arch}}")
    machine = _MACHINES.get(arch)
    if machine is None:
        raise LocalError(f"The Docker engine runs on {arch}. Valid: {', '.join(_MACHINES)}.")
    pinned = requirements()
    wheels = folder / f"wheels-{machine}-{hashlib.sha256(' '.join(pinned).encode()).hexdigest()[:12]}"
    marker = wheels / ".complete"
    if marker.exists():
        return wheels
    for old in folder.glob(f"wheels-{machine}-*"):
        shutil.rmtree(old)
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(_NEWEST_GLIBC, 4, -1)]
    platforms += [f"manylinux{year}_{machine}" for year in ("2014", "2010", "1")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--python-version", _PYTHON, "--dest", str(wheels)]
    command += [part for item in platforms for part in ("--platform", item)]
    torch = _fetch_torch(command, say)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        installed = {(item.name, item.version) for item in importlib.metadata.distributions() if item.name}
        installed = {(name, version) for name, version in installed if name != "torch"} | {("torch", torch)}
        constraints.write("".join(f"{name}=={version}\n" for name, version in sorted(installed)))
        constraints.flush()
        done = _run([*command, "--find-links", str(wheels), "--constraint", constraints.name, *pinned])
    if done.returncode:
        raise LocalError(f"pip could not fetch the packages of the image: {done.stderr.strip()[-1500:]}")
    marker.touch()
    return wheels


def _fetch_torch(command: list[str], say: Say) -> str:
    """Fetch PyTorch alone, without CUDA where that can be had; the version. Containers here never have a GPU."""
    installed = importlib.metadata.version("torch")
    cpu = f"{_public(installed)}+cpu"
    # Whoever has a mirror of their own may not reach any other place.
    ways: list[tuple[str, list[str]]] = [(cpu, []), (cpu, ["--index-url", _CPU_BUILDS, "--retries", "1"])]
    if installed != cpu:
        ways.append((installed, []))
    for version, options in ways:
        if version != cpu:
            say(
                f"PyTorch {cpu}, which has no CUDA, cannot be had, neither where pip looks nor at {_CPU_BUILDS}: taking "
                f"{version} as it is installed here. Where that brings CUDA, that is 3 GB more to fetch."
            )
        done = _run([*command, *options, "--no-deps", f"torch=={version}"])
        if done.returncode == 0:
            return version
    raise LocalError(f"pip could not fetch PyTorch for the image: {done.stderr.strip()[-1500:]}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _link(source: str, target: str) -> None:
    """A hard link where the file system has them: the context holds hundreds of megabytes for a minute only."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy(source, target)
