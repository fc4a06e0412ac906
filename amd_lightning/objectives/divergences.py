"""Distances between the next-token distributions of teacher and student, one value a state.

Every function takes log-probabilities [N, V] (`log_p` the teacher's, `log_q` the student's) and
returns [N], in nats where it is an entropy. Gradients flow into whichever argument requires them.
Impossible actions (log-probability −inf) contribute their limit, never a NaN, and gradients are
finite wherever the value is. Below, a mixture m(s) is s·p + (1 − s)·q.

    name        value                                   0 at equality   source
    kl          KL(teacher‖student)                     yes             Hinton et al. 2015 (KD)
    rkl         KL(student‖teacher)                     yes             Gu et al. 2024 (MiniLLM), single-step
                                                                        term
    js          [s KL(p‖m) + (1 − s) KL(q‖m)]           yes             Agarwal et al. 2024 (GKD), eq. 1; the
                / (4 s (1 − s)), m = m(s)                               divisor is ours
    tv          ½ Σ_a |p − q|                           yes             Wen et al. 2023 (f-distill)
    skew_kl     KL(p‖m(s))                              yes             Ko et al. 2024 (DistiLLM)
    skew_rkl    KL(q‖m(1 − s))                          yes             Ko et al. 2024 (DistiLLM)
    jeffreys    KL(p‖q) + KL(q‖p)                       yes             Jeffreys 1946
    akl         h KL(p‖q) + (1 − h) KL(q‖p), h the      yes             Wu et al. 2024 (AKL),
                share of Σ|p − q| in the teacher's head                 arXiv 2404.02657
    alpha_beta  Σ_a [α p^(α+β) + β q^(α+β)              yes             Wang et al. 2025 (ABKD),
                − (α+β) p^α q^β] / (αβ(α+β))                            arXiv 2505.04560
    nll         −log q(a)                               no              maximum likelihood (SFT, SeqKD)
"""

from collections.abc import Callable
from math import log

import torch
from torch import Tensor

from amd_lightning.objectives.moments import log_ratio


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(teacher‖student) = Σ_a p (log p − log q): mode-covering. [N, V], [N, V] -> [N].

    Infinite where the student rules out an action that the teacher takes.
    """
    return _expectation(log_p, log_q)


def rkl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(student‖teacher) = Σ_a q (log q − log p): mode-seeking. [N, V], [N, V] -> [N]."""
    return _expectation(log_q, log_p)


def js(log_p: Tensor, log_q: Tensor, *, js_mixture: float = 0.5) -> Tensor:
    """Jensen-Shannon with any mixture, scaled so that its ends are divergences too. [N, V], [N, V] -> [N].

        [s KL(p‖m) + (1 − s) KL(q‖m)] / (4 s (1 − s)),   m = s·p + (1 − s)·q,   s = `js_mixture` in [0, 1]

    The standard divergence (at most log 2) at s = ½. Without the divisor, which is ours, it vanishes at
    both ends; with it, s = 0 is KL(p‖q)/4, s = 1 is KL(q‖p)/4, and between them it is continuous and finite
    whatever the supports. GKD's D_JSD(s) is 4 s (1 − s) times this: × 0.36 at s = .1 and .9, × 1 at ½; a loss
    or a plain gradient step compares after that factor. (TRL's GKD returns the undivided KLs at the ends.)

    ValueError: `js_mixture` outside [0, 1].
    """
    if not 0.0 <= js_mixture <= 1.0:
        raise ValueError(
            f"js_mixture = {js_mixture} is no share; choose one from 0 (KL/4) to 1 (reverse KL/4)"
        )
    if js_mixture == 0.0:
        return kl(log_p, log_q) / 4.0
    if js_mixture == 1.0:
        return rkl(log_p, log_q) / 4.0
    p_over_m, q_over_m = _log_over_mixture(log_p, log_q, js_mixture)
    # Divided action by action: near an end one of the logarithms is as small as its share.
    p_part = log_p.exp() * (p_over_m / (4.0 * (1.0 - js_mixture)))
    return (p_part + log_q.exp() * (q_over_m / (4.0 * js_mixture))).sum(-1)


