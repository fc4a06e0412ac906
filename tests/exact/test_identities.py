"""What the method rests on, checked to rounding on worlds where every response is enumerated.

p is the teacher, q the student, f a critic, T the horizon. The names I1 to I16 are used throughout
the tests. The moment gap and the total variation here are the package's own, its states and
expectations are the testbed's.
"""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amd_lightning.objectives.divergences import kl, tv
from amd_lightning.objectives.moments import closed_form_critic, moment_gap

from .cases import Case, make_case, student_gradient
from .formulas import frozen_critic, on_policy_gradient
from .testbed import (
    DTYPE,
    World,
    action_values,
    expected_return,
    future,
    random_logits,
    response_probabilities,
    visitation,
    worst_case_gap,
    worst_reward,
)

WORLDS = [World(4, 4), World(5, 4, eos=0), World(2, 5, eos=1)]
IDS = ["no_eos", "eos", "binary"]
ROUNDING = 1e-13


worlds = pytest.mark.parametrize("world", WORLDS, ids=IDS)
seeds = st.integers(min_value=0, max_value=10**6)
few = settings(max_examples=15, deadline=None)


# --- What a critic has to be for the moment gap to be the difference in return ---


@worlds
@few
@given(seed=seeds)
def test_i1_off_policy_gap_of_the_students_values_is_the_gap_in_return(world: World, seed: int) -> None:
    case = make_case(world, seed)
    q_student = action_values(world, case.q, case.reward)
    assert case.off(moment_gap(case.p, case.q, q_student)) == pytest.approx(case.gap, abs=ROUNDING)


@worlds
@few
@given(seed=seeds)
def test_i2_on_policy_gap_of_the_teachers_values_is_the_gap_in_return(world: World, seed: int) -> None:
    case = make_case(world, seed)
    q_teacher = action_values(world, case.p, case.reward)
    assert case.on(moment_gap(case.p, case.q, q_teacher)) == pytest.approx(case.gap, abs=ROUNDING)


@worlds
def test_i3_the_pairings_cannot_be_swapped(world: World) -> None:
    case = make_case(world, seed=0)
    q_student, q_teacher = (action_values(world, policy, case.reward) for policy in (case.q, case.p))
    assert abs(case.off(moment_gap(case.p, case.q, q_teacher)) - case.gap) > 1e-2
    assert abs(case.on(moment_gap(case.p, case.q, q_student)) - case.gap) > 1e-2


@worlds
@few
@given(seed=seeds, size=st.floats(-10, 10))
def test_i4_a_function_of_the_state_changes_nothing(world: World, seed: int, size: float) -> None:
    case = make_case(world, seed)
    shift = size * random_logits(world, seed + 3)[:, :1]
    before, after = (moment_gap(case.p, case.q, f) for f in (case.reward, case.reward + shift))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    gradients = [frozen_critic(case.p, case.q, f)[1] for f in (case.reward, case.reward + shift)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)


# --- Worst cases ---


@worlds
def test_i5_the_best_bounded_critic_is_a_sign_and_its_value_twice_the_total_variation(world: World) -> None:
    case = make_case(world, seed=3)
    twice_tv = 2 * tv(case.p.log(), case.q.log())
    best = moment_gap(case.p, case.q, (case.p - case.q).sign())
    torch.testing.assert_close(best, twice_tv, rtol=0, atol=ROUNDING)
    # A linear programme has its optimum at a corner: try every corner of |f| ≤ 1, at every state.
    corners = torch.tensor(list(product((-1.0, 1.0), repeat=world.vocabulary_size)), dtype=DTYPE)
    values = torch.stack([moment_gap(case.p, case.q, corner.expand_as(case.p)) for corner in corners])
    torch.testing.assert_close(values.amax(0), twice_tv, rtol=0, atol=ROUNDING)


@worlds
@few
@given(seed=seeds)
def test_i6_the_worst_bounded_reward_gives_the_distance_between_visits(world: World, seed: int) -> None:
    case = make_case(world, seed)
    worst = case._replace(reward=worst_reward(world, case.p, case.q))
    assert worst.gap == pytest.approx(float(worst_case_gap(world, case.p, case.q)), abs=ROUNDING)
    assert abs(make_case(world, seed, reward_bound=1.0).gap) <= worst.gap


