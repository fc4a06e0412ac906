"""Estimators of the on-policy gradient, their expectations taken over every tuple of responses.

A batch of S responses is one of R^S tuples; the package's functions see each of them, and what they make of
it is weighted by its probability. So a bias is a difference and a variance a sum, both to rounding.
"""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from amd_lightning.objectives.divergences import rkl
from amd_lightning.objectives.kernels import kernel_advantages, kernel_scores, mmd_squared, ngram_kernel
from amd_lightning.objectives.moments import moment_gap
from amd_lightning.objectives.policy_gradient import BASELINES, advantages, baseline, centred, returns_after

from .testbed import DTYPE, World, random_logits, response_probabilities

ROUNDING = 1e-12
WORLDS = {"no_eos": World(2, 4), "eos": World(3, 3, eos=0)}
COSTS = ["gap", "rkl"]

worlds = pytest.mark.parametrize("world", WORLDS)
costs = pytest.mark.parametrize("cost", COSTS)


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
    world = WORLDS[name]
    p, critic = random_logits(world, seed).softmax(-1), random_logits(world, seed + 2)
    logits = random_logits(world, seed + 1)
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


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=ROUNDING)


def relative_bias(actual: Tensor, exact: Tensor) -> float:
    return float((actual - exact).norm() / exact.norm())


# --- What is unbiased ---


@worlds
@costs
@pytest.mark.parametrize("sampled", [False, True], ids=["expected", "sampled"])
@pytest.mark.parametrize("kind", BASELINES)
def test_direct_and_future_term_are_the_gradient_of_the_sum(
    world: str, cost: str, sampled: bool, kind: str
) -> None:
    case = setting(world, cost)
    assert case.future.norm() > 0.1
    estimated = estimate(case, 3, package(kind), case.sampled if sampled else None)
    assert_exact(estimated.mean, case.of_sum)


@worlds
@costs
@pytest.mark.parametrize("kind", BASELINES)
def test_centring_subtracts_the_gradient_of_the_length(world: str, cost: str, kind: str) -> None:
    """Exactly, times the others' expected token mean, whatever the baseline."""
    case = setting(world, cost)
    totals, lengths = case.expected.sum(1), case.mask.sum(1)
    pair = torch.outer(case.probability, case.probability)
    mean_of_two = (pair * (totals + totals[:, None]) / (lengths + lengths[:, None])).sum()
    estimated = estimate(case, 3, package(kind, centre=True))
    assert_exact(estimated.mean, case.of_sum - mean_of_two * case.of_length)
    if case.world.eos is None:
        assert_exact(estimated.mean, case.of_sum)
    else:
        assert (mean_of_two * case.of_length).norm() > 0.01


# --- I15: the objective that is a mean over tokens ---


@worlds
@costs
def test_i15_the_token_mean_has_the_gradient_of_costs_centred_by_it(world: str, cost: str) -> None:
    case = setting(world, cost)
    token_mean = case.mean(case.expected.sum(1)) / case.length
    by_the_truth = estimate(case, 1, lambda c, m: returns_after(c - token_mean, m, 1.0))
    assert_exact(by_the_truth.mean / case.length, case.of_token_mean)


@costs
def test_centring_by_others_is_exact_when_each_counts_by_the_others_tokens(cost: str) -> None:
    """E len_j (∇L)_i − L_j (∇len)_i is E len ∇L − L ∇E len, (E len)² times the token mean's gradient."""
    case = setting("eos", cost)
    size = 3

    def weighted(cost: Tensor, mask: Tensor) -> Tensor:
        others = (mask.sum() - mask.sum(1, keepdim=True)).to(DTYPE)
        return others * returns_after(centred(cost, mask), mask, 1.0)

    # The direct term, weighted alike: the others' tokens are independent of it.
    direct = case.mean(case.direct.sum(1)) * (size - 1) * case.length
    estimated = estimate(case, size, weighted, direct=False).mean + direct
    assert_exact(estimated / ((size - 1) * case.length**2), case.of_token_mean)


