"""Errors that the user can mend. Each says in one line what is wrong and what to do about it.

`run.py` prints them as `error: ...` without a traceback and exits with a non-zero status; every
other exception is a bug of ours and keeps its traceback.
"""

import signal
from collections.abc import Sequence
from typing import Any


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, then the remedy."""


class ConfigError(UserError):
    """The configuration is refused; every problem is listed, one a line."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        heading = (
            "the configuration is refused:" if count == 1 else f"the configuration has {count} problems:"
        )
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]))


class PointError(UserError):
    """A point of a sweep failed. Its index says more; Hydra goes on, and raises the first at the end."""


class DataError(UserError):
    """A data set cannot be used as it is: a missing path or column, an empty split or response."""


class ModelError(UserError):
    """A model cannot be used as it is: a missing path, an unsupported family, other vocabularies."""


class HubUnreachableError(UserError):
    """The model and data hub does not answer."""


class CacheError(UserError):
    """The artifact cache cannot be used: not writable, or another run holds the lock for too long."""


class CheckpointError(UserError):
    """A checkpoint of training cannot be used: it is damaged, or another run's."""


class RankError(UserError):
    """Another process of a run on several devices died; the message says which and why."""


class NonFiniteError(UserError):
    """A loss or gradient is not finite; the message names the update and the term."""


class Pruned(Exception):  # the usual word of searches, and nothing is wrong
    """A run was given up for those that do better; see `sweeps/study.py`.

    Attributes:
        metric, value: of the validation that it was given up for.
    """

    def __init__(self, metric: str, value: float | None, update: int) -> None:
        super().__init__(f"given up after update {update}")
        self.metric = metric
        self.value = value


class Interrupted(KeyboardInterrupt):
    """Stopped by a signal.

    Attributes:
        signum: SIGINT, SIGTERM, or a signal of `training/preemption.py`.
        update, updates: where distillation stands, of how many; None outside of it.
        words: what to say of it.
    """

    words = "interrupted; stages that were finished are in the cache and are not made again"

    def __init__(
        self, signum: int = signal.SIGINT, update: int | None = None, updates: int | None = None
    ) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.update = update
        self.updates = updates

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int, int | None, int | None], dict[str, Any]]:
        """Out of a process of joblib's as it is; by itself it would be made again from its text."""
        return type(self), (self.signum, self.update, self.updates), vars(self)


class Preempted(Interrupted):
    """Stopped by a batch system, in whose queue the run's job stands again, or soon does."""

    words = "stopped by the batch system; stages that were finished are in the cache and are not made again"