@worlds
@few
@given(seed=seeds)
def test_i7_i8_total_variation_times_the_size_of_the_values_bounds_the_gap(world: World, seed: int) -> None:
    case = make_case(world, seed, reward_bound=1.0)
    twice_tv = 2 * tv(case.p.log(), case.q.log())
    remaining = (world.horizon - world.time).to(DTYPE)
    for expectation, values in (
        (case.off, action_values(world, case.q, case.reward)),
        (case.on, action_values(world, case.p, case.reward)),
    ):
        assert values.abs().amax(-1).le(remaining + ROUNDING).all()
        span = values.amax(-1) - values.amin(-1)
        sharp = expectation(span * twice_tv / 2)
        assert abs(case.gap) <= sharp + ROUNDING  # I8
        assert sharp <= expectation(remaining * twice_tv) + ROUNDING  # I7


def test_i9_a_critic_bounded_by_one_does_not_bound_the_gap_of_rewards_bounded_by_one() -> None:
    """Policies that differ in the first token only, and rewards that depend on nothing else."""
    world = World(4, 4)
    p, q = random_logits(world, 0).softmax(-1), random_logits(world, 0).softmax(-1)
    q[0] = random_logits(world, 1)[0].softmax(-1)
    case = Case(world, p, q, worst_reward(world, p, q))
    bound = case.off(2 * tv(p.log(), q.log()))
    assert case.gap == pytest.approx(world.horizon * bound)


@worlds
@few
@given(seed=seeds)
def test_i14_total_variation_is_bounded_by_the_kl_of_responses(world: World, seed: int) -> None:
    case = make_case(world, seed)
    kl_sequence = case.off(kl(case.p.log(), case.q.log()))
    assert case.off(2 * tv(case.p.log(), case.q.log())) <= (2 * world.horizon * kl_sequence) ** 0.5


@worlds
def test_kl_of_responses_is_the_sum_of_kl_over_the_teachers_states(world: World) -> None:
    case = make_case(world, seed=5)
    teacher, student = (response_probabilities(world, policy) for policy in (case.p, case.q))
    expected = float((teacher * (teacher / student).log()).sum())
    assert case.off(kl(case.p.log(), case.q.log())) == pytest.approx(expected, abs=1e-12)


# --- Gradients ---


@worlds
@pytest.mark.parametrize("side", ["off", "on"])
def test_i11_total_variation_has_the_gradient_of_the_frozen_sign_critic(world: World, side: str) -> None:
    case = make_case(world, seed=7)
    frozen = student_gradient(world, 7, f"L_{side}", critic=(case.p - case.q).sign())
    torch.testing.assert_close(student_gradient(world, 7, f"tv_{side}"), frozen, rtol=0, atol=ROUNDING)


@worlds
def test_i12_on_policy_gap_of_the_teachers_values_ascends_the_return(world: World) -> None:
    case = make_case(world, seed=11)
    logits = random_logits(world, 12).requires_grad_()
    (ascent,) = torch.autograd.grad(expected_return(world, logits.softmax(-1), case.reward), logits)
    q_teacher, q_student = (action_values(world, policy, case.reward) for policy in (case.p, case.q))
    on = student_gradient(world, 11, "L_on", critic=q_teacher)
    torch.testing.assert_close(on, -ascent, rtol=0, atol=ROUNDING)
    off = student_gradient(world, 11, "L_off", critic=q_student)
    assert (off + ascent).abs().max() > 1e-2  # off-policy, frozen values are not exact


@worlds
def test_i12_on_student_states_the_students_values_need_no_future_term(world: World) -> None:
    """The policy-gradient theorem: the direct term alone, with Q of the student, is exact."""
    case = make_case(world, seed=13)
    logits = random_logits(world, 14).requires_grad_()
    (ascent,) = torch.autograd.grad(expected_return(world, logits.softmax(-1), case.reward), logits)
    direct = frozen_critic(case.p, case.q, action_values(world, case.q, case.reward))[1]
    direct = visitation(world, case.q).unsqueeze(-1) * direct
    torch.testing.assert_close(direct, -ascent, rtol=0, atol=ROUNDING)


def surrogate_gradient(case: Case, future_cost: Tensor, direct: bool = True, sign: float = 1.0) -> Tensor:
    """The direct term plus E ∇log q(a|s) · cost(s, a), states fixed: what an update can compute. [S, V]."""
    logits = case.q.log().requires_grad_()
    log_q = logits.log_softmax(-1)
    gap = moment_gap(case.p, log_q.exp(), case.reward)
    score = (case.q * log_q * future_cost).sum(-1)
    visits = visitation(case.world, case.q)
    return torch.autograd.grad((visits * (float(direct) * gap + sign * score)).sum(), logits)[0]


def relative_bias(estimate: Tensor, exact: Tensor) -> float:
    return float((estimate - exact).norm() / exact.norm())