def tv(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Total variation ½ Σ_a |p − q|, between 0 and 1. [N, V], [N, V] -> [N].

    Twice this is the moment gap of the best critic bounded by 1 (identity I5).
    """
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def skew_kl(log_p: Tensor, log_q: Tensor, *, skew: float = 0.1) -> Tensor:
    """KL(p ‖ skew·p + (1 − skew)·q), at most log 1/skew; KL(p‖q) at skew 0. [N, V], [N, V] -> [N].

    ValueError: `skew` outside [0, 1); at 1 it would be 0 whatever the student does.
    """
    if not 0.0 <= skew < 1.0:
        raise ValueError(f"skew = {skew}; choose one from 0 (no skew) to less than 1 (where nothing is left)")
    if skew == 0.0:
        return kl(log_p, log_q)
    return (log_p.exp() * _log_over_mixture(log_p, log_q, skew)[0]).sum(-1)


def skew_rkl(log_p: Tensor, log_q: Tensor, *, skew: float = 0.1) -> Tensor:
    """KL(q ‖ skew·q + (1 − skew)·p), at most log 1/skew; KL(q‖p) at skew 0. [N, V], [N, V] -> [N].

    ValueError: `skew` outside [0, 1).
    """
    return skew_kl(log_q, log_p, skew=skew)


def jeffreys(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) + KL(q‖p) = Σ_a (p − q) log p/q, symmetric: the sum, not half of it. [N, V], [N, V] -> [N]."""
    return _weighted_sum(log_p.exp() - log_q.exp(), log_ratio(log_p, log_q))


def akl(log_p: Tensor, log_q: Tensor, *, akl_head: float = 0.5) -> Tensor:
    """Adaptive KL: h KL(p‖q) + (1 − h) KL(q‖p), with a share h for each state. [N, V], [N, V] -> [N].

    The head of the vocabulary is the teacher's most likely actions up to and including the one with which
    their cumulative probability reaches `akl_head`, and any as likely as that one; h is the head's share
    of Σ_a |p − q|, a constant to differentiation. So the state is fitted from the teacher's side where the
    student is wrong about the head, from its own where it is wrong about the tail. Released code leaves
    the action that crosses the threshold out unless it is the first. At 1 the head is everything: KL(p‖q).

    ValueError: `akl_head` outside (0, 1].
    """
    if not 0.0 < akl_head <= 1.0:
        raise ValueError(f"akl_head = {akl_head}; choose a cumulative probability above 0, up to 1")
    if akl_head == 1.0:  # everything; a rounded cumulative probability would reach it early
        return kl(log_p, log_q)
    p, q = log_p.exp(), log_q.exp()
    share = _head_share(p.detach(), q.detach(), akl_head)
    return _weighted_sum(share * p - (1.0 - share) * q, log_ratio(log_p, log_q))


def alpha_beta(log_p: Tensor, log_q: Tensor, *, ab_alpha: float = 0.2, ab_beta: float = 0.7) -> Tensor:
    """The α-β divergence of Cichocki et al. 2011. [N, V], [N, V] -> [N].

        −1/(αβ) Σ_a [ p^α q^β − α/(α+β) p^(α+β) − β/(α+β) q^(α+β) ],   α = `ab_alpha`, β = `ab_beta`

    and its limits where one of them is 0: α = 1, β = 0 is KL(p‖q); α = 0, β = 1 is KL(q‖p). With both
    positive it is finite whatever the supports.

    ValueError: a negative exponent (powers of impossible actions would be infinite), or both 0 (improbable
    actions would weigh as much as any).
    """
    if min(ab_alpha, ab_beta) < 0.0 or ab_alpha + ab_beta == 0.0:
        raise ValueError(
            f"ab_alpha = {ab_alpha}, ab_beta = {ab_beta}; choose both from 0 up and one above it "
            "(1 and 0 is KL, 0 and 1 reverse KL)"
        )
    if ab_alpha > ab_beta:  # D^(α,β)(p, q) = D^(β,α)(q, p), and the larger exponent is safe to divide by
        log_p, log_q, ab_alpha, ab_beta = log_q, log_p, ab_beta, ab_alpha
    # In powers d_x = (p^x − q^x)/x, each as small as log p/q where that is small: Σ (d_(α+β) − q^β d_α) / β.
    ratio = log_ratio(log_p, log_q)
    larger, up = torch.maximum(log_p, log_q), ratio > 0.0
    fall = torch.where(up, -ratio, ratio)  # −|log p/q|, with its slope also at 0

    def powers(x: float) -> Tensor:
        size = (x * larger).exp() * torch.expm1(x * fall) / x
        return torch.where(up, -size, size)

    weight = (ab_beta * log_q).exp()
    both = powers(ab_alpha + ab_beta)
    if ab_alpha == 0.0:
        return (both.sum(-1) - _weighted_sum(weight, ratio)) / ab_beta
    return (both - weight * powers(ab_alpha)).sum(-1) / ab_beta


def nll(log_q: Tensor, actions: Tensor) -> Tensor:
    """−log q(action): the negative log-likelihood of one action a state. [N, V], [N] -> [N]."""
    return -log_q.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "kl": kl,
    "rkl": rkl,
    "js": js,
    "tv": tv,
    "skew_kl": skew_kl,
    "skew_rkl": skew_rkl,
    "jeffreys": jeffreys,
    "akl": akl,
    "alpha_beta": alpha_beta,
}
"""Every distance between two policies, by name. (`nll` compares a policy with an action.)"""

