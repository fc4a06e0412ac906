"""Q-critics: action-values f(s, a) on which teacher and student differ.

A critic turns packed features and the two policies' log-ratio into f [N, V]; what it is trained on
(off- or on-policy states) is the game's business, not its own. None of them lets a gradient into
teacher or student.

    closed_form   the ridge optimum itself, nothing learned
    residual      the ridge optimum with a learned shift of the log-ratio, which starts at zero
    learned       an unbounded network alone
"""

import torch
from torch import Tensor, nn

from amd_lightning.objectives.moments import closed_form_critic
from amd_lightning.types import Tokens


class CriticHead(nn.Module):
    """A low-rank action-value: W2 tanh(W1 [h_student; h_teacher]).

    W2 starts at zero, so the critic starts as if it were not there, and W1 at PyTorch's default.
    """

    def __init__(self, student_size: int, teacher_size: int, vocabulary_size: int, rank: int) -> None:
        super().__init__()
        self.features = nn.Linear(student_size + teacher_size, rank)
        self.values = nn.Linear(rank, vocabulary_size)
        nn.init.zeros_(self.values.weight)
        nn.init.zeros_(self.values.bias)

    def forward(self, student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
        """[N, D_student], [N, D_teacher] -> [N, V]; the policies' features are treated as constants."""
        features = torch.cat([student_hidden.detach(), teacher_hidden.detach()], dim=-1)
        return self.values(torch.tanh(self.features(features.to(self.features.weight.dtype))))


class QCritic(nn.Module):
    """f(s, a). Subclasses say how features and the policies' log-ratio make the value."""

    def __init__(self, alpha: float, ridge: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.ridge = ridge

    def forward(self, student_hidden: Tensor, teacher_hidden: Tensor, log_ratio: Tensor) -> Tensor:
        """[N, D_student], [N, D_teacher], log p/q [N, V] -> f [N, V]."""
        raise NotImplementedError

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return any(True for _ in self.parameters())


class ClosedFormCritic(QCritic):
    """The maximiser of the ridge-regularised gap: (p − q) / (ridge · (alpha·p + (1 − alpha)·q))."""

    def forward(self, student_hidden: Tensor, teacher_hidden: Tensor, log_ratio: Tensor) -> Tensor:
        return closed_form_critic(log_ratio.detach(), self.alpha, self.ridge)


class ResidualCritic(QCritic):
    """The closed form at a shifted log-ratio: for alpha = .5, ridge = 2, tanh(½ log p/q + u(s, a)).

    It starts as the closed form and stays bounded; what is learned is what the features add.
    """

    def __init__(self, head: CriticHead, alpha: float, ridge: float) -> None:
        super().__init__(alpha, ridge)
        self.head = head

    def forward(self, student_hidden: Tensor, teacher_hidden: Tensor, log_ratio: Tensor) -> Tensor:
        shift = self.head(student_hidden, teacher_hidden)
        return closed_form_critic(log_ratio.detach() + 2.0 * shift, self.alpha, self.ridge)


class LearnedCritic(QCritic):
    """The network alone, unbounded: only the ridge keeps it in place."""

    def __init__(self, head: CriticHead, alpha: float, ridge: float) -> None:
        super().__init__(alpha, ridge)
        self.head = head

    def forward(self, student_hidden: Tensor, teacher_hidden: Tensor, log_ratio: Tensor) -> Tensor:
        return self.head(student_hidden, teacher_hidden)


class CriticPair(nn.Module):
    """The off-policy and the on-policy critic; each sees the states of its own source.

    Args:
        off_policy, on_policy: of the same kind; the same object twice is one shared critic.
    """

    def __init__(self, off_policy: QCritic, on_policy: QCritic) -> None:
        super().__init__()
        self.off_policy = off_policy
        self.on_policy = on_policy
        self.alpha = off_policy.alpha
        self.ridge = off_policy.ridge

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return self.off_policy.learns or self.on_policy.learns

    def forward(self, tokens: Tokens, log_ratio: Tensor) -> Tensor:
        """f at every state, from the critic of its source. Packed tokens, log p/q [N, V] -> [N, V]."""
        values = torch.zeros_like(log_ratio)
        for critic, chosen in ((self.off_policy, tokens.off_policy), (self.on_policy, ~tokens.off_policy)):
            rows = chosen.nonzero().flatten()
            if len(rows) == 0:
                continue
            value = critic(tokens.student_hidden[rows], tokens.teacher_hidden[rows], log_ratio[rows])
            if len(rows) == len(chosen):
                return value
            values = values.index_copy(0, rows, value.to(values.dtype))
        return values
