"""Stopping a run between two updates: on Ctrl-C and SIGTERM, for a batch system, and when its time is up.

A signal that comes within an update waits for its end: a state halfway between the critics' steps and the
student's is nothing to go on from. The second one does not wait.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from amd_lightning import ranks
from amd_lightning.training import preemption

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Whether training is to stop at the end of the update, and why.

    Args:
        seconds: from now, in which the whole run is to end; None for no limit.

    Attributes:
        signum: the signal that was heard; None before one.
        reserve: how many of the seconds the run needs after the last update.
        out_of_time: training stopped for want of time.
        report: takes an update and the value that validation came to; whether to give the run up.
        given_up: that value; None while nothing is.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.signum: int | None = None
        self.reserve = 0.0
        self.out_of_time = False
        self.report: Callable[[int, float], bool] | None = None
        self.given_up: float | None = None
        self._longest = 0.0
        self._listening = False
        self._process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the first signal is noted, and a second Ctrl-C or SIGTERM raises `Interrupted`."""
        if threading.current_thread() is not threading.main_thread():  # where Python hears none
            yield
            return
        before = {number: signal.getsignal(number) for number in (*SIGNALS, *preemption.signals())}
        self._listening = True
        self._process = os.getpid()
        self.listen()
        try:
            yield
        finally:
            self._listening = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals (again: Lightning puts its own handler before a run's)."""
        if self._listening:
            for number in (*SIGNALS, *preemption.signals()):
                signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's forked worker, which inherits the handler
            return
        if number in SIGNALS and self.signum is not None:
            if self.signum in SIGNALS:
                raise preemption.interruption(number)
            return  # the job is about to be killed: nothing that was not known
        self.signum = number
        # A handler runs between any two instructions, perhaps in the middle of a line of the log.
        os.write(2, b"stopping at the end of this update; once more to stop at once\n")

    def validated(self, update: int, value: float | None) -> None:
        """Take note of a validation."""
        if self.report is not None and value is not None and self.report(update, value):
            self.given_up = value

    def after_update(self, seconds: float) -> bool:
        """Whether to stop after an update that took so long."""
        self._longest = max(self._longest, seconds)
        if self.deadline is not None and self.signum is None:
            left = self.deadline - time.monotonic()
            self.out_of_time = left < self.reserve + self._longest
        self.agree()
        return self.signum is not None or self.out_of_time or self.given_up is not None

    def agree(self) -> None:
        """What one rank heard, ran out of or was told holds for all: they stop after the same update."""
        self.signum = ranks.largest(self.signum or 0) or None
        self.out_of_time = bool(ranks.largest(int(self.out_of_time)))
        if ranks.world_size() > 1:
            self.given_up = ranks.of_first(self.given_up)  # rank 0 alone reports
