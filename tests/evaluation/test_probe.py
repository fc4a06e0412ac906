"""The probe: finds what is a function of the features, no more than there is, and nothing in noise."""

import pytest
import torch
from torch import Tensor

from amd_lightning.evaluation import probe as probing
from amd_lightning.evaluation.distances import compare
from amd_lightning.evaluation.probe import FIT, MEASURE, NEITHER, ProbeStates, States, halves, probe
from amd_lightning.objectives.divergences import tv
from amd_lightning.objectives.support import Support, full_support, top_k_support
from amd_lightning.types import Rollout
from tests.helpers import VOCABULARY, rollout, t5

N, D, V = 900, 6, 80


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(features: Tensor, shift: Tensor, k: int = 64) -> States:
    """A teacher and a student that differ by `shift` [N, V] in logits."""
    base = 2.0 * features @ draw(D, V, seed=1)
    return States(features, top_k_support((base + shift).log_softmax(-1), base.log_softmax(-1), 0.5, k))


def free_optimum(states: States) -> float:
    """½ Σ_a (p − q)²/(p + q), with the mixture (p + q)/2."""
    support = states.support
    # What rounding has left nothing of, in the tail, is 0/0.
    return float((support.difference.square() / (4.0 * support.mixture)).nan_to_num(0.0).sum(-1).mean())


def systematic(seed: int) -> States:
    """The difference is a function of the features."""
    features = draw(N, D, seed=seed)
    return pair(features, 1.5 * torch.tanh(features @ draw(D, V, seed=2)))


def noise(seed: int) -> States:
    """The same size of a difference, and no feature tells which way it goes."""
    return pair(draw(N, D, seed=seed), 1.5 * torch.tanh(draw(N, V, seed=seed + 50)))


def test_equal_policies_are_at_no_distance() -> None:
    halves = [pair(draw(N, D, seed=seed), torch.zeros(N, V)) for seed in (3, 4)]
    assert probe(*halves) == (0.0, 0.0)


def test_what_the_features_tell_is_found() -> None:
    fit, held_out = systematic(3), systematic(4)
    value, trained = probe(fit, held_out)
    assert value > 0.6 * free_optimum(held_out)
    assert value < free_optimum(held_out)
    assert value < trained < free_optimum(fit)
    support = held_out.support
    assert value < float(0.5 * support.difference.abs().sum(-1).mean())  # the total variation


def test_more_states_bring_it_nearer_to_the_free_optimum() -> None:
    fit, held_out = systematic(3), systematic(4)
    few = States(fit.features[:100], Support(*(field[:100] for field in fit.support)))  # type: ignore[index]
    assert probe(few, held_out)[0] < probe(fit, held_out)[0]


def test_noise_is_not_rewarded() -> None:
    fit, held_out = noise(3), noise(4)
    value, trained = probe(fit, held_out)
    assert free_optimum(held_out) > 0.05
    assert abs(value) < 0.25 * free_optimum(held_out)
    assert trained > value + 0.02


def test_a_constant_difference_needs_no_features() -> None:
    shift = 2.0 * draw(1, V, seed=9).expand(N, V)
    fit, held_out = (pair(draw(N, D, seed=seed), shift) for seed in (3, 4))
    assert probe(fit, held_out)[0] > 0.75 * free_optimum(held_out)


