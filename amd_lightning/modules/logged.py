"""What a module counts while it trains, and tells its loggers: updates, tokens, seconds."""

import time
from collections.abc import Mapping
from typing import Any

import lightning as L

from amd_lightning import ranks
from amd_lightning.modules.clock import Clock
from amd_lightning.modules.diagnostics import AXES
from amd_lightning.types import Batch


class LoggedModule(L.LightningModule):
    """Knows how far it is; a checkpoint carries that on.

    Attributes:
        update: how many updates have been made: the x-axis of everything.
        tokens_seen: stored ("off") and student-written ("on") ones, those that the teacher read ("teacher").
        latest: what was logged last.
        clock: where an update's time goes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.update = 0
        self.tokens_seen = {"off": 0, "on": 0, "teacher": 0}
        self.latest: dict[str, float] = {}
        self.clock = Clock()
        self._started_at = self._logged_at = time.perf_counter()
        self._seconds_before = 0.0
        self._logged_update = 0

    @property
    def seconds(self) -> float:
        """Of training so far, that of the run which this one goes on from included."""
        return time.perf_counter() - self._started_at

    def axes(self) -> dict[str, float]:
        """What anything may be drawn against, beside the update: so far, whatever the method."""
        written = self.tokens_seen["off"] + self.tokens_seen["on"]
        teacher = self.tokens_seen["teacher"]
        return dict(zip(AXES, (written, self.seconds, teacher), strict=True))

    def count_tokens(self, batch: Batch, teacher_read: int) -> None:
        """Those of an update, on all ranks."""
        per_response = batch.rollout.response_mask.sum(-1)
        off = int(per_response[batch.rollout.off_policy].sum())
        on = int(per_response[~batch.rollout.off_policy].sum())
        for source, count in zip(self.tokens_seen, ranks.totals([off, on, teacher_read]), strict=True):
            self.tokens_seen[source] += int(count)

    def log_update(self, metrics: Mapping[str, float]) -> None:
        """Log an update with how far the run is and how fast."""
        now = time.perf_counter()
        since_last = now - self._logged_at
        rate = (self.update - self._logged_update) / since_last if since_last > 0 else 0.0
        self._logged_at, self._logged_update = now, self.update
        rates = {"time/updates_per_second": rate, **self.clock.read()}
        self.latest = {"update": self.update, **metrics, **self.axes(), **rates}
        self.log_to_all(self.latest)

    def log_to_all(self, metrics: Mapping[str, float]) -> None:
        """Hand metrics to every logger, with the update as the x-axis."""
        for logger in self.loggers:
            logger.log_metrics({"update": self.update, **metrics}, step=self.update)

    # -- Lightning's hooks ---------------------------------------------------------------------

    def on_train_start(self) -> None:
        self._logged_at = time.perf_counter()
        self._started_at = self._logged_at - self._seconds_before
        self._logged_update = self.update
        self.clock.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["progress"] = {"update": self.update, "tokens_seen": dict(self.tokens_seen)}
        checkpoint["seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.update = checkpoint["progress"]["update"]
        self.tokens_seen = dict(checkpoint["progress"]["tokens_seen"])
        self._seconds_before = checkpoint["seconds"]
