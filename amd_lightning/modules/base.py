"""What every method shares: collect → update → log. SFT and every baseline run on it.

One dataloader batch is one update. `training_step` collects its rollouts (stored ones, and the
student's own where β < 1), weighs their tokens once, cuts them into micro-batches, and makes one
student step; subclasses say what the loss of packed tokens is, and what moves before the student.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from amd_lightning.errors import NonFiniteError
from amd_lightning.modules.diagnostics import TokenMeans, response_metrics
from amd_lightning.modules.optim import Optimisation
from amd_lightning.policies import Policy
from amd_lightning.rollouts import Sampler, collect
from amd_lightning.types import Batch, Rollout, Tokens


class DistillationModule(L.LightningModule):
    """Trains a student by manual optimization, one batch an update.

    Args:
        student: the policy that learns.
        teacher: the frozen policy; None where the objective needs none (`nll` on stored responses).
        sampler: writes the student's responses; not called at β = 1.
        beta: the off-/on-policy factor.
        normalise: "token" or "sequence", see `rollouts.token_weights`.
        optimisation: the student's optimizer.
        updates: how many updates the schedule spans.
        micro_batch_size: prompts per backward.
        log_every: diagnose and log every so many updates (and the first).
    """

    teacher: Policy | None

    def __init__(
        self,
        student: Policy,
        teacher: Policy | None,
        *,
        sampler: Sampler,
        beta: float,
        normalise: str,
        optimisation: Optimisation,
        updates: int,
        micro_batch_size: int,
        log_every: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.student = student
        # Kept out of the module's registry: the frozen teacher is neither saved in checkpoints nor
        # handed to a strategy that would wrap it together with what learns.
        object.__setattr__(self, "teacher", teacher.requires_grad_(False).eval() if teacher else None)
        self.sampler = sampler
        self.beta = beta
        self.normalise = normalise
        self.optimisation = optimisation
        self.updates = updates
        self.micro_batch_size = micro_batch_size
        self.log_every = log_every
        self.update = 0
        self.tokens_seen = {"off": 0, "on": 0}
        self.latest: dict[str, float] = {}
        self._started_at = self._logged_at = time.perf_counter()
        self._logged_update = 0

    # -- what a method says --------------------------------------------------------------------

    def token_terms(self, tokens: Tokens, diagnose: bool) -> dict[str, Tensor]:
        """Per-token values [N]: "distance", whose weighted sum is the loss that the student descends,
        and, where `diagnose`, those of `diagnostics.token_values`."""
        raise NotImplementedError

    def critic_steps(self, micro_batches: Sequence[Tokens]) -> dict[str, float]:
        """What moves before the student, on the same batch: nothing here. Returns metrics."""
        return {}

    # -- collect, update, log ------------------------------------------------------------------

    def training_step(self, stored: Rollout, batch_idx: int) -> None:
        """One update on one dataloader batch."""
        batch = collect(stored, self.student, self.sampler, self.beta, self.normalise)
        logged = self.update == 0 or (self.update + 1) % self.log_every == 0
        metrics = self._update(batch, diagnose=logged)
        self.update += 1
        self._count_tokens(batch)
        if logged:
            self._log(metrics | response_metrics(batch, self.student.end_ids))

    def _update(self, batch: Batch, diagnose: bool) -> dict[str, float]:
        """K critic steps where there is a critic, then one student step, all on the same batch."""
        micro_batches = list(batch.micro_batches(self.micro_batch_size))
        # The student does not move while the critics step, so one forward gives the critics their
        # features and the student its graph; only when that graph would have to be kept for several
        # micro-batches is it made again at the student's turn.
        keep_graph = len(micro_batches) == 1
        packed = [self._pack(micro, keep_graph) for micro in micro_batches]
        critic_metrics = self.critic_steps(packed)

        optimizer = self._optimizers()[0]
        optimizer.zero_grad()
        loss, means = 0.0, TokenMeans()
        for micro, tokens in zip(micro_batches, packed, strict=True):
            if not keep_graph:
                tokens = tokens._replace(student_hidden=self.student.hidden(micro.rollout))
            terms = self.token_terms(tokens, diagnose)
            part = (tokens.weight * terms.pop("distance")).sum()
            self.manual_backward(part)
            loss += part.item()
            means.add(tokens, terms)
        metrics = {"train/loss": loss, "train/learning_rate": optimizer.param_groups[0]["lr"]}
        metrics["train/grad_norm"] = self._step(
            optimizer, self.student, loss, self.optimisation.clip_norm, "student"
        )
        return metrics | means.metrics() | critic_metrics

    def _pack(self, micro: Batch, keep_graph: bool) -> Tokens:
        """The packed tokens of a micro-batch: one student forward, and the only teacher forward."""
        rollout = micro.rollout
        with torch.set_grad_enabled(keep_graph):
            student_hidden = self.student.hidden(rollout)
        teacher_hidden = student_hidden.new_empty(len(student_hidden), 0)
        if self.teacher is not None:
            with torch.no_grad():
                teacher_hidden = self.teacher.hidden(rollout)
        mask = rollout.response_mask
        off_policy = rollout.off_policy.unsqueeze(-1).expand_as(mask)
        return Tokens(
            student_hidden, teacher_hidden, rollout.response_ids[mask], micro.weight[mask], off_policy[mask]
        )

    def _count_tokens(self, batch: Batch) -> None:
        per_response = batch.rollout.response_mask.sum(-1)
        self.tokens_seen["off"] += int(per_response[batch.rollout.off_policy].sum())
        self.tokens_seen["on"] += int(per_response[~batch.rollout.off_policy].sum())

    def _log(self, metrics: dict[str, float]) -> None:
        now = time.perf_counter()
        since_last = now - self._logged_at
        rate = (self.update - self._logged_update) / since_last if since_last > 0 else 0.0
        self._logged_at, self._logged_update = now, self.update
        self.latest = {
            "update": self.update,
            **metrics,
            "time/seconds": now - self._started_at,
            "time/updates_per_second": rate,
        }
        self.log_to_all(self.latest)

    def log_to_all(self, metrics: dict[str, float]) -> None:
        """Hand metrics to every logger, with the update as the x-axis."""
        for logger in self.loggers:
            logger.log_metrics({"update": self.update, **metrics}, step=self.update)

    # -- optimizers ----------------------------------------------------------------------------

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        """The student's optimizer comes first; its step is what `trainer.global_step` counts."""
        optimizer = self.optimisation.optimizer(self.student.parameters())
        return [optimizer], [self.optimisation.scheduler(optimizer, self.updates)]

    def _optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _schedulers(self) -> list[Any]:
        schedulers = self.lr_schedulers()
        return schedulers if isinstance(schedulers, list) else [schedulers]

    def _step(self, optimizer: Any, network: nn.Module, loss: float, clip_norm: float, who: str) -> float:
        """Clip and step, unless the loss or a gradient is not finite. Returns the norm before clipping.

        Args:
            clip_norm: largest gradient norm, 0 for no clipping.
            who: "student" or "critic".

        Raises:
            NonFiniteError: names the update and the term; no weight of `network` has been touched.
        """
        norm = float(nn.utils.clip_grad_norm_(network.parameters(), clip_norm or math.inf))
        for value, what in ((loss, f"the {who} loss"), (norm, f"the gradient of the {who} loss")):
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{what} is {value} at update {self.update + 1}, which was not made; lower the learning "
                    f"rate or the clip_norm of the {who} (while distilling, the weights of update "
                    f"{self.update} are in checkpoints/last.ckpt)"
                )
        if optimizer is self._optimizers()[0]:
            optimizer.step()
            for scheduler in self._schedulers():  # the student's and the critics': both count updates
                scheduler.step()
        else:
            # Straight to the strategy: a LightningOptimizer's step would count as a global step, and
            # `trainer.global_step` is to count student updates alone.
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
        return norm

    # -- Lightning's hooks ---------------------------------------------------------------------

    def on_fit_start(self) -> None:
        self.student.train()  # `from_pretrained` gives a model in evaluation mode
        if self.teacher is not None:
            self.teacher.to(self.device)

    def on_train_start(self) -> None:
        self._started_at = self._logged_at = time.perf_counter()
        self._logged_update = self.update

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["progress"] = {"update": self.update, "tokens_seen": dict(self.tokens_seen)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.update = checkpoint["progress"]["update"]
        self.tokens_seen = dict(checkpoint["progress"]["tokens_seen"])
