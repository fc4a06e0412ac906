"""Optimizers and learning-rate schedules, from plain numbers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Optimisation:
    """AdamW and its schedule.

    Attributes:
        learning_rate: the peak.
        betas, weight_decay: AdamW's.
        clip_norm: largest gradient norm, 0 for no clipping.
        schedule: "cosine" or "linear" decay to `final_share` of the peak over the run, or "constant".
        warmup_updates: linear warm-up.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    schedule: str = "cosine"
    warmup_updates: int = 0
    final_share: float = 0.0

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> AdamW:
        """AdamW over the parameters that learn."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        return AdamW(
            trained, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )

    def scheduler(self, optimizer: AdamW, updates: int) -> LambdaLR:
        """The schedule over `updates` updates."""
        return LambdaLR(optimizer, lambda update: self.share(update, updates))

    def share(self, update: int, updates: int) -> float:
        """The share of the peak learning rate that `update` (from 0) of `updates` takes."""
        if update < self.warmup_updates:
            return (update + 1) / (self.warmup_updates + 1)
        if self.schedule == "constant":
            return 1.0
        progress = (update - self.warmup_updates) / max(1, updates - self.warmup_updates)
        progress = min(1.0, progress)
        decay = 0.5 * (1.0 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1.0 - progress
        return self.final_share + (1.0 - self.final_share) * decay
