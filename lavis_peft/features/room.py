"""Room on the disk."""

import os
import shutil
from pathlib import Path

from lavis_peft.errors import DiskFull


def check_room(folder: Path, needed: int) -> None:
    """See that a folder's disk has room.

    Args:
        folder: It may be made later.
        needed: Bytes.

    Raises:
        DiskFull: It hasn't.
    """
    free = free_bytes(folder)
    if needed > free:
        raise DiskFull(
            f"run.feature_cache: {folder}: {size_text(needed)} of features are to be computed, and the disk has "
            f"{size_text(free)} free; make room, name a folder on another disk, or leave run.feature_cache out"
        )


def free_bytes(folder: Path) -> int:
    """Free room on the disk of a folder that may not be there yet."""
    place = folder.absolute()
    while not os.path.exists(place):  # Path.exists raises where a folder above may not be entered
        place = place.parent
    return shutil.disk_usage(place).free


def size_text(count: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
