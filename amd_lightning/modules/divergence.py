"""The student descends a divergence: SFT, KD, ImitKD and every baseline without a critic."""

from typing import Any

import torch
from torch import Tensor

from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.diagnostics import token_values
from amd_lightning.objectives.divergences import kl, nll, rkl
from amd_lightning.policies import Policy
from amd_lightning.types import Tokens

DIVERGENCES = {"kl": kl, "rkl": rkl}


class DivergenceModule(DistillationModule):
    """`distance` is "kl", "rkl" or "nll"; the rest is the base's.

    "nll" imitates an action: the one that was written at an off-policy state (SFT, SeqKD), and one
    that the teacher draws at a student-written state (DAgger's label; its gradient is that of kl in
    expectation). On stored states alone it needs no teacher.
    """

    def __init__(self, student: Policy, teacher: Policy | None, *, distance: str, **settings: Any) -> None:
        super().__init__(student, teacher, **settings)
        self.distance = distance

    def token_terms(self, tokens: Tokens, diagnose: bool) -> dict[str, Tensor]:
        log_q = self.student.log_probs(tokens.student_hidden)
        if self.teacher is None:
            return {"distance": nll(log_q, tokens.actions)}
        with torch.no_grad():
            log_p = self.teacher.log_probs(tokens.teacher_hidden)
        if self.distance == "nll":
            distance = nll(log_q, _imitated(log_p, tokens))
        else:
            distance = DIVERGENCES[self.distance](log_p, log_q)
        return {"distance": distance} | (token_values(log_p, log_q) if diagnose else {})


def _imitated(log_p: Tensor, tokens: Tokens) -> Tensor:
    """The action to imitate at each state: what was written, or what the teacher would draw."""
    if bool(tokens.off_policy.all()):
        return tokens.actions
    drawn = torch.multinomial(log_p.exp(), 1).squeeze(-1)
    return torch.where(tokens.off_policy, tokens.actions, drawn)
