"""Q-critics: action-values f(s, a) on which teacher and student differ.

A critic turns packed features and the two policies into f; what it is trained on (off- or on-policy
states) is the game's business, not its own. None of them lets a gradient into teacher or student.

    kind         f(s, a), with u = W2 tanh(W1 [h_student; h_teacher])            learns  bounded
    residual     the ridge optimum at the log-ratio shifted by 2u                yes     yes
    learned      u, kept in place by the ridge                                   yes     no
    linear       u without a ridge                                               yes     no
    tanh         tanh(u), with or without a ridge                                yes     yes
    closed_form  the ridge optimum (p − q) / (ridge (alpha·p + (1 − alpha)·q))   no      yes
    sign         sign(p − q): the best critic bounded by 1; its gap is 2TV       no      yes
    kernel       ⟨g(s), w_a⟩ with fixed token embeddings w and |g| ≤ 1, the best no      yes

linear and tanh are the plain forms, for comparison: without a ridge they drift along the gauge.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amd_lightning.objectives.moments import closed_form_critic, kernel_critic, log_ratio, sign_critic
from amd_lightning.objectives.selected import products_at, rows_at
from amd_lightning.objectives.support import TAIL, Support
from amd_lightning.types import Tokens


class CriticHead(nn.Module):
    """A low-rank action-value: W2 tanh(W1 [h_student; h_teacher]), or of one of the two alone.

    W2 starts at zero, so the critic starts as if it were not there, and W1 at PyTorch's default.

    Args:
        student_size, teacher_size: widths of the features it sees; 0 for those that it does not see.
        vocabulary_size: V.
        rank: width of the hidden layer.
    """

    def __init__(self, student_size: int, teacher_size: int, vocabulary_size: int, rank: int) -> None:
        super().__init__()
        self.sees_student, self.sees_teacher = student_size > 0, teacher_size > 0
        self.features = nn.Linear(student_size + teacher_size, rank)
        self.values = nn.Linear(rank, vocabulary_size)
        nn.init.zeros_(self.values.weight)
        nn.init.zeros_(self.values.bias)

    def forward(self, student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
        """[N, D_student], [N, D_teacher] -> [N, V]; the policies' features are treated as constants."""
        return self.values(self._hidden(student_hidden, teacher_hidden))

    def at(self, student_hidden: Tensor, teacher_hidden: Tensor, actions: Tensor) -> Tensor:
        """The values of some actions alone, 0 at the tail. [N, D_s], [N, D_t], [N, M] -> [N, M]."""
        hidden = self._hidden(student_hidden, teacher_hidden)
        tail = actions == TAIL
        asked = actions.clamp(min=0)
        values = products_at(hidden.to(self.values.weight.dtype), self.values.weight, asked)
        values = values + rows_at(self.values.bias.unsqueeze(-1), asked).squeeze(-1)
        return values.masked_fill(tail, 0.0)

    def _hidden(self, student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
        seen = [
            features.detach().to(self.features.weight.dtype)
            for features, sees in ((student_hidden, self.sees_student), (teacher_hidden, self.sees_teacher))
            if sees
        ]
        return torch.tanh(self.features(torch.cat(seen, dim=-1)))


class AlphaRamp(NamedTuple):
    """The mixture of the ridge over a run: alpha moves from `start` to `end`, by the same factor in every
    update or, if `linear`, by the same step.

    With alpha near 0 the student descends KL, which makes it cover what the teacher does and pulls hardest
    where it has missed a mode; with a larger one it seeks modes, and its samples get better. Ours.
    """

    start: float
    end: float
    linear: bool = False

    def at(self, update: int, updates: int) -> float:
        """Alpha for the update behind `update` of `updates`."""
        progress = min(1.0, update / updates)
        if self.linear:
            return self.start + (self.end - self.start) * progress
        return self.start ** (1.0 - progress) * self.end**progress


class QCritic(nn.Module):
    """f(s, a). Subclasses say what it is at every action."""

    def set_alpha(self, alpha: float) -> None:
        """From now on the ridge is that of this mixture. Nothing here: f is not made from it."""

    def forward(self, tokens: Tokens, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Packed tokens and both policies' log-probabilities [N, V] -> f [N, V]."""
        raise NotImplementedError

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return any(True for _ in self.parameters())


class ClosedFormCritic(QCritic):
    """The maximiser of the ridge-regularised gap: (p − q) / (ridge · (alpha·p + (1 − alpha)·q))."""

    def __init__(self, alpha: float, ridge: float) -> None:
        super().__init__()
        self.alpha, self.ridge = alpha, ridge

    def set_alpha(self, alpha: float) -> None:
        self.alpha = alpha

    def forward(self, tokens: Tokens, log_p: Tensor, log_q: Tensor) -> Tensor:
        return closed_form_critic(log_ratio(log_p, log_q).detach(), self.alpha, self.ridge)


class SignCritic(QCritic):
    """The maximiser of the gap among critics bounded by 1: the student descends 2TV, exactly."""

    def forward(self, tokens: Tokens, log_p: Tensor, log_q: Tensor) -> Tensor:
        return sign_critic(log_ratio(log_p, log_q).detach())


class KernelCritic(QCritic):
    """The maximiser of the gap in the unit ball of a feature class: f = ⟨g(s), w_a⟩, |g(s)| ≤ 1.

    Args:
        embeddings: w [V, D], fixed; centred (a constant would change no gap) and scaled here so that the
            longest has length 1, hence |f| ≤ 1. Not saved in checkpoints: it is the teacher's.
    """

    embeddings: Tensor

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        centred = embeddings.detach().float() - embeddings.detach().float().mean(0)
        self.register_buffer("embeddings", centred / centred.norm(dim=-1).max(), persistent=False)

    def forward(self, tokens: Tokens, log_p: Tensor, log_q: Tensor) -> Tensor:
        return kernel_critic(log_p.detach().exp(), log_q.detach().exp(), self.embeddings)


class LearningCritic(QCritic):
    """A critic with a head; `combine` says how its value u and the log-ratio make f."""

    def __init__(self, head: CriticHead) -> None:
        super().__init__()
        self.head = head

    def combine(self, value: Tensor, log_ratio: Tensor) -> Tensor:
        """u and log p/q, of one shape -> f."""
        raise NotImplementedError

    def value(self, tokens: Tokens) -> Tensor:
        """u at every action. [N, V]."""
        return self.head(tokens.student_hidden, tokens.teacher_hidden)

    def forward(self, tokens: Tokens, log_p: Tensor, log_q: Tensor) -> Tensor:
        return self.combine(self.value(tokens), log_ratio(log_p, log_q).detach())

    def at(self, tokens: Tokens, support: Support) -> Tensor:
        """f at the actions of a support alone. [N, M]."""
        features = tokens.student_hidden, tokens.teacher_hidden
        value = self.head(*features) if support.actions is None else self.head.at(*features, support.actions)
        return self.combine(value, support.log_ratio)


class ResidualCritic(LearningCritic):
    """The closed form at a shifted log-ratio: for alpha = .5, ridge = 2, tanh(½ log p/q + u(s, a)).

    It starts as the closed form and stays bounded; what is learned is what the features add.
    """

    def __init__(self, head: CriticHead, alpha: float, ridge: float) -> None:
        super().__init__(head)
        self.alpha, self.ridge = alpha, ridge

    def set_alpha(self, alpha: float) -> None:
        self.alpha = alpha

    def combine(self, value: Tensor, log_ratio: Tensor) -> Tensor:
        return closed_form_critic(torch.add(log_ratio, value, alpha=2.0), self.alpha, self.ridge)


class LearnedCritic(LearningCritic):
    """The network alone, unbounded: only the ridge keeps it in place (without one: `linear`)."""

    def combine(self, value: Tensor, log_ratio: Tensor) -> Tensor:
        return value


class TanhCritic(LearningCritic):
    """The network alone, bounded by 1."""

    def combine(self, value: Tensor, log_ratio: Tensor) -> Tensor:
        return torch.tanh(value)


class CriticPair(nn.Module):
    """The off-policy and the on-policy critic; each sees the states of its own source.

    Args:
        off_policy, on_policy: of the same kind; the same object twice is one shared critic.
    """

    def __init__(self, off_policy: QCritic, on_policy: QCritic) -> None:
        super().__init__()
        self.off_policy = off_policy
        self.on_policy = on_policy

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return self.off_policy.learns or self.on_policy.learns

    def set_alpha(self, alpha: float) -> None:
        """See `QCritic.set_alpha`; of both."""
        self.off_policy.set_alpha(alpha)
        self.on_policy.set_alpha(alpha)

    def forward(self, tokens: Tokens, log_p: Tensor, log_q: Tensor) -> Tensor:
        """f at every state, from the critic of its source. Packed tokens, log-probs [N, V] -> [N, V]."""
        shared = self.off_policy is self.on_policy
        if not shared and isinstance(self.off_policy, LearningCritic):
            # The heads alone are routed: what follows them is the same for both, and [N, V] is not copied.
            value = self._routed(tokens, log_p, lambda critic, rows: critic.value(tokens.at(rows)))
            return self.off_policy.combine(value, log_ratio(log_p, log_q).detach())
        return self._routed(
            tokens, log_p, lambda critic, rows: critic(tokens.at(rows), log_p[rows], log_q[rows])
        )

    def at(self, tokens: Tokens, support: Support) -> Tensor:
        """f at the actions of a support, from the critic of each state's source. [N, M]."""
        return self._routed(
            tokens,
            support.difference,
            lambda critic, rows: critic.at(tokens.at(rows), support.at(rows)),
        )

    def _routed(self, tokens: Tokens, like: Tensor, value: Callable[[Any, Any], Tensor]) -> Tensor:
        if self.off_policy is self.on_policy:
            return value(self.off_policy, slice(None))
        values = torch.zeros_like(like)
        for critic, chosen in ((self.off_policy, tokens.off_policy), (self.on_policy, ~tokens.off_policy)):
            rows = chosen.nonzero().flatten()
            if len(rows) == len(chosen):
                return value(critic, slice(None))
            if len(rows):
                values = values.index_copy(0, rows, value(critic, rows).to(values.dtype))
        return values
