"""Whose states an update trains on, and how much those weigh: β, and where the student's own come from."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from amd_lightning.modules.adaptive import AdaptiveBeta
from amd_lightning.policies import Policy
from amd_lightning.replay import Replay
from amd_lightning.rollouts import Sampler, collect
from amd_lightning.types import Batch, Rollout


class States:
    """Collects the batch of an update; what it remembers is part of a checkpoint.

    Args:
        sampler: writes the student's responses; not called at β = 1.
        beta: the off-/on-policy factor; `adaptive` is asked for it instead, where there is one.
        normalise: "token" or "sequence", see `rollouts.token_weights`.
        replay: where student-written responses serve more than once; None writes anew in every update.
    """

    def __init__(
        self,
        sampler: Sampler,
        beta: float,
        normalise: str,
        replay: Replay | None = None,
        adaptive: AdaptiveBeta | None = None,
    ) -> None:
        self.sampler = sampler
        self.fixed_beta = beta
        self.normalise = normalise
        self.replay = replay
        self.adaptive = adaptive

    @property
    def beta(self) -> float:
        """Of the next update."""
        return self.fixed_beta if self.adaptive is None else self.adaptive.beta

    def collect(self, stored: Rollout, student: Policy, update: int, updates: int) -> Batch:
        """The batch of one update, of so many; `stored` is what the loader gives."""
        sampler = self.sampler
        if self.replay is not None:
            sampler = partial(self.replay.states, self.sampler, update=update, updates=updates)
        return collect(stored, student, sampler, self.beta, self.normalise)

    def validated(self, metrics: Mapping[str, float | None]) -> None:
        """What a validation measured."""
        if self.adaptive is not None:
            self.adaptive.validated(metrics)

    def metrics(self) -> dict[str, float]:
        """The `rollout/*` values; none where every update writes anew at one β."""
        found = {} if self.replay is None or self.beta == 1.0 else self.replay.metrics()
        return found if self.adaptive is None else found | {"rollout/beta": self.beta}

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Add what is remembered to a checkpoint."""
        for name, part in (("replay", self.replay), ("adaptive", self.adaptive)):
            if part is not None:
                checkpoint[name] = part.state_dict()

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """What `save` added."""
        for name, part in (("replay", self.replay), ("adaptive", self.adaptive)):
            if part is not None:
                part.load_state_dict(checkpoint[name])
