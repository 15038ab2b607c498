"""What a container sees of this machine, as arguments of bubblewrap and as a script for `unshare`.

Everything but: the state of the local cloud, the user's home folder, /tmp and /dev/shm (its own instead). The
Python environment, and what the request names in PATH or PYTHONPATH, are shown again where one of these would hide
them. /opt/ml is the job's folder.
"""

from __future__ import annotations

import os
import pwd
import shlex
import site
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAIN = "LLMTUNER_MAIN"  # in the environment of the program itself, not of what makes its view
TEMPORARY = "tmp"  # below the job's folder, so that it goes with it
_SYSTEM = ("/usr", "/etc", "/opt", "/proc", "/dev", "/tmp", "/var")  # noqa: S108 - a home above one of these stays
# Docker's default set without mknod: with sys_admin a job of root could take away what hides the rest.
_CAPABILITIES = (
    "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,"
    "+setfcap,+audit_write"
)
_FILES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "PIP_CONFIG_FILE")


@dataclass(frozen=True)
class View:
    """Folders of this machine and how a container sees them.

    `base` is its /opt/ml, `read_only` folders of it that it may not change, `hide` the state of the local cloud,
    `hosts` a file to show as /etc/hosts, `shown` folders with programs that must be seen wherever they are.
    """

    base: Path
    hide: Path | None = None
    hosts: Path | None = None
    read_only: Sequence[str] = ()
    shown: Sequence[str] = ()


def named(environment: Mapping[str, str]) -> list[str]:
    """The folders of PATH and PYTHONPATH that a request has put there: this process has them not in its own."""
    found = []
    for name in ("PATH", "PYTHONPATH"):
        own = os.environ.get(name, "").split(os.pathsep)
        found += [part for part in environment.get(name, "").split(os.pathsep) if part not in own]
    return [part for part in found if part.startswith("/")]


def prepare(base: Path) -> None:
    """Make the folders that the view shows at other places."""
    (base / TEMPORARY).mkdir(parents=True, exist_ok=True)


def bubblewrap(command: list[str], view: View) -> list[str]:
    """The command line of bubblewrap: mounts in order, a pid namespace, the end of all with its parent."""
    line = ["bwrap", "--dev-bind", "/", "/", "--tmpfs", "/dev/shm"]  # noqa: S108
    for home in _homes():
        line += ["--tmpfs", str(home)]
    for folder in _temporary():
        line += ["--bind", str(view.base / TEMPORARY), folder]
    line += ["--tmpfs", "/opt"]
    for item in _siblings():
        line += (
            ["--symlink", str(item.readlink()), str(item)] if item.is_symlink() else ["--bind", str(item), str(item)]
        )
    line += ["--bind", str(view.base), "/opt/ml"]
    for name in view.read_only:
        line += ["--ro-bind", str(view.base / name), f"/opt/ml/{name}"]
    for item in _needed(command, view):
        line += ["--bind", str(item), str(item)]
    if view.hide:
        line += ["--tmpfs", str(view.hide)]
    if view.hosts:
        line += ["--ro-bind", str(view.hosts), "/etc/hosts"]
    line += ["--cap-drop", "ALL"]
    for name in _CAPABILITIES.split(",+")[1:] if os.geteuid() == 0 else ():
        line += ["--cap-add", f"CAP_{name.upper()}"]
    return [*line, "--unshare-pid", "--proc", "/proc", "--die-with-parent", "--chdir", "/opt/ml", "--", *command]


def unshare(command: list[str], view: View) -> list[str]:
    """The same with util-linux alone. The shell that mounts stays as pid 1, so that signals act as elsewhere."""
    user = [] if os.geteuid() == 0 else ["-Ur"]
    flags = ["--mount", "--propagation", "private", "--fork", "--pid", "--mount-proc", "--kill-child"]
    # $0 is not used; the command is "$@" and nothing of it is read by the shell.
    return ["unshare", *user, *flags, "sh", "-c", _script(command, view), "sh", *command]


