"""The moment gap, the critics' regulariser, and the critic that is known in closed form.

With p the teacher's and q the student's next-token distribution at a state s and a critic f(s, a),

    gap(s) = Σ_a (p − q)(a) f(s, a)                                       (AMMD, arXiv 2406.02959)

A critic ascends  E gap − (ridge / 2) E Σ_a μ(a) f(a)²,  μ = alpha·p + (1 − alpha)·q; the student
descends  E gap  with the critic frozen. Adding b(s) to f changes no gap (the gauge), which is why a
critic that is only bounded drifts along it: the ridge removes that direction and makes f vanish as
q → p.
"""

from math import isnan, log

import torch
from torch import Tensor


def moment_gap(p: Tensor, q: Tensor, critic: Tensor) -> Tensor:
    """Σ_a (p − q)(a) f(a). Probabilities and critic values [N, V] -> [N]."""
    return ((p - q) * critic).sum(-1)


def ridge_penalty(p: Tensor, q: Tensor, critic: Tensor, alpha: float) -> Tensor:
    """½ Σ_a μ(a) f(a)² with μ = alpha·p + (1 − alpha)·q. [N, V] thrice -> [N]."""
    return 0.5 * ((alpha * p + (1.0 - alpha) * q) * critic.square()).sum(-1)


def closed_form_critic(log_ratio: Tensor, alpha: float, ridge: float) -> Tensor:
    """The maximiser of gap − ridge · ridge_penalty, as a function of log p/q. [N, V] -> [N, V].

        f = (p − q) / (ridge · (alpha·p + (1 − alpha)·q))

    `alpha` = .5 with `ridge` = 2 is tanh(½ log p/q); `alpha` = .1 has the gradient of the skew KL
    with skew .1, up to scale: one dial from mode-covering (small) to mode-seeking (large). Bounded by
    1/(ridge·alpha) above and −1/(ridge·(1 − alpha)) below; 0 where p = q.
    """
    # With e = p/q − 1 this is e / (ridge (1 + alpha·e)): exactly 0 at p = q, and to rounding of its own size
    # beside it. Where the limit of e is reached, both ends are.
    limit = 0.5 * log(torch.finfo(log_ratio.dtype).max)
    excess = log_ratio.clamp(-limit, limit).expm1_()
    return excess / (excess * (ridge * alpha)).add_(ridge)


def sign_critic(log_ratio: Tensor) -> Tensor:
    """The maximiser of the gap among critics bounded by 1: sign(p − q), with gap 2TV. [N, V] -> [N, V]."""
    return log_ratio.sign()


def kernel_critic(p: Tensor, q: Tensor, embeddings: Tensor) -> Tensor:
    """The maximiser of the gap among f(a) = ⟨g, w_a⟩ with |g| ≤ 1. [N, V], [N, V], w [V, D] -> [N, V].

    With Δ = Σ_a (p − q)(a) w_a the gap is ⟨g, Δ⟩, so g = Δ/‖Δ‖ and the gap ‖Δ‖: the distance between the
    two policies' mean embeddings (a maximum mean discrepancy, Gretton et al. 2012, with the kernel
    ⟨w_a, w_b⟩). 0 where Δ = 0.
    """
    mean_difference = (p - q) @ embeddings.to(p.dtype)
    tiny = torch.finfo(p.dtype).tiny
    # Scaled first: the squares of a norm underflow long before the difference does.
    scaled = mean_difference / mean_difference.abs().amax(-1, keepdim=True).clamp(min=tiny)
    direction = scaled / scaled.norm(dim=-1, keepdim=True).clamp(min=tiny)
    return direction @ embeddings.to(p.dtype).T


def log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log p/q, 0 where both rule the action out. [N, V], [N, V] -> [N, V]."""
    # Only −inf less −inf, or infinities of both signs, make the sum nan; it is read in a fifth of the
    # comparisons' time. Elsewhere than on the CPU, asking would wait.
    if log_p.is_cpu and not isnan((ratio := log_p - log_q).detach().sum().item()):
        return ratio
    both_impossible = (log_p == -torch.inf) & (log_q == -torch.inf)
    return torch.where(both_impossible, 0.0, log_p - log_q)
