"""Exact moments of estimators of the on-policy gradient, over every tuple of responses.

A batch of S responses is one of R^S tuples; the package's functions see each of them, and what they make of
it is weighted by its probability. So a bias is a difference and a variance a sum, both to rounding.
"""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amd_lightning.objectives.divergences import rkl
from amd_lightning.objectives.kernels import ngram_kernel
from amd_lightning.objectives.moments import moment_gap
from amd_lightning.objectives.policy_gradient import advantages, returns_after

from .testbed import DTYPE, World, random_logits, response_probabilities

WORLDS = {"no_eos": World(2, 4), "eos": World(3, 3, eos=0)}
COSTS = ["gap", "sign", "rkl"]


class Setting(NamedTuple):
    """All R responses of a world, what each of their states costs and how everything depends on θ [P]."""

    world: World
    p: Tensor
    q: Tensor
    ids: Tensor  # [R, T] long
    mask: Tensor  # [R, T] bool
    probability: Tensor  # [R]
    score: Tensor  # [R, T, P] ∇log q(y_t|s_t), 0 outside the mask
    direct: Tensor  # [R, T, P] ∇D(s_t), likewise
    expected: Tensor  # [R, T] D(s_t)
    sampled: Tensor  # [R, T] a function of s_t and y_t with the expectation D(s_t)
    of_sum: Tensor  # [P] ∇L_on by autograd, through the probabilities of whole responses
    of_length: Tensor  # [P] ∇E len
    of_token_mean: Tensor  # [P] ∇(L_on / E len)

    @property
    def future(self) -> Tensor:
        """[P] what the future term has to be."""
        return self.of_sum - self.mean(self.direct.sum(1))

    @property
    def length(self) -> Tensor:
        """E len."""
        return self.mean(self.mask.sum(1).to(DTYPE))

    def mean(self, per_response: Tensor) -> Tensor:
        """Its expectation for one response of the student. [R, ...] -> [...]."""
        return torch.einsum("r,r...->...", self.probability, per_response)


@cache
def setting(name: str, cost: str, seed: int = 15) -> Setting:
    """A world's name; a cost: the gap of a random critic, that of the sign critic (frozen), or rkl."""
    world = WORLDS[name]
    p, logits = random_logits(world, seed).softmax(-1), random_logits(world, seed + 1)
    critic = (p - logits.softmax(-1)).sign() if cost == "sign" else random_logits(world, seed + 2)
    paths = [list(world.path(response)) for response in world.responses]

    def padded(value: Callable[[int, int], Any], filler: float) -> Tensor:
        rows = [[value(*step) for step in path] for path in paths]
        return torch.tensor([row + [filler] * (world.horizon - len(row)) for row in rows])

    states, ids = padded(lambda s, a: s, 0), padded(lambda s, a: a, 0)
    mask = padded(lambda s, a: True, False)
    lengths = mask.sum(1).to(DTYPE)

    def per_state(logits: Tensor) -> Tensor:
        log_q = logits.log_softmax(-1)
        return rkl(p.log(), log_q) if cost == "rkl" else moment_gap(p, log_q.exp(), critic)

    def log_q_written(logits: Tensor) -> Tensor:
        return torch.where(mask, logits.log_softmax(-1)[states, ids], 0.0)

    def totals(logits: Tensor) -> Tensor:
        """[3] L_on, E len and their quotient; for rkl the first is KL between whole responses."""
        probability = response_probabilities(world, logits.softmax(-1))
        if cost == "rkl":
            per_response = probability.log() - response_probabilities(world, p).log()
        else:
            per_response = (per_state(logits)[states] * mask).sum(1)
        total, length = (probability * per_response).sum(), (probability * lengths).sum()
        return torch.stack([total, length, total / length])

    def jacobian(function: Callable[[Tensor], Tensor]) -> Tensor:
        value: Any = torch.autograd.functional.jacobian(function, logits)
        return value.flatten(-2)

    q = logits.softmax(-1)
    of_action = (q / p).log() if cost == "rkl" else (p * critic).sum(-1, keepdim=True) - critic
    direct = jacobian(per_state)[states] * mask.unsqueeze(-1)
    expected, sampled = per_state(logits)[states] * mask, of_action[states, ids] * mask
    written = (ids, mask, response_probabilities(world, q))
    return Setting(
        world, p, q, *written, jacobian(log_q_written), direct, expected, sampled, *jacobian(totals)
    )


class Estimate(NamedTuple):
    """The exact moments of an estimator [P] of one batch."""

    mean: Tensor
    variance: float  # the trace of its covariance


def moments(weight: Tensor, vectors: Tensor) -> Estimate:
    """Of vectors [K, P] with probabilities [K]."""
    mean = weight @ vectors
    return Estimate(mean, float(weight @ (vectors - mean).square().sum(1)))