def _script(command: list[str], view: View) -> str:
    keep = shlex.quote(str(view.base / TEMPORARY))  # a place to mount on while /opt is put together
    lines = ["set -e", f"mount -t tmpfs none {keep}", f"mkdir {keep}/ml {keep}/.needed"]
    lines += [f"mount --bind {shlex.quote(str(view.base))} {keep}/ml"]
    for name in view.read_only:
        place = f"{keep}/ml/{shlex.quote(name)}"
        lines += [f"mount --bind {place} {place}", f"mount -o remount,bind,ro {place}"]
    for item in _siblings():
        name, target = shlex.quote(item.name), shlex.quote(str(item))
        if item.is_symlink():
            lines += [f"ln -s {shlex.quote(str(item.readlink()))} {keep}/{name}"]
        else:
            lines += [f"{'mkdir' if item.is_dir() else 'touch'} {keep}/{name}", f"mount --rbind {target} {keep}/{name}"]
    needed = _needed(command, view)
    for n, item in enumerate(needed):
        lines += [f"{'mkdir' if item.is_dir() else 'touch'} {keep}/.needed/{n}"]
        lines += [f"mount --rbind {shlex.quote(str(item))} {keep}/.needed/{n}"]
    if view.hosts:
        lines += [f"mount --bind {shlex.quote(str(view.hosts))} /etc/hosts"]
    lines += [f"mount --rbind {keep} /opt", f"umount -l {keep}", "mount -t tmpfs none /dev/shm"]
    lines += [f"mount -t tmpfs none {shlex.quote(str(home))}" for home in _homes()]
    lines += [f"mount --bind /opt/ml/{TEMPORARY} {folder}" for folder in _temporary()]
    for n, item in enumerate(needed):
        target = shlex.quote(str(item))
        make = f"mkdir -p {target}" if item.is_dir() else f"mkdir -p {shlex.quote(str(item.parent))}; touch {target}"
        lines += [f"{make}; mount --rbind /opt/.needed/{n} {target}; umount -l /opt/.needed/{n}"]
    lines += ["rm -rf /opt/.needed"]
    if view.hide:
        lines += [f"mkdir -p {shlex.quote(str(view.hide))}", f"mount -t tmpfs none {shlex.quote(str(view.hide))}"]
    # Not `exec`: as pid 1 the program would not be ended by a SIGTERM that it does not handle.
    free = f"{MAIN}=1 setpriv --inh-caps {_CAPABILITIES} --bounding-set {_CAPABILITIES} --no-new-privs --"
    return "\n".join([*lines, "cd /opt/ml", "set +e", f'{free} "$@"', "exit $?"])


def _homes() -> list[Path]:
    """The home folders of the user that can be hidden: not one that the system itself lies in."""
    found = {Path.home()}
    try:
        found.add(Path(pwd.getpwuid(os.getuid()).pw_dir))
    except KeyError:
        pass  # a user id without a name has no other home
    real = {item.resolve() for item in found if item.is_dir()}
    return sorted(item for item in real if not any(Path(name).is_relative_to(item) for name in _SYSTEM))


def _temporary() -> list[str]:
    return [name for name in ("/tmp", "/var/tmp") if Path(name).is_dir() and not Path(name).is_symlink()]  # noqa: S108


def _siblings() -> list[Path]:
    opt = Path("/opt")
    return [item for item in sorted(opt.iterdir()) if item.name != "ml"] if opt.is_dir() else []


def _needed(command: list[str], view: View) -> list[Path]:
    """What would be hidden and must not: Python and its packages, programs that the request names, certificates."""
    hidden = [*_homes(), *map(Path, _temporary())]
    wanted = [sys.prefix, sys.base_prefix, *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        wanted.append(site.getuserbase())
    wanted += [part for part in (*command, *view.shown) if part.startswith("/") and not part.startswith("/opt/ml")]
    wanted += [os.environ[name] for name in _FILES if name in os.environ]
    found: list[Path] = []
    for item in sorted({Path(name) for name in wanted}):
        gone = any(item != folder and item.is_relative_to(folder) for folder in hidden)
        state = view.hide is not None and item.is_relative_to(view.hide)
        if gone and not state and item.exists() and not any(item.is_relative_to(other) for other in found):
            found.append(item)
    return found
