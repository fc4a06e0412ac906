"""Where the time of an update goes, part by part.

The clock is the CPU's and waits for nothing: on a GPU a part's seconds are those in which the CPU launches
work or waits for a value. `trainer.profile=true` says what the device does.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

PARTS = (
    "generation",
    "teacher_forward",
    "student_forward",
    "distance",
    "student_backward",
    "critic",
    "optimizer",
    "logging",
    "between",
)
"""generation: collecting the batch, the student's responses above all; distance: both heads, the distance,
the critic at every action, and their gradient; student_backward: of the layers below the head; critic: the K
steps; between: of one update and the next: loader, Lightning's hooks, validations, checkpoints."""


class Clock:
    """Seconds of each of `PARTS` since the last reading; parts do not overlap, what is left is "rest".

    Args:
        now: seconds since whenever; a process's own in place of the wall's where other work shares the cores.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self.reset()

    def reset(self) -> None:
        """Begin anew; time between the last update and the next one is not counted."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._inside = 0.0
        self._updates = 0
        self._ended: float | None = None

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside as `part`; a profile names it so, too."""
        began = self._now()
        with torch.profiler.record_function(part):
            yield
        self._seconds[part] += self._now() - began

    @contextmanager
    def update(self) -> Iterator[None]:
        """One update."""
        began = self._now()
        if self._ended is not None:
            self._seconds["between"] += began - self._ended
        with torch.profiler.record_function("update"):
            yield
        self._ended = self._now()
        self._inside += self._ended - began
        self._updates += 1

    def read(self) -> dict[str, float]:
        """time/PART: seconds an update since the last reading, which ends here; nothing before the first."""
        updates = self._updates
        if not updates:
            return {}
        found = {f"time/{part}": seconds / updates for part, seconds in self._seconds.items()}
        parts = sum(seconds for part, seconds in self._seconds.items() if part != "between")
        found["time/rest"] = max(0.0, self._inside - parts) / updates
        ended = self._ended
        self.reset()
        self._ended = ended
        return found
