"""Expectations on part of the vocabulary: what is exact, what is a bound, and what is right on average."""

from itertools import product
from math import inf, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amd_lightning.objectives.divergences import tv
from amd_lightning.objectives.moments import closed_form_critic, log_ratio, moment_gap, ridge_penalty
from amd_lightning.objectives.support import TAIL, Support, full_support, sampled_support, top_k_support

V = 7
quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 10**6)
alphas = st.floats(0.02, 0.98)
ks = st.integers(1, V - 2)


def policies(seed: int, rows: int = 4, actions: int = V, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a teacher and a student."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, rows, actions, generator=generator, dtype=torch.float64)
    log_p, log_q = logits.log_softmax(-1)
    return log_p, log_q


def noise(seed: int, rows: int = 4, actions: int = V) -> Tensor:
    return torch.randn(rows, actions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


def kept(support: Support) -> Tensor:
    """[N, V] which actions stand for themselves."""
    assert support.actions is not None
    mask = torch.zeros(len(support.actions), V, dtype=torch.bool)
    return mask.scatter(-1, support.actions[:, :-1], True)


def on_support(support: Support, critic: Tensor, tail: Tensor) -> Tensor:
    """A critic's values [N, V], and what it says of the tail [N], as values on the support [N, M]."""
    assert support.actions is not None
    return torch.cat([critic.gather(-1, support.actions[:, :-1]), tail.unsqueeze(-1)], dim=-1)


# --- All actions ---


@quick
@given(seed=seeds, alpha=alphas)
def test_on_every_action_it_is_the_moment_gap_and_the_ridge(seed: int, alpha: float) -> None:
    log_p, log_q = policies(seed)
    support = full_support(log_p, log_q, alpha)
    p, q, critic = log_p.exp(), log_q.exp(), noise(seed)
    assert support.actions is None
    assert support.gap(critic).equal(moment_gap(p, q, critic))
    assert support.penalty(critic).equal(ridge_penalty(p, q, critic, alpha))
    assert support.log_ratio.equal(log_ratio(log_p, log_q))


@pytest.mark.parametrize("k", [V - 1, V, V + 5])
def test_without_a_tail_to_lump_nothing_is_lumped(k: int) -> None:
    log_p, log_q = policies(0)
    support, full = top_k_support(log_p, log_q, 0.3, k), full_support(log_p, log_q, 0.3)
    assert support.actions is None
    for part, whole in zip(support[1:], full[1:], strict=True):
        assert isinstance(part, Tensor)
        assert part.equal(whole)


def test_a_support_is_a_constant_and_its_critic_is_not() -> None:
    log_p, log_q = (z.requires_grad_() for z in policies(0))
    critic = noise(0).requires_grad_()
    support = full_support(log_p, log_q, 0.5)
    for made in (support, top_k_support(log_p, log_q, 0.5, 3), sampled_support(log_p, log_q, 0.5, 3)):
        assert not any(part.requires_grad for part in made[1:])
    (slope,) = torch.autograd.grad(support.gap(critic).sum(), critic)
    close(slope, (log_p.exp() - log_q.exp()).detach())


def test_some_of_the_states() -> None:
    log_p, log_q = policies(0)
    rows = torch.tensor([True, False, True, True])
    lumped = top_k_support(log_p, log_q, 0.3, 3)
    for support in (full_support(log_p, log_q, 0.3), lumped):
        critic = noise(1, 4, support.difference.shape[-1])
        part = support.at(rows)
        assert part.gap(critic[rows]).equal(support.gap(critic)[rows])
        assert part.penalty(critic[rows]).equal(support.penalty(critic)[rows])
        assert part.log_ratio.equal(support.log_ratio[rows])
        assert (part.actions is None) == (support.actions is None)
    part = lumped.at(slice(1, 3))
    assert part.actions is not None
    assert lumped.actions is not None
    assert part.actions.equal(lumped.actions[1:3])


# --- The k most likely actions and the tail ---


@quick
@given(seed=seeds, alpha=alphas, k=ks)
def test_the_most_likely_actions_of_both_stand_for_themselves(seed: int, alpha: float, k: int) -> None:
    log_p, log_q = policies(seed)
    support = top_k_support(log_p, log_q, alpha, k)
    assert support.actions is not None
    assert support.actions.shape == support.difference.shape == (4, k + 1)
    assert support.actions[:, -1].eq(TAIL).all()
    mask, middle = kept(support), log_p.exp() + log_q.exp()
    assert mask.sum(-1).eq(k).all()  # none twice
    least, most = middle.where(mask, inf).amin(-1), middle.where(~mask, -inf).amax(-1)
    assert least.ge(most).all()
    own = support.actions[:, :-1]
    close(support.difference[:, :-1], (log_p.exp() - log_q.exp()).gather(-1, own))
    assert support.log_ratio[:, :-1].equal(log_ratio(log_p, log_q).gather(-1, own))
    # The tail is one action, with the probabilities of all of its own.
    p, q = (z.exp().where(~mask, 0.0).sum(-1) for z in (log_p, log_q))
    close(support.difference[:, -1], p - q)
    close(support.mixture[:, -1], alpha * p + (1 - alpha) * q)
    torch.testing.assert_close(support.log_ratio[:, -1], (p / q).log(), rtol=1e-9, atol=1e-9)
    close(support.difference.sum(-1), torch.zeros(4, dtype=torch.float64))
    close(support.mixture.sum(-1), torch.ones(4, dtype=torch.float64))


@quick
@given(seed=seeds, alpha=alphas, k=ks)
def test_exact_for_critics_that_do_not_tell_tail_actions_apart(seed: int, alpha: float, k: int) -> None:
    log_p, log_q = policies(seed)
    p, q = log_p.exp(), log_q.exp()
    support = top_k_support(log_p, log_q, alpha, k)
    critic, tail = noise(seed), noise(seed + 1)[:, 0]
    lumped = on_support(support, critic, tail)
    everywhere = torch.where(kept(support), critic, tail.unsqueeze(-1))
    close(support.gap(lumped), moment_gap(p, q, everywhere))
    close(support.penalty(lumped), ridge_penalty(p, q, everywhere, alpha))


@quick
@given(seed=seeds, alpha=alphas, ridge=st.floats(0.1, 10.0), k=ks)
def test_the_best_critic_of_the_support_is_no_better_than_that_of_all_actions(
    seed: int, alpha: float, ridge: float, k: int
) -> None:
    """Data processing: lumping actions loses distance; and more actions keep more of it."""
    log_p, log_q = policies(seed)

    def best(support: Support) -> tuple[Tensor, Tensor]:
        critic = closed_form_critic(support.log_ratio, alpha, ridge)
        return (
            support.gap(support.difference.sign()),
            support.gap(critic) - ridge * support.penalty(critic),
        )

    coarse = best(top_k_support(log_p, log_q, alpha, k))
    finer, full = best(top_k_support(log_p, log_q, alpha, k + 1)), best(full_support(log_p, log_q, alpha))
    close(full[0], 2 * tv(log_p, log_q))
    for fewest, more, most in zip(coarse, finer, full, strict=True):
        assert fewest.ge(0).all()
        assert fewest.le(more + 1e-13).all()
        assert more.le(most + 1e-13).all()
    if k < V - 2:  # Random policies: the tail's two actions at least don't have one ratio.
        assert coarse[1].lt(full[1]).any()


def test_the_best_on_the_support_is_the_best_among_critics_with_a_flat_tail() -> None:
    log_p, log_q = policies(1)
    p, q = log_p.exp(), log_q.exp()
    support = top_k_support(log_p, log_q, 0.3, 3)
    assert support.actions is not None
    best = closed_form_critic(support.log_ratio, 0.3, 2.0)
    tail = best[:, -1:]
    flat = tail.expand(-1, V).scatter(-1, support.actions[:, :-1], best[:, :-1])
    value = moment_gap(p, q, flat) - 2.0 * ridge_penalty(p, q, flat, 0.3)
    close(value, support.gap(best) - 2.0 * support.penalty(best))
    for seed in range(20):
        step = on_support(support, noise(seed), noise(seed + 1)[:, 0])
        assert (support.gap(best + step) - 2.0 * support.penalty(best + step)).lt(value).all()


# --- Sampled actions ---


@pytest.mark.parametrize("samples", [1, 5])
def test_every_draw_counts_once_for_the_one_who_drew_it(samples: int) -> None:
    torch.manual_seed(0)
    log_p, log_q = policies(0)
    support = sampled_support(log_p, log_q, 0.3, samples)
    assert support.actions is not None
    assert support.actions.shape == (4, 2 * samples)
    mine_and_yours = torch.tensor([[1.0, -1.0], [0.3, 0.7]], dtype=torch.float64)
    for part, weights in zip((support.difference, support.mixture), mine_and_yours, strict=True):
        close(part, weights.repeat_interleave(samples).expand(4, -1) / samples)
    assert support.log_ratio.equal(log_ratio(log_p, log_q).gather(-1, support.actions))
    close(support.difference.sum(-1), torch.zeros(4).double())
    close(support.mixture.sum(-1), torch.ones(4).double())


def test_the_draws_come_from_the_teacher_and_then_from_the_student() -> None:
    log_p, log_q = torch.tensor([[0.0, -inf, -inf]]), torch.tensor([[-inf, -inf, 0.0]])
    support = sampled_support(log_p, log_q, 0.3, 2)
    assert support.actions is not None
    assert support.actions.tolist() == [[0, 0, 2, 2]]
    assert support.log_ratio.tolist() == [[inf, inf, -inf, -inf]]
    assert support.gap(support.log_ratio.sign()).tolist() == [2.0]


def test_the_expectation_over_all_draws_is_the_gap_and_the_ridge() -> None:
    """Every pair of draws, by its probability: no tolerance but rounding's."""
    log_p, log_q = policies(3, rows=1, actions=3)
    p, q, critic = log_p.exp()[0], log_q.exp()[0], noise(3, 1, 3)
    gap, penalty, seen = 0.0, 0.0, 0.0
    made = sampled_support(log_p, log_q, 0.3, 1)
    for mine, yours in product(range(3), repeat=2):
        actions = torch.tensor([[mine, yours]])
        support = made._replace(actions=actions)
        probability = float(p[mine] * q[yours])
        gap += probability * support.gap(critic.gather(-1, actions)).item()
        penalty += probability * support.penalty(critic.gather(-1, actions)).item()
        seen += probability
    assert seen == pytest.approx(1.0)
    assert gap == pytest.approx(moment_gap(p[None], q[None], critic).item(), rel=1e-12)
    assert penalty == pytest.approx(ridge_penalty(p[None], q[None], critic, 0.3).item(), rel=1e-12)


@pytest.mark.parametrize("samples", [1, 4])
def test_unbiased_within_the_standard_error_of_many_draws(samples: int) -> None:
    torch.manual_seed(0)
    log_p, log_q = policies(5, rows=1)
    critic, draws = noise(5, 1), 20_000
    p, q = log_p.exp(), log_q.exp()
    support = sampled_support(log_p.expand(draws, -1), log_q.expand(draws, -1), 0.3, samples)
    assert support.actions is not None
    at_draws = critic.expand(draws, -1).gather(-1, support.actions)

    def within(estimates: Tensor, exact: Tensor) -> None:
        error = estimates.std().item() / sqrt(draws)
        assert estimates.mean().item() == pytest.approx(exact.item(), abs=4 * error)
        assert 4 * error < 0.1 * abs(exact.item())

    within(support.gap(at_draws), moment_gap(p, q, critic))
    within(support.penalty(at_draws), ridge_penalty(p, q, critic, 0.3))
    # Independent draws: the variance of the gap is that of one pair, divided by how many there are.
    variance = sum((w * critic.square()).sum(-1) - (w * critic).sum(-1).square() for w in (p, q))
    assert support.gap(at_draws).var().item() == pytest.approx(float(variance) / samples, rel=0.05)


# --- The edges of floating point ---

ROWS = {
    "one-hot, alike": ([0.0, -inf, -inf, -inf], [0.0, -inf, -inf, -inf]),
    "one-hot, apart": ([0.0, -inf, -inf, -inf], [-inf, 0.0, -inf, -inf]),
    "the tail is the teacher's": ([0.0, -3.0, -3.0, -3.0], [0.0, -inf, -inf, -inf]),
    "the tail is the student's": ([0.0, -inf, -inf, -inf], [0.0, -3.0, -3.0, -3.0]),
    "each rules out some": ([0.0, -inf, 1.0, -inf], [0.0, 1.0, -inf, -inf]),
    "underflow": ([0.0, -200.0, -300.0, 1.0], [0.0, -1e4, -100.0, -2e4]),
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_no_policy_makes_a_nan(row: str, k: int) -> None:
    log_p, log_q = (torch.tensor([logits]).log_softmax(-1) for logits in ROWS[row])
    torch.manual_seed(0)
    for support in (
        full_support(log_p, log_q, 0.5),
        top_k_support(log_p, log_q, 0.5, k),
        sampled_support(log_p, log_q, 0.5, k),
    ):
        assert not support.log_ratio.isnan().any()
        assert support.difference.isfinite().all()
        assert support.mixture.ge(0).all()
        assert support.mixture.sum(-1).item() == pytest.approx(1.0, rel=1e-6)
        assert support.difference.sum(-1).item() == pytest.approx(0.0, abs=1e-6)
        critic = closed_form_critic(support.log_ratio, 0.5, 2.0)
        assert 0.0 <= support.gap(critic).item() <= 2.0
        assert support.penalty(critic).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tail_that_nobody_takes_says_nothing(dtype: torch.dtype) -> None:
    log_p = torch.tensor([[0.0, 0.0, -inf, -inf, -inf]], dtype=dtype).log_softmax(-1)
    log_q = torch.tensor([[1.0, 0.0, -inf, -inf, -inf]], dtype=dtype).log_softmax(-1)
    support = top_k_support(log_p, log_q, 0.5, 2)
    assert support.difference[0, -1].item() == support.mixture[0, -1].item() == 0.0
    assert support.log_ratio[0, -1].item() == 0.0


def test_a_tail_that_is_less_than_rounding_is_no_nan() -> None:
    """What is left of 1 may come out below 0."""
    logits = torch.full((2, 256, 500), -200.0)
    logits[..., :8] = torch.randn(2, 256, 8, generator=torch.Generator().manual_seed(0))
    log_p, log_q = logits.log_softmax(-1)
    support = top_k_support(log_p, log_q, 0.5, 16)
    assert not support.log_ratio.isnan().any()
    assert support.mixture.ge(0).all()
    assert support.difference[:, -1].abs().max().item() < 1e-6


def test_two_actions_and_no_states() -> None:
    log_p, log_q = policies(0, actions=2)
    for k in (1, 2):
        assert top_k_support(log_p, log_q, 0.5, k).actions is None
    first_or_second = torch.tensor([1.0, -1.0], dtype=torch.float64)
    expected = 2.0 * (log_p.exp() - log_q.exp())[:, 0]
    close(full_support(log_p, log_q, 0.5).gap(first_or_second), expected)
    support = sampled_support(log_p, log_q, 0.5, 3)
    assert support.actions is not None
    assert support.actions.ge(0).all()
    assert support.actions.le(1).all()
    log_p, log_q = policies(0, rows=0)
    for empty in (
        full_support(log_p, log_q, 0.5),
        top_k_support(log_p, log_q, 0.5, 3),
        sampled_support(log_p, log_q, 0.5, 3),
    ):
        assert empty.gap(empty.log_ratio).shape == (0,)
        assert empty.penalty(empty.log_ratio).shape == (0,)
