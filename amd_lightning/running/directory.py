"""What a run does with its directory beside what its stages write there."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from amd_lightning.running.resume import LOCK

OWN_FILES = ("config.yaml", "run.log", LOCK)
"""What a run writes before its first stage."""


def replace(path: Path, text: str) -> None:
    """Write a file that is there whole, as it was or as it will be, at every moment."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def remove_if_nothing_ran(folder: Path, before: Collection[str]) -> None:
    """A run that was refused before its first artifact leaves the directory as it was, and none where it was
    empty.

    Args:
        before: the names that stood there when it came.
    """
    with suppress(OSError):  # of a directory that cannot be written, the run itself says so
        if any(path.name not in OWN_FILES and path.name not in before for path in folder.iterdir()):
            return
        for name in set(OWN_FILES) - set(before):
            (folder / name).unlink(missing_ok=True)
        if not before:
            folder.rmdir()


def remove_empty(folder: Path) -> None:
    """Remove the directory if it is empty, and what is left empty above it in the default layout, runs/."""
    layout = Path.cwd() / "runs"
    above = [parent for parent in folder.parents if parent.is_relative_to(layout)]
    for path in (folder, *above):
        if path.is_dir():
            if any(path.iterdir()):
                return
            path.rmdir()