PARAMETERS: dict[str, tuple[str, ...]] = {
    "kl": (),
    "rkl": (),
    "js": ("js_mixture",),
    "tv": (),
    "skew_kl": ("skew",),
    "skew_rkl": ("skew",),
    "jeffreys": (),
    "akl": ("akl_head",),
    "alpha_beta": ("ab_alpha", "ab_beta"),
}
"""The keyword parameters that each of `DIVERGENCES` takes."""


def _expectation(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Σ a (log a − log b), taking 0 · anything as 0, also where a is only too small to represent."""
    a = log_a.exp()
    difference = torch.where(a == 0.0, 0.0, log_a - log_b)
    return (a * difference).sum(-1)


def _weighted_sum(weight: Tensor, ratio: Tensor) -> Tensor:
    """Σ_a weight · ratio, taking 0 · ∞ as 0. [N, V], [N, V] -> [N]."""
    # Only there: where a weight of 0 meets a finite ratio, the weight's slope still counts.
    return (weight * torch.where((weight == 0.0) & ratio.isinf(), 0.0, ratio)).sum(-1)


def _log_over_mixture(log_p: Tensor, log_q: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """log p/m and log q/m, m = share·p + (1 − share)·q, 0 < share < 1. [N, V], [N, V] -> [N, V] twice.

    Exactly 0 where p = q, and as accurate as log p/q beside it.
    """
    # A policy less likely than that is nothing beside the other: all but the share of the larger is below
    # rounding (shares down to 1e-12 in float32), and neither expm1 nor its slope's reciprocal overflows.
    limit = 0.5 * log(torch.finfo(log_p.dtype).max)
    ratio = log_ratio(log_p, log_q).clamp(-limit, limit)
    # log m over the policy with the larger share: the argument of log1p stays above −½.
    if share <= 0.5:
        over_q = torch.log1p(share * torch.expm1(ratio))
        return ratio - over_q, -over_q
    over_p = torch.log1p((1.0 - share) * torch.expm1(-ratio))
    return -over_p, -ratio - over_p


@torch.no_grad()
def _head_share(p: Tensor, q: Tensor, head: float) -> Tensor:
    """The share of Σ_a |p − q| that the teacher's head has, 0 where p = q. [N, V], [N, V] -> [N, 1]."""
    ordered = p.sort(dim=-1, descending=True).values
    last = (ordered.cumsum(-1) < head).sum(-1, keepdim=True).clamp(max=p.shape[-1] - 1)
    in_head = p >= ordered.gather(-1, last)
    error = (p - q).abs()
    total = error.sum(-1, keepdim=True).clamp(min=torch.finfo(error.dtype).tiny)
    return torch.where(in_head, error, 0.0).sum(-1, keepdim=True) / total
