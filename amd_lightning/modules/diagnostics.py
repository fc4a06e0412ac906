"""What is logged of an update: the same names for every method.

train/loss              the weighted sum that the student descends, nats a token for kl, rkl and nll; with a
                        horizon or a sequence kernel it holds advantage · log q too, a surrogate
train/moment_gap_off    Σ_a (p − q) f, mean over the batch's off-policy tokens, with the run's own
train/moment_gap_on     critic; with the closed form (alpha .5, ridge 2) where a method has none
train/tv_off            total variation between teacher and student, mean over those tokens, 0..1
train/tv_on             (half the L1 distance)
train/gap_over_tv       moment gap / 2TV over all tokens: how near the critic is to the best one
                        that is bounded by 1
train/critic_abs        mean |f| under the mean of teacher and student
train/response_length   mean number of tokens of the student's own responses, EOS included
train/eos_share         share of these that end by EOS within the limit
train/grad_norm         of the student, before clipping
train/learning_rate     of the student
critic/loss             what the critics descend, after the last of the K steps
critic/grad_norm        of the critics, before clipping
critic/support_error    mean |moment gap over the actions that critic steps look at − over all|, same critic
rollout/beta            the off-/on-policy factor of the next update, where it follows the validation loss
rollout/age             mean number of updates since the student wrote the on-policy responses of this one
rollout/writings        updates in which the student wrote, so far
rollout/buffer          prompts in the replay buffer
train/response_tokens   response tokens trained on so far, whoever wrote them
cost/teacher_tokens     tokens that the teacher read while distilling, so far
time/seconds            since training began, validations included
time/updates_per_second since the line before
                        seconds an update since the line before, by part (`modules/clock.py`):
time/generation         collecting the batch, the student's responses above all
time/teacher_forward    the teacher's layers
time/student_forward    the student's
time/distance           both heads, the distance, the critic at every action, and their gradient
time/student_backward   the student's layers
time/critic             the K steps
time/optimizer          clipping and the student's step
time/logging            making and writing the line before
time/between            of two updates: loader, Lightning's hooks, validations, checkpoints
time/rest               of an update

A method that has no value for a name leaves it out (no teacher: no gaps; beta = 1: nothing on-policy); nobody
logs the same under another name. `AXES` stand in every row, validations' included.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from amd_lightning import ranks
from amd_lightning.objectives.divergences import tv
from amd_lightning.objectives.moments import closed_form_critic, log_ratio, moment_gap
from amd_lightning.types import Batch, Tokens

AXES = ("train/response_tokens", "time/seconds", "cost/teacher_tokens")
"""What a curve may be drawn against in place of `update`."""

LOGGED = "log."
"""Heads the names of per-token values that are for the log, and not for the critics."""


def split_logged(values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(values for the log, without that head; all others)."""
    logged = {name.removeprefix(LOGGED): value for name, value in values.items() if name.startswith(LOGGED)}
    return logged, {name: value for name, value in values.items() if not name.startswith(LOGGED)}


class TokenMeans:
    """Means of per-token values over the off-policy, the on-policy and all tokens of a batch."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, tokens: Tokens, values: Mapping[str, Tensor]) -> None:
        """Take in per-token values [N] of a micro-batch."""
        for name, value in values.items():
            for source, chosen in (("off", tokens.off_policy), ("on", ~tokens.off_policy)):
                self._sums[f"{name}_{source}"] += float(value.detach()[chosen].sum())
                self._counts[f"{name}_{source}"] += int(chosen.sum())

    def mean(self, name: str, sources: Sequence[str] = ("off", "on")) -> float | None:
        """The mean over the tokens of those sources; None where there are none."""
        count = sum(self._counts.get(f"{name}_{source}", 0) for source in sources)
        total = sum(self._sums.get(f"{name}_{source}", 0.0) for source in sources)
        return total / count if count else None

    def metrics(self) -> dict[str, float]:
        """The `train/*` values that per-token values give, on all ranks together."""
        if self._sums:
            parts = ranks.gathered([(dict(self._sums), dict(self._counts))])
            self._sums, self._counts = (_added(of_ranks) for of_ranks in zip(*parts, strict=True))
        gap, variation = self.mean("moment_gap"), self.mean("tv")
        found = {
            "train/moment_gap_off": self.mean("moment_gap", ["off"]),
            "train/moment_gap_on": self.mean("moment_gap", ["on"]),
            "train/tv_off": self.mean("tv", ["off"]),
            "train/tv_on": self.mean("tv", ["on"]),
            "train/critic_abs": self.mean("critic_abs"),
            "critic/support_error": self.mean("support_error"),
            "train/gap_over_tv": gap / (2.0 * variation) if gap is not None and variation else None,
        }
        return {name: value for name, value in found.items() if value is not None}


def _added(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of what stands under one name."""
    found: dict[str, Any] = defaultdict(int)
    for part in parts:
        for name, value in part.items():
            found[name] += value
    return found


def stand_in(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The critic of a method that has none: the closed form at alpha .5, ridge 2. [N, V] twice -> [N, V]."""
    return closed_form_critic(log_ratio(log_p, log_q), alpha=0.5, ridge=2.0)


@torch.no_grad()
def token_values(log_p: Tensor, log_q: Tensor, critic: Tensor | None = None) -> dict[str, Tensor]:
    """Moment gap, total variation and mean |f| at each state. Log-probabilities [N, V] -> [N] each.

    Names are headed by "log.": they are for the log, and not for the critics.
    `critic` [N, V] is the run's own; without one the closed form at alpha .5, ridge 2 stands in.
    """
    if critic is None:
        critic = stand_in(log_p, log_q)
    p, q = log_p.exp(), log_q.exp()
    return {
        "log.moment_gap": moment_gap(p, q, critic),
        "log.tv": tv(log_p, log_q),
        "log.critic_abs": (0.5 * (p + q) * critic.abs()).sum(-1),
    }


def response_metrics(batch: Batch, end_ids: Sequence[int]) -> dict[str, float]:
    """Length and share with EOS of the responses that the student wrote; nothing where it wrote none."""
    rollout = batch.rollout
    written = ~rollout.off_policy
    mask, ids = rollout.response_mask[written], rollout.response_ids[written]
    ended = (torch.isin(ids, torch.tensor(list(end_ids), device=ids.device)) & mask).any(-1)
    responses, tokens, ends = ranks.totals([len(mask), int(mask.sum()), int(ended.sum())])
    if not responses:
        return {}
    return {"train/response_length": tokens / responses, "train/eos_share": ends / responses}