def estimate(
    case: Setting,
    size: int,
    advantage: Callable[[Tensor, Tensor], Tensor],
    cost: Tensor | None = None,
    direct: bool = True,
) -> Estimate:
    """mean_i Σ_t [∇D(s_t) + ∇log q(y_t) · advantage(cost, mask)] over all batches of `size` responses."""
    tuples = torch.tensor(list(product(range(len(case.ids)), repeat=size)))  # [K, S]
    weight = case.probability[tuples].prod(1)
    factor = torch.func.vmap(advantage)((case.expected if cost is None else cost)[tuples], case.mask[tuples])
    vectors = torch.zeros(len(tuples), case.score.shape[-1], dtype=DTYPE)
    for i in range(size):
        vectors += torch.einsum("kt,ktp->kp", factor[:, i], case.score[tuples[:, i]]) / size
        vectors += case.direct.sum(1)[tuples[:, i]] / size * direct
    return moments(weight, vectors)


def package(kind: str = "none", centre: bool = False, discount: float = 1.0, **options: Any) -> Callable:
    """The package's advantages; two prompts share the batch, so that the groups of the baselines differ."""

    def advantage(cost: Tensor, mask: Tensor) -> Tensor:
        group = (torch.arange(len(cost)) >= 2).long()
        settings = dict(discount=discount, centre=centre, baseline_kind=kind, group=group, **options)
        return advantages(cost, mask, **settings)

    return advantage


def from_t_on(cost: Tensor, mask: Tensor) -> Tensor:
    """Reward-to-go, step t included: right without the direct term, and with sampled costs only."""
    return returns_after(cost, mask, 1.0) + cost


def relative_bias(actual: Tensor, exact: Tensor) -> float:
    return float((actual - exact).norm() / exact.norm())


def centred(cost: Tensor, mask: Tensor) -> Tensor:
    """Costs less the token mean of the other responses. [S, T], [S, T] -> [S, T]."""
    total, count = (cost * mask).sum(1, keepdim=True), mask.sum(1, keepdim=True)
    return (cost - (total.sum() - total) / (count.sum() - count)) * mask


def whitened(cost: Tensor, mask: Tensor) -> Tensor:
    """Advantages less their mean over the batch, divided by their deviation there."""
    advantage = package()(cost, mask)
    count = mask.sum()
    mean = advantage.sum() / count
    deviation = (torch.where(mask, advantage - mean, 0.0).square().sum() / count).sqrt()
    return (advantage - mean) / (deviation + 1e-6)


def reversed_sign(cost: Tensor, mask: Tensor) -> Tensor:
    """Of the future term: a reward's where a cost's should be."""
    return -package()(cost, mask)


def with_itself(cost: Tensor, mask: Tensor) -> Tensor:
    """A batch mean at each step as the baseline, the response that it is subtracted from among it."""
    returns = returns_after(cost, mask, 1.0)
    return returns - returns.mean(0)


def wrong_forms(case: Setting) -> dict[str, dict[str, Any]]:
    """What looks right and is not: arguments of `estimate`."""
    return {
        "g from t on, no direct term": {"advantage": from_t_on, "direct": False},
        "step t in the future too": {"advantage": from_t_on, "cost": case.sampled},
        "no future": {"advantage": package(discount=0.0)},
        "discounted by .8": {"advantage": package(discount=0.8)},
        "whitened": {"advantage": whitened},
        "length-normalised": {"advantage": package(length_normalise=True)},
        "the future's sign reversed": {"advantage": reversed_sign},
    }


def right_forms(case: Setting) -> dict[str, dict[str, Any]]:
    """From the plainest to the best: arguments of `estimate`."""
    return {
        "reward to go": {"advantage": from_t_on, "cost": case.sampled, "direct": False},
        "direct, sampled": {"advantage": package(), "cost": case.sampled},
        "direct, expected": {"advantage": package()},
        "direct, expected, baseline": {"advantage": package("time_step")},
    }


def kernel_setting(world: str) -> tuple[Setting, Tensor]:
    """A case and the similarity of all its responses [R, R]."""
    case = setting(world, "gap")
    return case, ngram_kernel(case.ids, case.mask, case.ids, case.mask).to(DTYPE)


def kernel_estimate(case: Setting, similarity: Tensor, size: int, teacher: Tensor, rule: Any) -> Estimate:
    """−mean_i ∇log q(y_i) · rule(student_student, student_teacher)_i, responses of the teacher given [M]."""
    tuples = torch.tensor(list(product(range(len(case.ids)), repeat=size)))
    return moments(case.probability[tuples].prod(1), kernel_vectors(case, similarity, tuples, teacher, rule))


def kernel_vectors(case: Setting, similarity: Tensor, tuples: Tensor, teacher: Tensor, rule: Any) -> Tensor:
    """The same of each batch of responses, by their numbers [K, S]. -> [K, P]."""
    factor = rule(similarity[tuples.unsqueeze(2), tuples.unsqueeze(1)], similarity[tuples][..., teacher])
    return -torch.einsum("ki,kip->kp", factor, case.score.sum(1)[tuples]) / tuples.shape[1]


def half_mmd_gradient(case: Setting, similarity: Tensor, teacher: Tensor, repulsion: float = 1.0) -> Tensor:
    """[P] of ½ (repulsion · E k(y, y₂) − 2 E k(y, y')), by autograd; y' is one of `teacher` [M]."""
    logits = case.q.log().requires_grad_()
    student = response_probabilities(case.world, logits.softmax(-1))
    half = 0.5 * repulsion * student @ similarity @ student - (student @ similarity)[teacher].mean()
    return torch.autograd.grad(half, logits)[0].flatten()
