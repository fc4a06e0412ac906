"""The future term of the on-policy gradient: what writing a token does to the states that follow.

With D(s) any cost of a state (a moment gap with its critic frozen, a divergence) and the student's own
states s_t,

    L_on = Σ_t E D(s_t)    ∇L_on = Σ_t E[ ∇D(s_t) + ∇log q(y_t|s_t) · Σ_{t'>t} D(s_t') ]

the direct term is autograd's at fixed states, the future term is that of mean(log q(y_t) · adv_t), *added*
to the loss: adv_t is a cost, high where the tokens that followed were bad. In place of D(s_t') a sampled
cost with that expectation may stand (E_p f − f(y_t') for the gap), at the price of its variance. Step t is
never among the later ones: the direct term has it already, and sampled a second time it biases.

Unbiased: discount 1, centring (as `advantages` says) and every baseline here, all of which leave out the
response that they are subtracted from. Biased: a discount below 1, dividing by a length or by a standard
deviation. With D = KL(student‖teacher) the sum is the gradient of that divergence between whole responses
(Gu et al. 2024, MiniLLM, section 2.2, where the future term is a reward: the opposite sign).

Responses are [S, T], S of them, padded on the right; `mask` [S, T] is True up to and including EOS. Every
result is 0 outside the mask, and what the padding holds is never looked at.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from amd_lightning.objectives.moments import log_ratio

BASELINES = ("none", "time_step", "leave_one_out")


def returns_after(cost: Tensor, mask: Tensor, discount: float, *, length_normalise: bool = False) -> Tensor:
    """Σ_{t'>t} discount^(t'−t) cost_t'. [S, T], [S, T] -> [S, T]; 0 at the last token.

    `length_normalise` divides by how many tokens are later, a mean in place of a sum: biased, against the
    preference for short responses (MiniLLM, section 2.2; the paper's divisor T − t − 1 is one less than the
    number of its terms, here it is that number).

    Raises ValueError for a discount outside 0 to 1.
    """
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount must be between 0 and 1, not {discount}")
    following = pad(torch.where(mask, cost, 0.0)[:, 1:], (0, 1))
    if discount == 1.0:
        returns = _sum_from(following)
    else:
        steps = [torch.zeros_like(following[:, 0])]
        for step in reversed(following.unbind(1)):
            steps.append(discount * (step + steps[-1]))
        returns = torch.stack(steps[:0:-1], dim=1)
    if length_normalise:
        later = _sum_from(pad(mask[:, 1:], (0, 1)).to(cost.dtype))
        returns = returns / later.clamp(min=1.0)
    return returns


def baseline(returns: Tensor, mask: Tensor, kind: str, group: Tensor) -> Tensor:
    """What to expect of a response at step t, from other responses. [S, T], [S, T], name, [S] -> [S, T].

    none            0
    time_step       the mean of `returns` at t over all others that have a token there
    leave_one_out   the same over the others to the same prompt: those of equal `group`

    0 where there is no other. `returns` of one response must not depend on another one, or the baseline
    would depend on the tokens it is subtracted from (see `advantages` for costs that are centred).

    Raises ValueError for another kind.
    """
    if kind not in BASELINES:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, not {kind!r}")
    if kind == "none":
        return torch.zeros_like(returns)
    others = _others(group if kind == "leave_one_out" else torch.zeros_like(group))
    expected = _mean_over(others, torch.where(mask, returns, 0.0), mask.to(returns.dtype))
    return torch.where(mask, expected, 0.0)


@torch.no_grad()
def advantages(
    cost: Tensor,
    mask: Tensor,
    *,
    discount: float,
    centre: bool,
    baseline_kind: str,
    group: Tensor,
    length_normalise: bool = False,
) -> Tensor:
    """The cost of what followed each token less what was to be expected. [S, T], [S, T], .., [S] -> [S, T].

    Teacher minus student: the loss *adds* mean(log q(y_t) · advantage). A constant, no gradient flows
    through it.

    `centre` takes the token mean of the *other* responses off every cost. The gradient of the token mean
    L_on / E len is 1 / E len times that of L_on with every cost less the constant L_on / E len (identity
    I15): no response pays or gains by its length alone. Here a mean m of the other responses is that
    constant's estimate. It is independent of the response it is subtracted from, so that the future term
    has the expectation

        ∇L_on − E m · ∇E len        exactly: biased only as far as E m, of a ratio, is not L_on / E len.

    That is O(1/S), nothing where all responses are equally long, and nothing where each response is
    weighted by the others' number of tokens: then the expectation is a multiple of the token mean's
    gradient. A single response is left as it is.
    """

    def less_baseline(cost: Tensor) -> Tensor:
        returns = returns_after(cost, mask, discount, length_normalise=length_normalise)
        return returns - baseline(returns, mask, baseline_kind, group)

    advantage = less_baseline(cost)
    if centre:
        # The others' costs in the baseline are centred by what this response is centred by. Centred each by
        # their own mean they would hold this response's costs: a bias of 1/S.
        advantage = advantage - _mean_of_others(cost, mask) * less_baseline(torch.ones_like(cost))
    return advantage


@torch.no_grad()
def mixture_importance(log_p_a: Tensor, log_q_a: Tensor, teacher_share: float) -> Tensor:
    """q / (teacher_share·p + (1 − teacher_share)·q) of the tokens written. [N], [N] -> [N].

    For tokens drawn from that mixture (teacher-mixed sampling, MiniLLM, section 2.2). It corrects for the
    token alone and not for those before it, whose weights would have to be multiplied: biased, exact only at
    the first token, but never above 1/(1 − teacher_share). Its mean at a state is 1, so a
    distance over all actions, which MiniLLM weighs too, keeps its expectation and gets some noise
    (experiments/exact has the variances).

    Raises ValueError for a share outside 0 to 1, or 1, where nothing bounds the weights.
    """
    if not 0.0 <= teacher_share < 1.0:
        raise ValueError(f"teacher_share must be at least 0 and below 1, not {teacher_share}")
    if teacher_share == 0.0:
        return torch.ones_like(log_q_a)
    odds = math.log(teacher_share) - math.log1p(-teacher_share)
    return torch.sigmoid(-log_ratio(log_p_a, log_q_a) - odds) / (1.0 - teacher_share)


def _sum_from(values: Tensor) -> Tensor:
    """Σ_{t'≥t} values_t'. [S, T] -> [S, T]."""
    return values.flip(1).cumsum(1).flip(1)


def _mean_of_others(cost: Tensor, mask: Tensor) -> Tensor:
    """The mean cost of a token over all other responses, 0 where there is none. [S, T], [S, T] -> [S, 1]."""
    total = torch.where(mask, cost, 0.0).sum(1, keepdim=True)
    others = _others(mask.new_zeros(len(mask)))
    return _mean_over(others, total, mask.sum(1, keepdim=True).to(cost.dtype))


def _others(group: Tensor) -> Tensor:
    """Which responses a row's is compared with: all of its group but itself. [S] -> [S, S] bool."""
    itself = torch.eye(len(group), dtype=torch.bool, device=group.device)
    return (group.unsqueeze(1) == group) & ~itself


def _mean_over(others: Tensor, total: Tensor, count: Tensor) -> Tensor:
    """Σ total / Σ count over each row's others, 0 where these have none. [S, S], [S, ·] twice -> [S, ·]."""
    weight = others.to(total.dtype)
    return (weight @ total) / (weight @ count).clamp(min=1.0)