@worlds
def test_on_policy_gradient_is_a_direct_and_a_future_term(world: World) -> None:
    case = make_case(world, seed=17)
    exact = on_policy_gradient(world, case.p, case.q, case.reward)
    gap = moment_gap(case.p, case.q, case.reward)
    with_future = surrogate_gradient(case, future(world, case.q, gap))
    torch.testing.assert_close(with_future, exact, rtol=0, atol=ROUNDING)
    by_autograd = student_gradient(world, 17, "L_on", critic=case.reward)
    torch.testing.assert_close(by_autograd, exact, rtol=0, atol=ROUNDING)
    # A baseline, the state's own gap among them, changes no expectation.
    baseline = gap.unsqueeze(-1) + 3.0
    torch.testing.assert_close(
        surrogate_gradient(case, future(world, case.q, gap) - baseline), exact, rtol=0, atol=ROUNDING
    )


@worlds
def test_sampled_returns_have_the_same_expectation(world: World) -> None:
    """G_t' = E_p f − f(s_t', y_t') in place of g(s_t')."""
    case = make_case(world, seed=19)
    sampled = (case.p * case.reward).sum(-1, keepdim=True) - case.reward
    to_go = action_values(world, case.q, sampled)
    exact = on_policy_gradient(world, case.p, case.q, case.reward)
    # Plain reward-to-go from t on, and the direct term plus the reward-to-go after t, are both right.
    torch.testing.assert_close(surrogate_gradient(case, to_go, direct=False), exact, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(surrogate_gradient(case, to_go - sampled), exact, rtol=0, atol=ROUNDING)


@worlds
def test_wrong_forms_of_the_on_policy_gradient_are_caught(world: World) -> None:
    case = make_case(world, seed=23)
    exact = on_policy_gradient(world, case.p, case.q, case.reward)
    gap = moment_gap(case.p, case.q, case.reward)
    later = future(world, case.q, gap)
    sampled = (case.p * case.reward).sum(-1, keepdim=True) - case.reward
    wrong = {
        "reversed sign of everything": -surrogate_gradient(case, later),
        "reversed sign of the future": surrogate_gradient(case, later, sign=-1.0),
        "no direct term": surrogate_gradient(case, later + gap.unsqueeze(-1), direct=False),
        "step t counted twice": surrogate_gradient(case, later + sampled),
        "no future term": surrogate_gradient(case, torch.zeros_like(later)),
    }
    bias = {name: relative_bias(gradient, exact) for name, gradient in wrong.items()}
    assert bias["reversed sign of everything"] == pytest.approx(2.0)
    assert min(bias.values()) > 0.1, bias


@worlds
def test_i15_the_token_mean_centres_the_gaps(world: World) -> None:
    case = make_case(world, seed=29)
    logits = random_logits(world, 30).requires_grad_()
    q = logits.softmax(-1)
    visits = visitation(world, q)
    gap = moment_gap(case.p, q, case.reward)
    token_mean = (visits * gap).sum() / visits.sum()
    (of_the_mean,) = torch.autograd.grad(token_mean, logits, retain_graph=True)
    # A constant critic shift would drop out of g: centring acts on the gap itself, so through the visits.
    (centred,) = torch.autograd.grad((visits * (gap - token_mean.detach())).sum(), logits)
    torch.testing.assert_close(of_the_mean, centred / visits.sum().detach(), rtol=0, atol=ROUNDING)
    if world.eos is not None:
        plain = student_gradient(world, 29, "L_on", critic=case.reward) / visits.sum().detach()
        assert (of_the_mean - plain).abs().max() > 1e-3


@worlds
def test_i16_finite_differences_agree_and_a_step_down_lowers_the_gap(world: World) -> None:
    case = make_case(world, seed=31)
    logits = random_logits(world, 32)

    def value(logits: Tensor) -> float:
        q = logits.softmax(-1)
        return float((visitation(world, q) * moment_gap(case.p, q, case.reward)).sum())

    gradient = student_gradient(world, 31, "L_on", critic=case.reward)
    step = 1e-5
    for state, action in product(range(0, len(gradient), 7), range(world.vocabulary_size)):
        bump = torch.zeros_like(logits)
        bump[state, action] = step
        numeric = (value(logits + bump) - value(logits - bump)) / (2 * step)
        assert numeric == pytest.approx(float(gradient[state, action]), abs=1e-8)
    assert value(logits - 1e-2 * gradient) < value(logits) < value(logits + 1e-2 * gradient)


def test_at_equal_policies_every_gap_is_zero_and_the_ridge_critic_vanishes() -> None:
    case = make_case(World(4, 4, eos=0), seed=37)
    same = case._replace(q=case.p)
    assert same.on(moment_gap(same.p, same.q, same.reward)) == 0.0
    assert closed_form_critic((same.p / same.q).log(), alpha=0.5, ridge=2.0).abs().max().item() == 0.0
