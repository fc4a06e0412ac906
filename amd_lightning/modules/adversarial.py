"""The game of AMMD: two Q-critics ascend the moment gap, the student descends it.

    min_θ max_f   β L_off + (1 − β) L_on,     L = mean over states of Σ_a (p − q)(a) f(s, a)

One update is K critic steps, then one student step, on the same batch. `critic_loss` and
`student_loss` are the two sides of one value, `moment_gap`: look for the sign.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amd_lightning.critics import CriticPair
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.diagnostics import token_values
from amd_lightning.modules.optim import Optimisation
from amd_lightning.objectives.moments import log_ratio, moment_gap, ridge_penalty
from amd_lightning.policies import Policy
from amd_lightning.types import Tokens


class AdversarialModule(DistillationModule):
    """Moment matching against a pair of critics.

    Args:
        critics: the off- and on-policy critics; nothing is stepped where they have nothing to learn.
        critic_optimisation: their optimizer, on a faster time scale than the student's.
        critic_steps_per_update: K.
        settings: see `DistillationModule`.
    """

    teacher: Policy

    def __init__(
        self,
        student: Policy,
        teacher: Policy,
        *,
        critics: CriticPair,
        critic_optimisation: Optimisation,
        critic_steps_per_update: int,
        **settings: Any,
    ) -> None:
        super().__init__(student, teacher, **settings)
        self.critics = critics
        self.critic_optimisation = critic_optimisation
        self.critic_steps_per_update = critic_steps_per_update

    # -- the two sides of the game -------------------------------------------------------------

    def critic_loss(self, tokens: Tokens, log_p: Tensor, log_q: Tensor) -> Tensor:
        """− (moment gap − ridge): the critics ascend. The policies are constants here. Scalar."""
        p, q = log_p.exp(), log_q.exp()
        f = self.critics(tokens, log_ratio(log_p, log_q))
        gap = moment_gap(p, q, f)
        ridge = self.critics.ridge * ridge_penalty(p, q, f, self.critics.alpha)
        return -(tokens.weight * (gap - ridge)).sum()

    def student_loss(self, tokens: Tokens, log_p: Tensor, log_q: Tensor, f: Tensor) -> Tensor:
        """+ moment gap at each state: the student descends. The critic is a constant here. [N]."""
        return moment_gap(log_p.exp(), log_q.exp(), f.detach())

    # -- one update ----------------------------------------------------------------------------

    def critic_steps(self, micro_batches: Sequence[Tokens]) -> dict[str, float]:
        if not self.critics.learns:
            return {}
        optimizer = self._optimizers()[1]
        with torch.no_grad():
            policies = [
                (self.teacher.log_probs(tokens.teacher_hidden), self.student.log_probs(tokens.student_hidden))
                for tokens in micro_batches
            ]
        loss, norm = 0.0, 0.0
        for _ in range(self.critic_steps_per_update):
            optimizer.zero_grad()
            loss = 0.0
            for tokens, (log_p, log_q) in zip(micro_batches, policies, strict=True):
                part = self.critic_loss(tokens, log_p, log_q)
                self.manual_backward(part)
                loss += part.item()
            norm = self._step(optimizer, self.critics, loss, self.critic_optimisation.clip_norm, "critic")
        return {"critic/loss": loss, "critic/grad_norm": norm}

    def token_terms(self, tokens: Tokens, diagnose: bool) -> dict[str, Tensor]:
        log_q = self.student.log_probs(tokens.student_hidden)
        with torch.no_grad():
            log_p = self.teacher.log_probs(tokens.teacher_hidden)
            f = self.critics(tokens, log_ratio(log_p, log_q))
        distance = self.student_loss(tokens, log_p, log_q, f)
        return {"distance": distance} | (token_values(log_p, log_q, f) if diagnose else {})

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        optimizers, schedulers = super().configure_optimizers()
        if self.critics.learns:
            critic_optimizer = self.critic_optimisation.optimizer(self.critics.parameters())
            optimizers.append(critic_optimizer)
            schedulers.append(self.critic_optimisation.scheduler(critic_optimizer, self.updates))
        return optimizers, schedulers
