"""What every method shares: collect → update → log. SFT and every baseline run on it.

One dataloader batch is one update. `training_step` collects its rollouts (stored ones, and the
student's own where β < 1), weighs their tokens once, cuts them into micro-batches, and makes one
student step; subclasses say what the distance at a state is, and what else moves on the same batch.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from amd_lightning import ranks
from amd_lightning.errors import NonFiniteError
from amd_lightning.evaluation.distances import Critic
from amd_lightning.modules.adaptive import AdaptiveBeta
from amd_lightning.modules.diagnostics import TokenMeans, response_metrics, split_logged, stand_in
from amd_lightning.modules.horizon import Horizon, SequenceKernel, batch_advantages, kernel_costs
from amd_lightning.modules.likelihood import with_likelihood
from amd_lightning.modules.logged import LoggedModule
from amd_lightning.modules.optim import Optimisation
from amd_lightning.modules.states import States
from amd_lightning.modules.stored_teacher import by_teacher, live_features, spread
from amd_lightning.objectives.chunked import chunk_size, weighted_sum
from amd_lightning.objectives.coarse import coarsened
from amd_lightning.objectives.policy_gradient import mixture_importance
from amd_lightning.policies import Policy
from amd_lightning.replay import Replay
from amd_lightning.rollouts import Sampler
from amd_lightning.types import Batch, Rollout, Tokens


class DistillationModule(LoggedModule):
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
        temperatures: of teacher and student in the objective; each divides its policy's logits, the loss
            is not rescaled.
        horizon: how much of what follows an action counts against it; None for nothing (γ = 0).
        kernel: the sequence-level term; None for none.
        teacher_share: of the teacher in the mixture that `sampler` draws from; tokens are weighed by
            their importance where it is not 0.
        replay: where student-written responses serve more than once; None writes anew in every update.
        adaptive: moves β with the validation loss; None for `beta` throughout.
        sft_weight: the share of −log q of the stored responses in the loss, beside 1 − sft_weight of J.
        chunk_tokens: how many tokens meet the heads at once; None for `chunked.chunk_size`.
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
        temperatures: tuple[float, float] = (1.0, 1.0),
        horizon: Horizon | None = None,
        kernel: SequenceKernel | None = None,
        teacher_share: float = 0.0,
        replay: Replay | None = None,
        adaptive: AdaptiveBeta | None = None,
        sft_weight: float = 0.0,
        chunk_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.student = student
        # Kept out of the module's registry: the frozen teacher is neither saved in checkpoints nor
        # handed to a strategy that would wrap it together with what learns.
        object.__setattr__(self, "teacher", teacher.requires_grad_(False).eval() if teacher else None)
        self.states = States(sampler, beta, normalise, replay, adaptive)
        self.optimisation = optimisation
        self.updates = updates
        self.micro_batch_size = micro_batch_size
        self.log_every = log_every
        self.temperatures = temperatures
        self.horizon = horizon
        self.kernel = kernel
        self.teacher_share = teacher_share
        self.sft_weight = sft_weight
        self.chunk_tokens = chunk_tokens
        self._teacher_read = 0

    # -- what a method says --------------------------------------------------------------------

    def token_terms(
        self, tokens: Tokens, log_p: Tensor | None, log_q: Tensor, diagnose: bool
    ) -> dict[str, Tensor]:
        """What a method makes of some tokens.

        Args:
            tokens: n packed tokens, features without a graph.
            log_p: of the teacher [n, V], a constant; None without a teacher.
            log_q: of the student [n, V].
            diagnose: also give the values of `diagnostics.token_values`, under "log." + name.

        Returns:
            "distance" [n], whose weighted sum is the loss that the student descends, and whatever
            `critic_steps` will want of these tokens.
        """
        raise NotImplementedError

    def sampled_cost(self, tokens: Tokens, log_p: Tensor, log_q: Tensor) -> Tensor:
        """An unbiased estimate of the distance at each state from the action written there alone. [n]."""
        raise NotImplementedError

    def critic_steps(self, batch: Sequence[tuple[Tokens, Mapping[str, Tensor]]]) -> dict[str, float]:
        """What else moves on the same batch, given its tokens and what `token_terms` kept of them: nothing
        here. Returns metrics."""
        return {}

    # -- collect, update, log ------------------------------------------------------------------

    def training_step(self, stored: Rollout, batch_idx: int) -> None:
        """One update on one dataloader batch."""
        logged = self.update == 0 or (self.update + 1) % self.log_every == 0
        with self.clock.update():
            with self.clock("generation"):
                batch = self.states.collect(stored, self.student, self.update, self.updates)
            metrics = self._update(batch, diagnose=logged)
            self.update += 1
            with self.clock("logging"):
                self.count_tokens(batch, self._teacher_read)
                self._teacher_read = 0
                if logged:
                    of_states = response_metrics(batch, self.student.end_ids) | self.states.metrics()
                    self.log_update(metrics | of_states)

    def held_out_critic(self) -> Critic | None:
        """f at held-out states, for validations: the run's own critic, or what stands in for one."""
        return lambda off_policy, chunk: stand_in(chunk.log_p, chunk.log_q)

    def validated(self, metrics: Mapping[str, float | None]) -> None:
        """Told of every validation (`tracking.Validate`), its metrics without the head `valid/`."""
        self.states.validated(metrics)

    def _update(self, batch: Batch, diagnose: bool) -> dict[str, float]:
        """The student's gradient, K critic steps where there is a critic, the student's step: one batch.

        The gradient is taken against the critics as the last update left them, and the critics then
        climb on what that one pass kept: each policy's forward and head run once, and a critic step
        touches neither. Over a run it is the same alternation of K critic steps and one student step.
        """
        micro_batches = list(batch.micro_batches(self.micro_batch_size))
        advantages = self._advantages(micro_batches)
        optimizer = self._optimizers()[0]
        optimizer.zero_grad()
        parts: list[Tensor] = []
        means = TokenMeans()
        kept: list[tuple[Tokens, dict[str, Tensor]]] = []
        for micro, advantage in zip(micro_batches, advantages, strict=True):
            tokens = self._pack(micro)._replace(advantage=advantage)
            with self.clock("distance"):
                part, values = self._loss(tokens, diagnose)
            with self.clock("student_backward"):
                self.manual_backward(part)
            parts.append(part.detach())
            tokens = tokens.constant()
            logged, others = split_logged(values)
            means.add(tokens, logged)
            kept.append((tokens, others))
        loss = ranks.summed(parts)
        self._require_finite(loss, "the student loss", "student")
        with self.clock("critic"):
            critic_metrics = self.critic_steps(kept)
        metrics = {"train/loss": loss, "train/learning_rate": optimizer.param_groups[0]["lr"]}
        with self.clock("optimizer"):
            norm = self._step(optimizer, self.student, loss, self.optimisation.clip_norm, "student")
        metrics["train/grad_norm"] = norm
        return metrics | means.metrics() | critic_metrics

    def _pack(self, micro: Batch) -> Tokens:
        """The packed tokens of a micro-batch: one student forward, and the only teacher forward."""
        rollout = micro.rollout
        with self.clock("student_forward"):
            student_hidden = self.student.hidden(rollout)
        teacher_hidden = student_hidden.new_empty(len(student_hidden), 0)
        mask = rollout.response_mask
        off_policy = rollout.off_policy.unsqueeze(-1).expand_as(mask)[mask]
        top_k = None if rollout.top_k is None else spread(rollout.top_k, off_policy)
        if self.teacher is not None:
            with torch.no_grad(), self.clock("teacher_forward"):
                teacher_hidden, read = live_features(self.teacher, rollout)
            self._teacher_read += read
        return Tokens(
            student_hidden,
            teacher_hidden,
            rollout.response_ids[mask],
            micro.weight[mask],
            off_policy,
            None,
            *(top_k or (None, None)),
        )

    def _loss(self, tokens: Tokens, diagnose: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Σ weight · (distance + advantage · log q(action)), and what the method kept of each token."""
        packed = tokens.constant()

        def terms(rows: slice, log_q: Tensor) -> dict[str, Tensor]:
            chunk = packed.at(rows)
            live, stored = partial(self._live, diagnose), partial(self._stored, diagnose)
            known = chunk.top_actions is not None
            found = by_teacher(chunk, log_q, live, stored) if known else live(chunk, log_q)
            if self.sft_weight:
                own = partial(with_likelihood, share=self.sft_weight, beta=self.states.beta)
                found["distance"] = own(found["distance"], chunk, log_q, temperature=self.temperatures[1])
            return found

        return self._over_chunks(terms, tokens)

    def _live(self, diagnose: bool, chunk: Tokens, log_q: Tensor) -> dict[str, Tensor]:
        """The terms of tokens at which the teacher, if there is one, is asked now."""
        log_p = self._teacher_log_probs(chunk)
        found = self.token_terms(chunk, log_p, log_q, diagnose)
        written = log_q.gather(-1, chunk.actions.unsqueeze(-1)).squeeze(-1)
        if chunk.advantage is not None:
            found["distance"] = found["distance"] + chunk.advantage * written
        if self.teacher_share and log_p is not None:
            drawn = log_p.gather(-1, chunk.actions.unsqueeze(-1)).squeeze(-1), written.detach()
            importance = mixture_importance(*drawn, self.teacher_share)
            found["distance"] *= torch.where(chunk.off_policy, 1.0, importance)
        return found

    def _stored(self, diagnose: bool, chunk: Tokens, log_q: Tensor) -> dict[str, Tensor]:
        """The same for off-policy tokens at which it was asked beforehand: on k + 1 events in place of V."""
        assert chunk.top_actions is not None
        return self.token_terms(chunk, chunk.top_log_probs, coarsened(log_q, chunk.top_actions), diagnose)

    def _over_chunks(self, terms: Any, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        return weighted_sum(
            terms,
            tokens.student_hidden,
            tokens.weight,
            partial(self.student.log_probs, temperature=self.temperatures[1]),
            self.student.head_parameters,
            self.chunk_tokens or chunk_size(self.student.vocabulary_size, on_cpu=tokens.weight.is_cpu),
        )

    @torch.no_grad()
    def _teacher_log_probs(self, tokens: Tokens) -> Tensor | None:
        teacher = self.teacher
        return None if teacher is None else teacher.log_probs(tokens.teacher_hidden, self.temperatures[0])

    # -- what an action is responsible for beside its state ----------------------------------------

    def _advantages(self, micro_batches: Sequence[Batch]) -> list[Tensor | None]:
        """Each packed token's advantage; None without a horizon, a kernel, or student-written responses."""
        found: list[Tensor | None] = [None] * len(micro_batches)
        if self.states.beta == 1.0:
            return found
        rollouts = [micro.rollout for micro in micro_batches]
        if self.horizon is not None:
            costs = [self._costs(micro, self.horizon.returns) for micro in micro_batches]
            found = list(batch_advantages(rollouts, costs, self.horizon))
        if self.kernel is not None:
            of_whole = [kernel_costs(rollout, self.kernel) for rollout in rollouts]
            found = [own if one is None else one + own for one, own in zip(found, of_whole, strict=True)]
        return found

    @torch.no_grad()
    def _costs(self, micro: Batch, returns: str) -> Tensor:
        """The distance at each state as a cost, [N]: for baselines, which look at the whole batch, it is
        needed before the first gradient. So a horizon costs one more forward of both policies."""
        tokens = self._pack(micro)

        def live(chunk: Tokens, log_q: Tensor) -> dict[str, Tensor]:
            log_p = self._teacher_log_probs(chunk)
            found = self.token_terms(chunk, log_p, log_q, diagnose=False)
            sampled = returns == "sampled" and log_p is not None
            cost = self.sampled_cost(chunk, log_p, log_q) if sampled else found["distance"]  # type: ignore[arg-type]
            return {"distance": found["distance"], "cost": cost}

        def stored(chunk: Tokens, log_q: Tensor) -> dict[str, Tensor]:  # off-policy: no cost of anybody's
            return {name: log_q.new_zeros(len(log_q)) for name in ("distance", "cost")}

        def terms(rows: slice, log_q: Tensor) -> dict[str, Tensor]:
            chunk = tokens.at(rows)
            known = chunk.top_actions is not None
            return by_teacher(chunk, log_q, live, stored) if known else live(chunk, log_q)

        return self._over_chunks(terms, tokens)[1]["cost"]

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
        """Sum the gradients over ranks, clip and step, unless the loss or a gradient is not finite. Returns
        the norm before clipping.

        Args:
            clip_norm: largest gradient norm, 0 for no clipping.
            who: "student" or "critic".

        Raises:
            NonFiniteError: names the update and the term; no weight of `network` has been touched.
        """
        ranks.sum_gradients(network)
        norm = float(ranks.whole(nn.utils.clip_grad_norm_(network.parameters(), clip_norm or math.inf)))
        self._require_finite(loss, f"the {who} loss", who)
        self._require_finite(norm, f"the gradient of the {who} loss", who)
        if optimizer is self._optimizers()[0]:
            optimizer.step()
            for scheduler in self._schedulers():  # the student's and the critics': both count updates
                scheduler.step()
        else:
            # Straight to the strategy: a LightningOptimizer's step would count as a global step, and
            # `trainer.global_step` is to count student updates alone.
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
        return norm

    def _require_finite(self, value: float, what: str, who: str) -> None:
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{what} is {value} at update {self.update + 1}, which was not made; lower the learning "
                f"rate or the clip_norm of the {who} (while distilling, the weights of update "
                f"{self.update} are in checkpoints/failed.ckpt)"
            )

    # -- Lightning's hooks ---------------------------------------------------------------------

    def configure_model(self) -> None:
        """Nothing: `strategies.Sharded`, whose base wants this hook, spreads the networks."""

    def on_fit_start(self) -> None:
        self.student.train()  # `from_pretrained` gives a model in evaluation mode
        if self.teacher is not None:
            self.teacher.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        self.states.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.states.load(checkpoint)
