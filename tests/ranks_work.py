"""What ranks that `launching` starts do in its tests."""

import os
import signal
import time
from pathlib import Path

from amd_lightning import ranks
from amd_lightning.errors import UserError


def killed() -> None:
    """Dies as of kill -9."""
    ranks.totals([1.0])
    os.kill(os.getpid(), signal.SIGKILL)


def fails() -> None:
    """Dies of an error, while rank 0 is on its own."""
    raise ZeroDivisionError("a bug of rank 1")


def refuses() -> None:
    """Dies of what the user can mend."""
    raise UserError("the disk of rank 1 is full; free some space")


def waits(folder: str) -> None:
    """Leaves its number and waits for rank 0, for ever."""
    Path(folder, "pid").write_text(str(os.getpid()))
    ranks.first_alone(lambda: None)
    time.sleep(1000.0)


def adds(folder: str) -> None:
    """Takes part in an exchange and in what rank 0 does alone."""
    found = ranks.totals([1.0, float(ranks.rank())])
    made = ranks.first_alone(lambda: "of rank 1")
    Path(folder, f"rank_{ranks.rank()}").write_text(f"{found} {made} {ranks.local_rank()}")
