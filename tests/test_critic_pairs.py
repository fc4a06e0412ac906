"""What ascending the regularised gap does to a critic, and a pair: one critic for each source of states."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from amd_lightning.critics import CriticPair, LearningCritic, QCritic
from amd_lightning.objectives.moments import closed_form_critic, log_ratio, moment_gap, ridge_penalty
from amd_lightning.objectives.support import full_support, top_k_support
from tests.test_critics import (
    ALPHA,
    CRITICS,
    RIDGE,
    N,
    States,
    V,
    head_of,
    learning,
    make_critic,
    make_states,
)


def regularised_gap(states: States, critic: Tensor) -> Tensor:
    """The mean over the states of what a critic ascends."""
    p, q = states.p, states.q
    return (moment_gap(p, q, critic) - RIDGE * ridge_penalty(p, q, critic, ALPHA)).mean()


def optimum(states: States) -> float:
    best = closed_form_critic(log_ratio(states.log_p, states.log_q), ALPHA, RIDGE)
    return regularised_gap(states, best).item()


def ascend(critic: QCritic, states: States, steps: int, learning_rate: float = 1e-2) -> list[float]:
    """The regularised gap before each step and after the last."""
    optimizer = torch.optim.AdamW(critic.parameters(), lr=learning_rate, betas=(0.5, 0.99), weight_decay=0.0)
    values = []
    for _ in range(steps):
        value = regularised_gap(states, critic(*states))
        values.append(value.item())
        optimizer.zero_grad()
        (-value).backward()
        optimizer.step()
    return [*values, regularised_gap(states, critic(*states)).item()]


@learning
def test_the_head_can_leave_its_start(name: str) -> None:
    """The last layer moves first; the features follow as soon as it isn't zero."""
    critic, states = CRITICS[name](), make_states()
    moved = {key: value.clone() for key, value in critic.named_parameters()}
    # With its own states' log-ratio the residual critic starts where nothing pulls: at the optimum.
    elsewhere = make_states(seed=1)
    regularised_gap(elsewhere, critic(*states)).backward()
    gradients = {key: parameter.grad for key, parameter in critic.named_parameters()}
    assert gradients["head.values.weight"] is not None
    assert gradients["head.values.weight"].abs().max() > 1e-3
    assert gradients["head.features.weight"] is not None
    assert gradients["head.features.weight"].abs().max() == 0.0
    ascend(critic, states, steps=3)
    assert all((parameter - moved[key]).abs().max() > 0 for key, parameter in critic.named_parameters())


@pytest.mark.parametrize("name", ["learned", "tanh"])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_ascent_raises_the_regularised_gap(name: str, steps: int) -> None:
    states = make_states()
    values = ascend(CRITICS[name](), states, steps)
    assert values[0] == 0.0
    assert all(after > before for before, after in pairwise(values))
    assert values[-1] <= optimum(states)


def test_a_learned_critic_approaches_the_closed_form() -> None:
    states, critic = make_states(), CRITICS["learned"]()
    ascend(critic, states, steps=400)
    # AdamW at a constant rate jitters around its end, on each processor in its own way.
    values = ascend(critic, states, steps=200, learning_rate=1e-3)
    assert values[-1] == pytest.approx(optimum(states), rel=1e-3)
    best = CRITICS["closed_form"]()(*states)
    # Rare actions weigh little in the ridge, so compare where it looks: in mean square under μ.
    mu = ALPHA * states.p + (1 - ALPHA) * states.q
    distance = (mu * (critic(*states) - best).square()).sum(-1).mean()
    assert distance.item() < 1e-3


def test_a_residual_critic_stays_at_the_closed_form_which_is_its_optimum() -> None:
    states = make_states()
    values = ascend(CRITICS["residual"](), states, steps=100)
    assert values[0] == pytest.approx(optimum(states), rel=1e-6)
    assert min(values) > 0.98 * optimum(states)
    assert max(values) <= optimum(states) + 1e-6


def test_a_residual_critic_finds_back_to_it() -> None:
    states, critic = make_states(), CRITICS["residual"]()
    torch.nn.init.normal_(head_of(critic).values.weight, std=0.3)
    values = ascend(critic, states, steps=300)
    assert values[0] < 0.9 * optimum(states)
    assert values[-1] == pytest.approx(optimum(states), rel=1e-2)


def ascend_the_plain_gap(name: str, states: States) -> tuple[Tensor, Tensor]:
    """The gap and f after 400 steps without a ridge."""
    critic = CRITICS[name]()
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-2, betas=(0.5, 0.99), weight_decay=0.0)
    for _ in range(400):
        gap = moment_gap(states.p, states.q, critic(*states)).mean()
        optimizer.zero_grad()
        (-gap).backward()
        optimizer.step()
    return gap.detach(), critic(*states).detach()


def test_without_a_ridge_a_learned_critic_runs_away() -> None:
    """The gap is linear in f: only the ridge gives the ascent somewhere to stop."""
    _, f = ascend_the_plain_gap("learned", make_states())
    assert f.abs().max().item() > 20.0


def test_without_a_ridge_a_bounded_critic_approaches_the_sign() -> None:
    states = make_states()
    gap, f = ascend_the_plain_gap("tanh", states)
    best = moment_gap(states.p, states.q, CRITICS["sign"]()(*states)).mean()
    assert gap.item() == pytest.approx(best.item(), rel=0.02)
    assert f.abs().max().item() <= 1.0


