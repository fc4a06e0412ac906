"""Where a run's checkpoints lie, and how one takes its place.

It is written beside its place, synced and renamed: whatever ends the process, and when, the one before it is
still there.
"""

import os
import re
import shutil
from pathlib import Path

FOLDER = "checkpoints"
"""In the run's directory."""

BEST, FAILED = "best.ckpt", "failed.ckpt"
"""Beside `last.ckpt`, `last_2.ckpt`, ...: of the best validation; of a run that failed within an update, from
which nothing goes on."""

WRITING, LINK = ".writing.ckpt", ".best.ckpt"
"""Files that have not taken their place."""


def last(folder: Path, place: int = 1) -> Path:
    """The newest checkpoint, the one before it (2), ..."""
    return folder / ("last.ckpt" if place == 1 else f"last_{place}.ckpt")


def all_last(folder: Path) -> list[Path]:
    """The checkpoints that a run can go on from, the newest first."""
    places = {1: folder / "last.ckpt"} | {
        int(found[1]): path
        for path in folder.glob("last_*.ckpt")
        if (found := re.fullmatch(r"last_(\d+)\.ckpt", path.name))
    }
    return [path for _, path in sorted(places.items()) if path.is_file()]


def keep(written: Path, folder: Path, count: int) -> None:
    """Make a synced file the newest checkpoint, and leave `count` in all.

    At every moment each of the files is whole, and the newest that was there still is.
    """
    for place in range(count - 1, 0, -1):
        if last(folder, place).is_file():
            last(folder, place).replace(last(folder, place + 1))
    written.replace(last(folder))
    for path in all_last(folder)[count:]:
        path.unlink()
    _sync_names(folder)


def keep_as_best(written: Path, folder: Path) -> None:
    """Let `best.ckpt` be this synced file, too; a copy of it where the file system knows no links."""
    link = folder / LINK
    link.unlink(missing_ok=True)
    try:
        os.link(written, link)
    except OSError:
        shutil.copyfile(written, link)
    link.replace(folder / BEST)


def _sync_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
