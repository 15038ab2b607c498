"""Room on the job's disk: asked for before the training is paid for, and named when it is gone all the same."""

import errno
import os
import shutil
from pathlib import Path

from failures import TrainingError
from folders import Folders

GB = 1e9
LARGER = "give the job an instance with a larger disk, or a larger volume (VolumeSizeInGB) where it has none of its own"


def require_room(folders: Folders, *, checkpoints: int, archive: int) -> None:
    """Raises TrainingError when the disk cannot hold that many bytes of checkpoints and archive.

    What an earlier try left in their folders counts as room: it will be replaced.
    """
    wanted: dict[int, int] = {}
    free: dict[int, int] = {}
    for folder, size in ((folders.checkpoints, checkpoints), (folders.model, archive)):
        present = next(each for each in (folder, *folder.parents) if each.exists())
        device = present.stat().st_dev
        wanted[device] = wanted.get(device, 0) + size
        free[device] = free.get(device, shutil.disk_usage(present).free) + _size(folder)
    for device, size in wanted.items():
        if size > free[device]:
            raise TrainingError(
                f"the disk of {folders.base} has {free[device] / GB:.3g} GB free, checkpoints and archive take "
                f"{size / GB:.3g} GB: {LARGER}"
            )


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room left; safetensors gives the system's text without its number."""
    return getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
