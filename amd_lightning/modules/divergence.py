"""The student descends a divergence: SFT, KD, ImitKD and every baseline without a critic."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.diagnostics import token_values
from amd_lightning.objectives import fused
from amd_lightning.objectives.divergences import nll
from amd_lightning.policies import Policy
from amd_lightning.types import Tokens


class DivergenceModule(DistillationModule):
    """`distance` is "nll" or a name of `DIVERGENCES`, with its `parameters`; the rest is the base's.

    "nll" imitates an action: the one that was written at an off-policy state (SFT, SeqKD), and one
    that the teacher draws at a student-written state (DAgger's label; its gradient is that of kl in
    expectation). On stored states alone it needs no teacher.
    """

    def __init__(
        self,
        student: Policy,
        teacher: Policy | None,
        *,
        distance: str,
        parameters: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(student, teacher, **settings)
        self.distance = distance
        knobs: dict[str, Any] = dict(parameters or {})
        self.divergence: partial[Tensor] | None = None
        if distance != "nll":
            self.divergence = partial(fused.divergence, distance, **knobs)

    def token_terms(
        self, tokens: Tokens, log_p: Tensor | None, log_q: Tensor, diagnose: bool
    ) -> dict[str, Tensor]:
        if log_p is None:
            return {"distance": nll(log_q, tokens.actions)}
        if self.divergence is None:
            distance = nll(log_q, _imitated(log_p, tokens))
        else:
            distance = self.divergence(log_p, log_q)
        return {"distance": distance} | (token_values(log_p, log_q) if diagnose else {})

    def sampled_cost(self, tokens: Tokens, log_p: Tensor, log_q: Tensor) -> Tensor:
        """rkl's: log q/p of the action written, whose mean under the student is rkl at the state."""
        return nll(log_p, tokens.actions) - nll(log_q, tokens.actions)


def _imitated(log_p: Tensor, tokens: Tokens) -> Tensor:
    """The action to imitate at each state: what was written, or what the teacher would draw."""
    if bool(tokens.off_policy.all()):
        return tokens.actions
    drawn = torch.multinomial(log_p.exp(), 1).squeeze(-1)
    return torch.where(tokens.off_policy, tokens.actions, drawn)