@learning
def test_actions_that_are_impossible_give_no_nan(name: str) -> None:
    states = make_states()
    log_p, log_q = states.log_p.clone(), states.log_q.clone()
    log_p[0, 0] = log_q[0, 0] = log_p[1, 1] = log_q[2, 2] = -torch.inf
    states = states._replace(log_p=log_p.log_softmax(-1), log_q=log_q.log_softmax(-1))
    critic = CRITICS[name]()
    torch.nn.init.normal_(head_of(critic).values.weight, std=0.1)
    values = ascend(critic, states, steps=5)
    assert torch.tensor(values).isfinite().all()
    assert all(parameter.isfinite().all() for parameter in critic.parameters())


# --- The pair: one critic for each source of states ---


MIXED = torch.arange(N) % 3 == 0
ALL_OFF, ALL_ON = torch.ones(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)
sources = pytest.mark.parametrize("off_policy", [MIXED, ALL_OFF, ALL_ON], ids=["mixed", "off", "on"])
SUPPORTS: dict[str, Any] = {"full": full_support, "top_k": partial(top_k_support, k=2)}


@sources
@pytest.mark.parametrize("name", CRITICS)
def test_each_state_is_judged_by_the_critic_of_its_source(name: str, off_policy: Tensor) -> None:
    off, on = make_critic(name, seed=1), make_critic(name, seed=2)
    states = make_states(off_policy=off_policy)
    expected = torch.where(off_policy.unsqueeze(-1), off(*states), on(*states))
    torch.testing.assert_close(CriticPair(off, on)(*states), expected)


@sources
@pytest.mark.parametrize("actions", SUPPORTS)
@learning
def test_at_some_actions_too(name: str, actions: str, off_policy: Tensor) -> None:
    off, on = make_critic(name, seed=1), make_critic(name, seed=2)
    assert isinstance(off, LearningCritic)
    assert isinstance(on, LearningCritic)
    states = make_states(off_policy=off_policy)
    support = SUPPORTS[actions](states.log_p, states.log_q, ALPHA)
    expected = torch.where(
        off_policy.unsqueeze(-1), off.at(states.tokens, support), on.at(states.tokens, support)
    )
    torch.testing.assert_close(CriticPair(off, on).at(states.tokens, support), expected)


@sources
def test_each_critic_learns_from_its_own_source_only(off_policy: Tensor) -> None:
    states = make_states(off_policy=off_policy)
    support = full_support(states.log_p, states.log_q, ALPHA)
    for at in (False, True):
        off, on = make_critic("learned", seed=1), make_critic("learned", seed=2)
        pair = CriticPair(off, on)
        (pair.at(states.tokens, support) if at else pair(*states)).sum().backward()
        for critic, count in ((off, int(off_policy.sum())), (on, int((~off_policy).sum()))):
            slope = head_of(critic).values.bias.grad
            assert (0.0 if slope is None else slope[0].item()) == count


@pytest.mark.parametrize("name", CRITICS)
def test_one_critic_may_serve_both_sources(name: str) -> None:
    critic, states = make_critic(name), make_states()
    pair = CriticPair(critic, critic)
    torch.testing.assert_close(pair(*states), critic(*states), rtol=0, atol=0)
    assert len(list(pair.parameters())) == len(list(critic.parameters()))
    assert pair.learns == critic.learns
    if isinstance(critic, LearningCritic):
        support = top_k_support(states.log_p, states.log_q, ALPHA, 2)
        shared = pair.at(states.tokens, support)
        torch.testing.assert_close(shared, critic.at(states.tokens, support), rtol=0, atol=0)


def test_a_shared_critic_learns_from_both_sources() -> None:
    critic, states = make_critic("learned"), make_states()
    support = full_support(states.log_p, states.log_q, ALPHA)
    CriticPair(critic, critic).at(states.tokens, support).sum().backward()
    slope = head_of(critic).values.bias.grad
    assert slope is not None
    assert slope[0].item() == N


def test_a_pair_learns_if_one_of_its_critics_does() -> None:
    learns = {
        (one, other): CriticPair(CRITICS[one](), CRITICS[other]()).learns
        for one in ("sign", "learned")
        for other in ("sign", "learned")
    }
    assert [pair for pair, does in learns.items() if not does] == [("sign", "sign")]


@pytest.mark.parametrize("name", CRITICS)
def test_no_states_give_no_values_from_a_pair(name: str) -> None:
    pair, nothing = CriticPair(make_critic(name, seed=1), make_critic(name, seed=2)), make_states().first(0)
    assert pair(*nothing).shape == (0, V)
    if pair.learns:
        support = top_k_support(nothing.log_p, nothing.log_q, ALPHA, 2)
        assert pair.at(nothing.tokens, support).shape == (0, 3)


def test_a_pairs_state_is_saved_for_each_critic() -> None:
    pair = CriticPair(make_critic("residual", seed=1), make_critic("residual", seed=2))
    assert {name.split(".")[0] for name in pair.state_dict()} == {"off_policy", "on_policy"}
    fresh = CriticPair(make_critic("residual", seed=3), make_critic("residual", seed=4))
    fresh.load_state_dict(pair.state_dict())
    states = make_states()
    torch.testing.assert_close(fresh(*states), pair(*states), rtol=0, atol=0)
    assert not torch.equal(pair.off_policy(*states), pair.on_policy(*states))