def test_it_is_the_same_every_time_and_leaves_the_stream_alone() -> None:
    fit, held_out = systematic(3), systematic(4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = probe(fit, held_out)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    with torch.no_grad():
        assert probe(fit, held_out) == one


def test_units_of_the_features_do_not_matter() -> None:
    fit, held_out = systematic(3), systematic(4)
    scaled = [states._replace(features=1000.0 * states.features + 7.0) for states in (fit, held_out)]
    assert probe(*scaled) == pytest.approx(probe(fit, held_out), rel=0.02)


def test_a_feature_that_never_changes_is_no_problem() -> None:
    fit, held_out = systematic(3), systematic(4)
    more = [
        states._replace(features=torch.cat([states.features, torch.ones(N, 1)], dim=-1))
        for states in (fit, held_out)
    ]
    value, trained = probe(*more)
    assert (value, trained) == pytest.approx(probe(fit, held_out), rel=0.1)


def test_a_single_state_is_no_problem() -> None:
    fit, held_out = systematic(3), systematic(4)
    one = States(fit.features[:1], Support(*(field[:1] for field in fit.support)))  # type: ignore[index]
    value, trained = probe(one, held_out)
    assert value == pytest.approx(0.0, abs=0.05)
    assert trained > 0.0


def test_both_ways_to_compute_it_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, held_out = systematic(3), systematic(4)
    monkeypatch.setattr(probing, "ROUNDS", 1)  # rounding differs, and many steps make much of it
    at_once = probe(fit, held_out)
    monkeypatch.setattr(probing, "ALL_AT_ONCE", 0)
    assert probe(fit, held_out) == pytest.approx(at_once, rel=1e-2)


def test_a_small_vocabulary_needs_no_list_of_actions() -> None:
    listed, whole = [], []
    for seed in (3, 4):
        states = systematic(seed)
        base = 2.0 * states.features @ draw(D, V, seed=1)
        shift = 1.5 * torch.tanh(states.features @ draw(D, V, seed=2))
        support = full_support((base + shift).log_softmax(-1), base.log_softmax(-1), 0.5)
        whole.append(States(states.features, support))
        listed.append(States(states.features, support._replace(actions=torch.arange(V).repeat(N, 1))))
    assert probe(*whole) == probe(*listed)


def test_actions_that_it_never_saw_count_for_nothing() -> None:
    fit, held_out = systematic(3), systematic(4)
    assert fit.support.actions is not None
    assert held_out.support.actions is not None
    odd = fit._replace(support=fit.support._replace(actions=2 * fit.support.actions.clamp(min=0)))
    unseen = held_out._replace(
        support=held_out.support._replace(actions=2 * held_out.support.actions.clamp(min=0) + 1)
    )
    assert probe(odd, unseen)[0] == 0.0


# -- the halves --------------------------------------------------------------------------------------


def test_halves_are_apart_and_within_their_budget() -> None:
    lengths = torch.randint(1, 20, (301,), generator=torch.Generator().manual_seed(0))
    half = halves(lengths, tokens=400)
    assert set(half.tolist()) == {FIT, MEASURE, NEITHER}
    for side in (FIT, MEASURE):
        assert 380 < int(lengths[half == side].sum()) <= 400
    assert torch.equal(halves(lengths, tokens=400), half)

    everything = halves(lengths, tokens=10_000)
    assert [int((everything == side).sum()) for side in (FIT, MEASURE, NEITHER)] == [151, 150, 0]
    assert bool((everything[half != NEITHER] == half[half != NEITHER]).all())


def test_states_are_gathered_from_the_responses_of_their_half() -> None:
    student, teacher = t5(1), t5(0)
    batch: Rollout = rollout([3, 5, 4], [[2], [4], [3]], [[True]] * 3)
    seen: list[tuple[States, States]] = []
    gathered = ProbeStates(torch.tensor([MEASURE, NEITHER, FIT]))

    def keep(fit: States, held_out: States) -> tuple[float, float]:
        seen.append((fit, held_out))
        return 0.5, 0.75

    original, probing.probe = probing.probe, keep
    try:
        compare(student, teacher, [batch], logits_at_once=2 * 2 * VOCABULARY, watch=gathered.add)
        assert gathered.measure() == (0.5, 0.75)
    finally:
        probing.probe = original
    ((fit, held_out),) = seen
    with torch.no_grad():
        hidden = teacher.hidden(batch)
        log_p, log_q = teacher.log_probs(hidden), student.log_probs(student.hidden(batch))
    for states, rows in ((held_out, slice(0, 2)), (fit, slice(6, 9))):
        torch.testing.assert_close(states.features, hidden[rows])
        variation = 0.5 * states.support.difference.abs().sum(-1)
        torch.testing.assert_close(variation, tv(log_p[rows], log_q[rows]), rtol=1e-4, atol=1e-6)


def test_an_empty_half_is_no_measurement() -> None:
    gathered = ProbeStates(torch.tensor([FIT, FIT]))
    batch = rollout([3, 5], [[2], [4]], [[True]] * 2)
    compare(t5(1), t5(0), [batch], watch=gathered.add)
    assert gathered.measure() is None
