"""Statistics against what is known by hand, by enumeration, or from the distribution that made the data."""

import itertools

import numpy as np
import pytest

from amd_lightning.analysis.compare.statistics import (
    Array,
    Resamples,
    Sample,
    difference,
    estimate,
    holm,
    sign_flip_test,
    student_t_quantile,
    student_t_tail,
)


@pytest.fixture(scope="module")
def resamples() -> Resamples:
    return Resamples(0)


def crossed(rng: np.random.Generator, size: tuple[int, int], spreads: tuple[float, float, float]) -> Array:
    """Scores with mean 0: of the seed, of the example, of both."""
    seeds, examples = size
    of_seed, of_example, of_both = spreads
    return (
        of_seed * rng.normal(size=(seeds, 1))
        + of_example * rng.normal(size=(1, examples))
        + of_both * rng.normal(size=size)
    )


# Quantiles that leave 2.5 % above, from a printed table.
@pytest.mark.parametrize(
    "freedom, value", [(1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (30, 2.042), (1e6, 1.960)]
)
def test_students_t_is_the_tables(freedom: float, value: float) -> None:
    assert student_t_quantile(0.975, freedom) == pytest.approx(value, abs=5e-4)
    assert student_t_tail(student_t_quantile(0.975, freedom), freedom) == pytest.approx(0.025, abs=1e-7)
    assert student_t_tail(0.0, freedom) == pytest.approx(0.5)


def test_students_t_has_a_closed_form_at_two_degrees() -> None:
    for t in (0.3, 2.0, 30.0):
        assert student_t_tail(t, 2.0) == pytest.approx(0.5 - t / (2 * np.sqrt(2 + t * t)), abs=1e-7)
    with pytest.raises(ValueError, match="at least 1"):
        student_t_tail(1.0, 0.5)


def test_holm_by_hand() -> None:
    # .005 × 4, .01 × 3, .03 × 2, and .04 × 1, which is not left below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    "size, spreads, least",
    [
        ((3, 1), (1.0, 0.0, 0.0), 0.92),
        ((1, 60), (0.0, 1.0, 0.0), 0.92),
        ((3, 60), (0.2, 1.0, 0.3), 0.92),
        ((2, 60), (0.3, 0.3, 0.5), 0.86),  # what `estimate` says of two seeds
        ((3, 60), (0.0, 0.5, 1.0), 0.92),
    ],
)
def test_the_interval_covers_the_truth(
    size: tuple[int, int], spreads: tuple[float, float, float], least: float, resamples: Resamples
) -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        found = estimate(Sample(crossed(rng, size, spreads), resamples))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.0 <= found.high
    assert hits / 300 >= least  # .95, less three standard errors; three seeds' percentiles give at most .75
    if min(size) == 1:
        assert hits / 300 <= 0.98


def test_the_error_of_one_source_is_the_textbooks(resamples: Resamples) -> None:
    values = np.array([0.1, 0.5, 0.3, 0.7])
    for scores in (values[:, None], values[None, :]):
        found = estimate(Sample(scores, resamples))
        assert found.error == pytest.approx(values.std(ddof=1) / 2.0, rel=0.05)
        assert found.freedom == 3.0
        assert found.low is not None
        assert found.low == pytest.approx(0.4 - 3.182 * (found.error or 0.0), abs=1e-3)
    assert estimate(Sample(values[:, None], resamples)).examples is None
    assert estimate(Sample(values[None, :], resamples)).examples == 4


def test_one_number_has_no_interval(resamples: Resamples) -> None:
    found = estimate(Sample(np.array([[0.4]]), resamples))
    assert (found.mean, found.low, found.high, found.error) == (0.4, None, None, None)


def test_seeds_alone_make_an_interval_wider(resamples: Resamples) -> None:
    rng = np.random.default_rng(2)
    noisy = crossed(rng, (3, 50), (0.5, 0.2, 0.2))
    pooled = estimate(Sample(noisy.mean(0, keepdims=True), resamples))
    both = estimate(Sample(noisy, resamples))
    assert (both.error or 0.0) > 2.0 * (pooled.error or 0.0)


def test_sign_flips_agree_with_all_of_them_counted(resamples: Resamples) -> None:
    apart = np.array([0.3, -0.1, 0.4, 0.2, 0.25, -0.05])
    sums = [abs(np.dot(signs, apart)) for signs in itertools.product((-1.0, 1.0), repeat=6)]
    exact = np.mean([found >= abs(apart.sum()) - 1e-12 for found in sums])
    assert sign_flip_test(Sample(apart[None, :], resamples)) == pytest.approx(exact, abs=0.01)


def test_sign_flips_are_uniform_where_nothing_differs(resamples: Resamples) -> None:
    rng = np.random.default_rng(3)
    found = np.array([sign_flip_test(Sample(rng.normal(size=(1, 40)), resamples)) for _ in range(400)])
    for level in (0.1, 0.5, 0.9):
        assert (found <= level).mean() == pytest.approx(level, abs=0.075)  # three standard errors


def test_p_and_interval_say_the_same_and_both_orders_too(resamples: Resamples) -> None:
    rng = np.random.default_rng(4)
    verdicts = set()
    for shift in np.linspace(0.0, 0.6, 25):
        first = Sample(crossed(rng, (3, 40), (0.1, 0.4, 0.2)) + shift, resamples)
        second = Sample(crossed(rng, (3, 40), (0.1, 0.4, 0.2)), resamples)
        one, two = difference(first, second), difference(second, first)
        low, high = one.estimate.low, one.estimate.high
        assert one.p is not None
        assert low is not None
        assert high is not None
        assert (one.p < 0.05) == (low > 0.0 or high < 0.0)
        assert two.estimate.mean == pytest.approx(-one.estimate.mean)
        assert two.p == pytest.approx(one.p)
        assert (two.wins, two.losses) == (one.losses, one.wins)
        verdicts.add(one.p < 0.05)
    assert verdicts == {True, False}


def test_pairing_takes_out_what_both_share(resamples: Resamples) -> None:
    rng = np.random.default_rng(5)
    hard = rng.normal(size=(1, 80))
    first, second = (hard + 0.1 * rng.normal(size=(3, 80)) + shift for shift in (0.1, 0.0))
    found = difference(Sample(first, resamples), Sample(second, resamples))
    alone = estimate(Sample(first, resamples))
    assert (found.estimate.error or 1.0) < 0.3 * (alone.error or 0.0)
    assert (found.p or 0.0) < 0.05


def test_effects_wins_and_losses_by_hand(resamples: Resamples) -> None:
    first = np.array([[1.0, 0.0, 1.0, 0.5]])
    second = np.array([[0.0, 0.0, 0.5, 1.0]])
    found = difference(Sample(first, resamples), Sample(second, resamples))
    apart = np.array([1.0, 0.0, 0.5, -0.5])
    assert found.effect == pytest.approx(apart.mean() / apart.std(ddof=1))
    assert (found.wins, found.losses) == (0.5, 0.25)
    same = difference(Sample(first, resamples), Sample(first, resamples))
    assert (same.p, same.p_examples, same.effect) == (1.0, 1.0, None)


def test_some_of_the_seeds_are_a_sample_of_their_own(resamples: Resamples) -> None:
    scores = np.random.default_rng(6).normal(size=(4, 30))
    whole = Sample(scores, resamples)
    part, own = whole.of([0, 2]), Sample(scores[[0, 2]], resamples)
    assert estimate(part) == estimate(own)
    assert sign_flip_test(part) == pytest.approx(sign_flip_test(own))
    assert whole.of([0, 1, 2, 3]) is whole
