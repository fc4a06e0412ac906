"""Each distance by hand: its value at every state and its gradient there, without autograd.

The student is a softmax of its logits z, so a distance D(q) has ∂D/∂z_a = q_a (D'_a − Σ_b q_b D'_b)
with D'_a = ∂D/∂q_a. Below that is worked out once for each distance; the tests compare it with the
package's functions and autograd. All arguments are probabilities [S, V]; values are [S], gradients
with respect to the student's logits [S, V].
"""

import torch
from torch import Tensor

from .testbed import World, visitation


def kl(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Σ p log p/q. D' = −p/q, so ∂/∂z = q − p."""
    return (p * torch.log(p / q)).sum(-1), q - p


def rkl(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Σ q log q/p. D' = log q/p + 1, so ∂/∂z = q (log q/p − D)."""
    log_ratio = torch.log(q / p)
    value = (q * log_ratio).sum(-1)
    return value, q * (log_ratio - value.unsqueeze(-1))


def tv(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """½ Σ |p − q|. D' = ½ sign(q − p)."""
    return (p - q).abs().sum(-1) / 2, _softmax_gradient(q, (q - p).sign() / 2)


def js(p: Tensor, q: Tensor, mixture: float = 0.5) -> tuple[Tensor, Tensor]:
    """[s KL(p‖m) + (1 − s) KL(q‖m)] / (4 s (1 − s)), m = s·p + (1 − s)·q, s = mixture. D' = log(q/m) / 4s."""
    m = mixture * p + (1 - mixture) * q
    to_m = mixture * (p * torch.log(p / m)).sum(-1) + (1 - mixture) * (q * torch.log(q / m)).sum(-1)
    return to_m / (4 * mixture * (1 - mixture)), _softmax_gradient(q, torch.log(q / m) / (4 * mixture))


def skew_kl(p: Tensor, q: Tensor, skew: float) -> tuple[Tensor, Tensor]:
    """KL(p‖m), m = skew·p + (1 − skew)·q. D' = −(1 − skew) p/m. With skew = ½: KL to the middle."""
    m = skew * p + (1 - skew) * q
    return (p * torch.log(p / m)).sum(-1), _softmax_gradient(q, -(1 - skew) * p / m)


def skew_rkl(p: Tensor, q: Tensor, skew: float) -> tuple[Tensor, Tensor]:
    """KL(q‖m), m = skew·q + (1 − skew)·p. D' = log q/m + 1 − skew q/m."""
    m = skew * q + (1 - skew) * p
    return (q * torch.log(q / m)).sum(-1), _softmax_gradient(q, torch.log(q / m) - skew * q / m)


def jeffreys(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Σ (p − q) log p/q. D' = log q/p + 1 − p/q."""
    return ((p - q) * torch.log(p / q)).sum(-1), _softmax_gradient(q, torch.log(q / p) - p / q)


def akl_share(p: Tensor, q: Tensor, head: float) -> Tensor:
    """[S] what part of Σ |p − q| lies on the teacher's likeliest actions that reach `head` together."""
    shares = []
    for p_row, q_row in zip(p.tolist(), q.tolist(), strict=True):
        inside, reached = 0.0, 0.0
        for action in sorted(range(len(p_row)), key=lambda a: -p_row[a]):
            if reached >= head:
                break
            reached += p_row[action]
            inside += abs(p_row[action] - q_row[action])
        shares.append(inside / sum(abs(a - b) for a, b in zip(p_row, q_row, strict=True)))
    return torch.tensor(shares, dtype=p.dtype)


def akl(p: Tensor, q: Tensor, head: float) -> tuple[Tensor, Tensor]:
    """share · KL(p‖q) + (1 − share) · KL(q‖p), the share held fixed."""
    share = akl_share(p, q, head)
    (forward, forward_slope), (reverse, reverse_slope) = kl(p, q), rkl(p, q)
    rest, column = 1 - share, share.unsqueeze(-1)
    return share * forward + rest * reverse, column * forward_slope + (1 - column) * reverse_slope


def alpha_beta(p: Tensor, q: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """−1/(αβ) Σ [p^α q^β − α/(α+β) p^(α+β) − β/(α+β) q^(α+β)]. D' = q^(β−1) (q^α − p^α) / α.

    The limits: α = 0 has D = Σ [q^β log(q^β/p^β) − q^β + p^β] / β² and D' = q^(β−1) log q/p; β = 0 has
    D = Σ [p^α log(p^α/q^α) − p^α + q^α] / α², and the same D'.
    """
    if alpha == 0:
        value = (beta * q**beta * torch.log(q / p) - q**beta + p**beta).sum(-1) / beta**2
        return value, _softmax_gradient(q, q ** (beta - 1) * torch.log(q / p))
    slope = q ** (beta - 1) * (q**alpha - p**alpha) / alpha
    if beta == 0:
        value = (alpha * p**alpha * torch.log(p / q) - p**alpha + q**alpha).sum(-1) / alpha**2
    else:
        both = alpha + beta
        terms = p**alpha * q**beta - alpha / both * p**both - beta / both * q**both
        value = -terms.sum(-1) / (alpha * beta)
    return value, _softmax_gradient(q, slope)


def frozen_critic(p: Tensor, q: Tensor, critic: Tensor) -> tuple[Tensor, Tensor]:
    """Σ (p − q) f with f held fixed. D' = −f: the student moves towards what the critic values."""
    return ((p - q) * critic).sum(-1), _softmax_gradient(q, -critic)


def nll(writer: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The expected −log q(a) of a token that `writer` [S, V], held fixed, wrote. ∂/∂z = q − writer."""
    return -(writer * q.log()).sum(-1), q - writer


def ridge_critic(p: Tensor, q: Tensor, alpha: float, ridge: float) -> Tensor:
    """(p − q) / (ridge (alpha·p + (1 − alpha)·q)) [S, V], what the ridge-regularised critic converges to."""
    return (p - q) / (ridge * (alpha * p + (1 - alpha) * q))


def on_policy_gradient(world: World, p: Tensor, q: Tensor, critic: Tensor) -> Tensor:
    """∂L_on/∂z [S, V] for a frozen critic, by moving every logit's effect on every response.

    Σ_y P(y) Σ_t g(s_t) over complete responses y: P(y) has ∂log P(y)/∂z(s, a) = 1[y takes a at s]
    − 1[y visits s] q(a|s), and g(s) has the gradient above. No recursion, so it can judge one.
    """
    gap, gap_gradient = frozen_critic(p, q, critic)
    gradient = visitation(world, q).unsqueeze(-1) * gap_gradient
    for response in world.responses:
        path = list(world.path(response))
        probability = torch.stack([q[state, action] for state, action in path]).prod()
        cost = probability * gap[[state for state, _ in path]].sum()
        for state, action in path:
            gradient[state] -= cost * q[state]
            gradient[state, action] += cost
    return gradient


def state_weights(
    world: World, p: Tensor, q: Tensor, beta: float, token_mean: bool = True
) -> tuple[Tensor, Tensor]:
    """How much each state counts in β·off + (1 − β)·on: what the teacher's and the student's visits add.

    [S], [S]. `token_mean` divides each side by its expected length; otherwise it is a sum per response.
    """
    off, on = visitation(world, p), visitation(world, q)
    if token_mean:
        off, on = off / off.sum(), on / on.sum()
    return beta * off, (1 - beta) * on


def _softmax_gradient(q: Tensor, slope: Tensor) -> Tensor:
    """∂/∂z from the slope ∂D/∂q [S, V]."""
    return q * (slope - (q * slope).sum(-1, keepdim=True))