def test_centring_by_others_approaches_the_token_mean_as_they_grow_in_number() -> None:
    case = setting("eos", "gap")
    exact = case.of_token_mean * case.length
    bias = [relative_bias(estimate(case, n, package(centre=True)).mean, exact) for n in (2, 3, 4)]
    uncentred = relative_bias(case.of_sum, exact)
    assert bias[2] < bias[1] < bias[0] < uncentred, (bias, uncentred)
    assert 3 * bias[2] < 1.25 * bias[0]  # as one over the number of others


@worlds
def test_a_baseline_of_costs_centred_each_by_its_own_others_is_biased(world: str) -> None:
    """Why `advantages` doesn't compose `centred` and `baseline`: the mean of j's others holds i's costs."""
    case = setting(world, "gap")

    def composed(cost: Tensor, mask: Tensor) -> Tensor:
        returns = returns_after(centred(cost, mask), mask, 1.0)
        return returns - baseline(returns, mask, "time_step", torch.zeros(len(cost), dtype=torch.long))

    right = estimate(case, 3, package("time_step", centre=True)).mean
    assert relative_bias(estimate(case, 3, composed).mean, right) > 0.01


# --- What is not ---


@worlds
@costs
def test_wrong_forms_are_caught(world: str, cost: str) -> None:
    case = setting(world, cost)

    def bias(advantage: Callable[[Tensor, Tensor], Tensor], **options: Any) -> float:
        return relative_bias(estimate(case, 2, advantage, **options).mean, case.of_sum)

    def whitened(cost: Tensor, mask: Tensor) -> Tensor:
        advantage = package()(cost, mask)
        count = mask.sum()
        mean = advantage.sum() / count
        deviation = (torch.where(mask, advantage - mean, 0.0).square().sum() / count).sqrt()
        return (advantage - mean) / (deviation + 1e-6)

    found = {
        "g from t on, no direct term": bias(from_t_on, direct=False),
        "step t in the future too": bias(from_t_on, cost=case.sampled),
        "no future": bias(package(discount=0.0)),
        "discounted": bias(package(discount=0.8)),
        "whitened": bias(whitened),
        "length-normalised": bias(package(length_normalise=True)),
    }
    assert min(found.values()) > 0.1, found
    # The first two each fail for a reason of their own.
    assert bias(from_t_on, cost=case.sampled, direct=False) < ROUNDING


@worlds
@costs
def test_the_reversed_sign_is_off_by_twice_the_term(world: str, cost: str) -> None:
    case = setting(world, cost)
    reversed_sign = estimate(case, 2, lambda c, m: -package()(c, m)).mean
    assert_exact(reversed_sign - case.of_sum, -2 * case.future)


@costs
@pytest.mark.parametrize("size", [2, 3])
def test_a_batch_mean_with_the_sample_itself_loses_a_share_of_the_term(cost: str, size: int) -> None:
    case = setting("no_eos", cost)

    def with_itself(cost: Tensor, mask: Tensor) -> Tensor:
        returns = returns_after(cost, mask, 1.0)
        return returns - returns.mean(0)

    estimated = estimate(case, size, with_itself).mean
    assert_exact(estimated - case.of_sum, -case.future / size)


# --- Variance ---


@worlds
@costs
def test_expected_costs_and_a_baseline_have_less_variance(world: str, cost: str) -> None:
    case = setting(world, cost)
    variance = {
        "reward to go": estimate(case, 3, from_t_on, cost=case.sampled, direct=False).variance,
        "direct, sampled": estimate(case, 3, package(), cost=case.sampled).variance,
        "direct, expected": estimate(case, 3, package()).variance,
        "direct, expected, baseline": estimate(case, 3, package("time_step")).variance,
    }
    assert variance["direct, expected, baseline"] < 0.7 * variance["reward to go"], variance
    assert variance["direct, expected"] < variance["direct, sampled"], variance


# --- Whole responses ---


def kernel_setting(world: str) -> tuple[Setting, Tensor]:
    """A case and the similarity of all its responses [R, R]."""
    case = setting(world, "gap")
    return case, ngram_kernel(case.ids, case.mask, case.ids, case.mask).to(DTYPE)


