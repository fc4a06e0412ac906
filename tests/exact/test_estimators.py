"""Estimators of the on-policy gradient: which are unbiased, which are not, and which are less noisy."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from amd_lightning.objectives.kernels import kernel_advantages, kernel_scores, mmd_squared
from amd_lightning.objectives.policy_gradient import BASELINES, baseline, returns_after

from .estimators import (
    COSTS,
    WORLDS,
    centred,
    estimate,
    from_t_on,
    half_mmd_gradient,
    kernel_estimate,
    kernel_setting,
    package,
    relative_bias,
    reversed_sign,
    right_forms,
    setting,
    with_itself,
    wrong_forms,
)
from .testbed import DTYPE, response_probabilities

ROUNDING = 1e-12
worlds = pytest.mark.parametrize("world", WORLDS)
costs = pytest.mark.parametrize("cost", COSTS)


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=ROUNDING)


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

    bias = {
        name: relative_bias(estimate(case, 2, **form).mean, case.of_sum)
        for name, form in wrong_forms(case).items()
    }
    assert min(bias.values()) > 0.05, bias
    # The first two each fail for a reason of their own.
    assert_exact(estimate(case, 2, from_t_on, case.sampled, direct=False).mean, case.of_sum)


@worlds
@costs
def test_the_reversed_sign_is_off_by_twice_the_term(world: str, cost: str) -> None:
    case = setting(world, cost)
    assert_exact(estimate(case, 2, reversed_sign).mean - case.of_sum, -2 * case.future)


@costs
@pytest.mark.parametrize("size", [2, 3])
def test_a_batch_mean_with_the_sample_itself_loses_a_share_of_the_term(cost: str, size: int) -> None:
    case = setting("no_eos", cost)

    assert_exact(estimate(case, size, with_itself).mean - case.of_sum, -case.future / size)


# --- Variance ---


@worlds
@costs
def test_expected_costs_and_a_baseline_have_less_variance(world: str, cost: str) -> None:
    case = setting(world, cost)
    variance = {name: estimate(case, 3, **form).variance for name, form in right_forms(case).items()}
    assert variance["direct, expected, baseline"] < 0.7 * variance["reward to go"], variance
    assert variance["direct, expected"] < variance["direct, sampled"], variance


# --- Whole responses ---


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
