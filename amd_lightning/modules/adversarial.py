"""The game of AMMD: two Q-critics ascend the moment gap, the student descends it.

    min_θ max_f   β L_off + (1 − β) L_on,     L = mean over states of Σ_a (p − q)(a) f(s, a)

One update is one student step and K critic steps on the same batch. `critic_loss` and `student_loss`
are the two sides of one value, the moment gap: look for the sign.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from amd_lightning import ranks
from amd_lightning.critics import AlphaRamp, CriticPair
from amd_lightning.evaluation.distances import Chunk, Critic
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.diagnostics import token_values
from amd_lightning.modules.optim import Optimisation
from amd_lightning.objectives import fused
from amd_lightning.objectives.support import Support
from amd_lightning.policies import Policy
from amd_lightning.types import Batch, Tokens


class AdversarialModule(DistillationModule):
    """Moment matching against a pair of critics.

    Args:
        critics: the off- and on-policy critics; nothing is stepped where they have nothing to learn.
        support: both policies' log-probabilities [n, V], and `policies`, the probabilities, which it may use
            up -> the actions that critic steps look at, with the ridge's mixture.
        ridge: the weight of the critics' regulariser, 0 for none.
        alpha: moves the ridge's mixture over the run, of the critics and of `support`, which then takes it
            as a keyword; None leaves both as they are.
        critic_optimisation: their optimizer, on a faster time scale than the student's.
        critic_steps_per_update: K.
        settings: see `DistillationModule`.
    """

    def __init__(
        self,
        student: Policy,
        teacher: Policy,
        *,
        critics: CriticPair,
        support: Callable[..., Support],
        ridge: float,
        critic_optimisation: Optimisation,
        critic_steps_per_update: int,
        alpha: AlphaRamp | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(student, teacher, **settings)
        self.critics = critics
        self.support = support
        self.ridge = ridge
        self.critic_optimisation = critic_optimisation
        self.critic_steps_per_update = critic_steps_per_update
        self.alpha = alpha

    # -- the two sides of the game -------------------------------------------------------------

    def critic_loss(self, tokens: Tokens, support: Support) -> Tensor:
        """− (moment gap − ridge): the critics ascend. The policies are constants here. Scalar.

        Tokens of a mixture with the teacher count as any: the importance of an action has the mean 1 at its
        state, of which alone this is a value.
        """
        f = self.critics.at(tokens, support)
        return -(tokens.weight * (support.gap(f) - self.ridge * support.penalty(f))).sum()

    def student_loss(self, p: Tensor, q: Tensor, log_q: Tensor, f: Tensor) -> Tensor:
        """+ moment gap at each state: the student descends, through log q. The rest is constant here. [n]."""
        return fused.gap(p, q, log_q, f)

    # -- one update ----------------------------------------------------------------------------

    def _update(self, batch: Batch, diagnose: bool) -> dict[str, float]:
        moved = self._move_alpha()
        return super()._update(batch, diagnose) | {f"critic/{name}": value for name, value in moved.items()}

    def _move_alpha(self) -> dict[str, float]:
        """Set alpha for the update that comes, from the count of those made alone; {"alpha": it}."""
        if self.alpha is None:
            return {}
        alpha = self.alpha.at(self.update, self.updates)
        self.critics.set_alpha(alpha)
        return {"alpha": alpha}

    def token_terms(
        self, tokens: Tokens, log_p: Tensor | None, log_q: Tensor, diagnose: bool
    ) -> dict[str, Tensor]:
        assert log_p is not None
        with torch.no_grad():
            p, q = log_p.exp(), log_q.exp()
            f = self.critics(tokens, log_p, log_q)
        found = {"distance": self.student_loss(p, q, log_q, f)}
        if diagnose:
            found |= token_values(log_p, log_q, f)
        if self.critics.learns and torch.is_grad_enabled():
            support = self.support(log_p, log_q.detach(), policies=(p, q), **self._move_alpha())
            found |= {name: part for name, part in support._asdict().items() if part is not None}
            if diagnose:
                with torch.no_grad():
                    on_support = support.gap(self.critics.at(tokens, support))
                found["log.support_error"] = (on_support - found["distance"].detach()).abs()
        return found

    def held_out_critic(self) -> Critic | None:
        """The critics as they are, each on the states of its source; None where they are spread over ranks,
        whose chunks are not equally many."""
        if isinstance(self.critics, FSDPModule):
            return None
        self._move_alpha()

        def value(off_policy: bool, chunk: Chunk) -> Tensor:
            source = torch.full_like(chunk.actions, off_policy, dtype=torch.bool)
            states = (chunk.student_hidden, chunk.teacher_hidden, chunk.actions)
            tokens = Tokens(*states, torch.ones_like(source, dtype=chunk.log_q.dtype), source)
            return self.critics(tokens, chunk.log_p, chunk.log_q)

        return value

    def sampled_cost(self, tokens: Tokens, log_p: Tensor, log_q: Tensor) -> Tensor:
        """E_p f − f(the action written), whose mean under the student is the moment gap."""
        f = self.critics(tokens, log_p, log_q)
        return (log_p.exp() * f).sum(-1) - f.gather(-1, tokens.actions.unsqueeze(-1)).squeeze(-1)

    def critic_steps(self, batch: Sequence[tuple[Tokens, Mapping[str, Tensor]]]) -> dict[str, float]:
        if not self.critics.learns:
            return {}
        optimizer = self._optimizers()[1]
        states = [
            (tokens, Support(*(kept.get(name) for name in Support._fields)))  # type: ignore[arg-type]
            for tokens, kept in batch
        ]
        loss, norm = 0.0, 0.0
        for _ in range(self.critic_steps_per_update):
            optimizer.zero_grad()
            parts: list[Tensor] = []
            for tokens, support in states:
                part = self.critic_loss(tokens, support)
                self.manual_backward(part)
                parts.append(part.detach())
            loss = ranks.summed(parts)
            norm = self._step(optimizer, self.critics, loss, self.critic_optimisation.clip_norm, "critic")
        return {"critic/loss": loss, "critic/grad_norm": norm}

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        optimizers, schedulers = super().configure_optimizers()
        if self.critics.learns:
            critic_optimizer = self.critic_optimisation.optimizer(self.critics.parameters())
            optimizers.append(critic_optimizer)
            schedulers.append(self.critic_optimisation.scheduler(critic_optimizer, self.updates))
        return optimizers, schedulers