def kernel_estimate(case: Setting, similarity: Tensor, size: int, teacher: Tensor, rule: Any) -> Estimate:
    """−mean_i ∇log q(y_i) · rule(student_student, student_teacher)_i, responses of the teacher given [M]."""
    tuples = torch.tensor(list(product(range(len(case.ids)), repeat=size)))
    factor = rule(similarity[tuples.unsqueeze(2), tuples.unsqueeze(1)], similarity[tuples][..., teacher])
    vectors = -torch.einsum("ki,kip->kp", factor, case.score.sum(1)[tuples]) / size
    return moments(case.probability[tuples].prod(1), vectors)


def half_mmd_gradient(case: Setting, similarity: Tensor, teacher: Tensor, repulsion: float = 1.0) -> Tensor:
    """[P] of ½ (repulsion · E k(y, y₂) − 2 E k(y, y')), by autograd; y' is one of `teacher` [M]."""
    logits = case.q.log().requires_grad_()
    student = response_probabilities(case.world, logits.softmax(-1))
    half = 0.5 * repulsion * student @ similarity @ student - (student @ similarity)[teacher].mean()
    return torch.autograd.grad(half, logits)[0].flatten()


@worlds
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("rule", [kernel_scores, kernel_advantages])
def test_kernel_advantages_descend_half_the_squared_mmd(world: str, size: int, rule: Any) -> None:
    case, similarity = kernel_setting(world)
    teacher = torch.tensor([1, 4, 4])
    exact = half_mmd_gradient(case, similarity, teacher)
    assert exact.norm() > 0.01
    assert_exact(kernel_estimate(case, similarity, size, teacher, rule).mean, exact)


@worlds
@pytest.mark.parametrize("size", [2, 3])
def test_a_plain_leave_one_out_baseline_takes_part_of_the_repulsion(world: str, size: int) -> None:
    case, similarity = kernel_setting(world)
    teacher = torch.tensor([1])

    def plain(among: Tensor, with_teacher: Tensor) -> Tensor:
        scores = kernel_scores(among, with_teacher)
        return scores - (scores.sum(-1, keepdim=True) - scores) / (size - 1)

    biased = kernel_estimate(case, similarity, size, teacher, plain).mean
    assert_exact(biased, half_mmd_gradient(case, similarity, teacher, repulsion=1 - 1 / (size - 1)))
    assert relative_bias(biased, half_mmd_gradient(case, similarity, teacher)) > 0.05


def test_the_kernels_baseline_pays_only_where_student_and_teacher_differ() -> None:
    """At equal policies the scores' mean is 0, and what is subtracted from them is noise."""
    case, similarity = kernel_setting("no_eos")
    far = (similarity @ case.probability).argmin().unsqueeze(0)
    generator = torch.Generator().manual_seed(0)
    equal = torch.multinomial(case.probability, 64, replacement=True, generator=generator)

    def variance(rule: Any, teacher: Tensor) -> float:
        return kernel_estimate(case, similarity, 3, teacher, rule).variance

    assert variance(kernel_advantages, far) < 0.8 * variance(kernel_scores, far)
    assert variance(kernel_advantages, equal) > variance(kernel_scores, equal)


@worlds
def test_mmd_squared_is_unbiased(world: str) -> None:
    case, similarity = kernel_setting(world)
    student, teacher = case.probability, response_probabilities(case.world, case.p)
    difference = student - teacher
    exact = difference @ similarity @ difference
    pairs = torch.tensor(list(product(range(len(similarity)), repeat=2)))
    students, teachers = pairs.repeat_interleave(len(pairs), 0), pairs.repeat(len(pairs), 1)
    weight = student[students].prod(1) * teacher[teachers].prod(1)

    def between(a: Tensor, b: Tensor) -> Tensor:
        return similarity[a.unsqueeze(2), b.unsqueeze(1)]

    values = mmd_squared(
        between(students, students), between(students, teachers), between(teachers, teachers)
    )
    assert exact > 0.01
    assert_exact(weight @ values, exact)
    assert values.min() < 0
