"""The critics: where they start, where gradients may go, and what ascending the regularised gap does."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from amd_lightning.critics import (
    ClosedFormCritic,
    CriticHead,
    CriticPair,
    LearnedCritic,
    QCritic,
    ResidualCritic,
)
from amd_lightning.objectives.moments import closed_form_critic, log_ratio, moment_gap, ridge_penalty
from amd_lightning.types import Tokens

N, V, D_STUDENT, D_TEACHER, RANK = 12, 5, 6, 8, 32
ALPHA, RIDGE = 0.5, 2.0

CRITICS: dict[str, Callable[[], QCritic]] = {
    "closed_form": lambda: ClosedFormCritic(ALPHA, RIDGE),
    "residual": lambda: ResidualCritic(make_head(), ALPHA, RIDGE),
    "learned": lambda: LearnedCritic(make_head(), ALPHA, RIDGE),
}
LEARNING = ["residual", "learned"]


class States(NamedTuple):
    """N states: what the two policies say and feel there."""

    student_hidden: Tensor
    teacher_hidden: Tensor
    log_p: Tensor
    log_q: Tensor

    @property
    def critic_inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.student_hidden, self.teacher_hidden, log_ratio(self.log_p, self.log_q)


def make_head() -> CriticHead:
    torch.manual_seed(0)
    return CriticHead(D_STUDENT, D_TEACHER, V, RANK)


def head_of(critic: QCritic) -> CriticHead:
    assert isinstance(critic, ResidualCritic | LearnedCritic)
    return critic.head


def make_states(seed: int = 0) -> States:
    generator = torch.Generator().manual_seed(seed)
    student_hidden = torch.randn(N, D_STUDENT, generator=generator)
    teacher_hidden = torch.randn(N, D_TEACHER, generator=generator)
    logits = 1.5 * torch.randn(2, N, V, generator=generator)
    log_p, log_q = logits.log_softmax(-1)
    return States(student_hidden, teacher_hidden, log_p, log_q)


def regularised_gap(states: States, critic: Tensor) -> Tensor:
    """The mean over the states of what a critic ascends."""
    p, q = states.log_p.exp(), states.log_q.exp()
    return (moment_gap(p, q, critic) - RIDGE * ridge_penalty(p, q, critic, ALPHA)).mean()


def optimum(states: States) -> float:
    best = closed_form_critic(log_ratio(states.log_p, states.log_q), ALPHA, RIDGE)
    return regularised_gap(states, best).item()


def ascend(critic: QCritic, states: States, steps: int, learning_rate: float = 1e-2) -> list[float]:
    """The regularised gap before each step and after the last."""
    optimizer = torch.optim.AdamW(critic.parameters(), lr=learning_rate, betas=(0.5, 0.99), weight_decay=0.0)
    values = []
    for _ in range(steps):
        value = regularised_gap(states, critic(*states.critic_inputs))
        values.append(value.item())
        optimizer.zero_grad()
        (-value).backward()
        optimizer.step()
    return [*values, regularised_gap(states, critic(*states.critic_inputs)).item()]


@pytest.mark.parametrize("name", CRITICS)
def test_one_value_for_each_state_and_action(name: str) -> None:
    states = make_states()
    assert CRITICS[name]()(*states.critic_inputs).shape == (N, V)
    none = (states.student_hidden[:0], states.teacher_hidden[:0], states.log_p[:0])
    assert CRITICS[name]()(*none).shape == (0, V)


def test_only_critics_with_a_head_learn() -> None:
    assert {name: make().learns for name, make in CRITICS.items()} == {
        "closed_form": False,
        "residual": True,
        "learned": True,
    }


def test_every_critic_starts_as_if_its_head_were_not_there() -> None:
    states = make_states()
    closed_form = CRITICS["closed_form"]()(*states.critic_inputs)
    torch.testing.assert_close(closed_form, torch.tanh((states.log_p - states.log_q) / 2))
    torch.testing.assert_close(CRITICS["residual"]()(*states.critic_inputs), closed_form, rtol=0, atol=0)
    assert CRITICS["learned"]()(*states.critic_inputs).abs().max().item() == 0.0


def test_the_residual_shifts_half_the_log_ratio() -> None:
    states, critic = make_states(), CRITICS["residual"]()
    torch.nn.init.normal_(head_of(critic).values.weight)
    shift = head_of(critic)(states.student_hidden, states.teacher_hidden)
    expected = torch.tanh(0.5 * (states.log_p - states.log_q) + shift)
    torch.testing.assert_close(critic(*states.critic_inputs), expected)


@pytest.mark.parametrize("name", CRITICS)
def test_no_gradient_reaches_teacher_or_student(name: str) -> None:
    critic = CRITICS[name]()
    inputs = tuple(tensor.requires_grad_() for tensor in make_states().critic_inputs)
    if critic.learns:
        torch.nn.init.normal_(head_of(critic).values.weight)
        critic(*inputs).square().sum().backward()
        assert all(parameter.grad is not None for parameter in critic.parameters())
    else:
        assert not critic(*inputs).requires_grad
    assert all(tensor.grad is None for tensor in inputs)


@pytest.mark.parametrize("name", LEARNING)
def test_the_head_can_leave_its_start(name: str) -> None:
    """The last layer moves first; the features follow as soon as it isn't zero."""
    critic, states = CRITICS[name](), make_states()
    moved = {key: value.clone() for key, value in critic.named_parameters()}
    # With its own states' log-ratio the residual critic starts where nothing pulls: at the optimum.
    elsewhere = make_states(seed=1)
    regularised_gap(elsewhere, critic(*states.critic_inputs)).backward()
    gradients = {key: parameter.grad for key, parameter in critic.named_parameters()}
    assert gradients["head.values.weight"] is not None
    assert gradients["head.values.weight"].abs().max() > 1e-3
    assert gradients["head.features.weight"] is not None
    assert gradients["head.features.weight"].abs().max() == 0.0
    ascend(critic, states, steps=3)
    assert all((parameter - moved[key]).abs().max() > 0 for key, parameter in critic.named_parameters())


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_ascent_raises_the_regularised_gap(steps: int) -> None:
    states = make_states()
    values = ascend(CRITICS["learned"](), states, steps)
    assert values[0] == 0.0
    assert all(after > before for before, after in pairwise(values))
    assert values[-1] <= optimum(states)


def test_a_learned_critic_approaches_the_closed_form() -> None:
    states, critic = make_states(), CRITICS["learned"]()
    values = ascend(critic, states, steps=400)
    assert values[-1] == pytest.approx(optimum(states), rel=1e-3)
    best = CRITICS["closed_form"]()(*states.critic_inputs)
    # Rare actions weigh little in the ridge, so compare where it looks: in mean square under μ.
    mu = ALPHA * states.log_p.exp() + (1 - ALPHA) * states.log_q.exp()
    distance = (mu * (critic(*states.critic_inputs) - best).square()).sum(-1).mean()
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


def test_without_a_ridge_a_learned_critic_runs_away() -> None:
    """The gap is linear in f: only the ridge gives the ascent somewhere to stop."""
    states, critic = make_states(), CRITICS["learned"]()
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-2, betas=(0.5, 0.99), weight_decay=0.0)
    for _ in range(400):
        gap = moment_gap(states.log_p.exp(), states.log_q.exp(), critic(*states.critic_inputs)).mean()
        optimizer.zero_grad()
        (-gap).backward()
        optimizer.step()
    assert critic(*states.critic_inputs).abs().max().item() > 20.0


@pytest.mark.parametrize("name", LEARNING)
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


@pytest.mark.parametrize("name", LEARNING)
def test_bfloat16_features_are_read_in_the_heads_own_precision(name: str) -> None:
    student_hidden, teacher_hidden, ratio = make_states().critic_inputs
    value = CRITICS[name]()(student_hidden.bfloat16(), teacher_hidden.bfloat16(), ratio)
    assert value.dtype == torch.float32


# --- The pair: one critic for each source of states ---


def make_tokens(off_policy: Tensor) -> tuple[Tokens, Tensor]:
    """The N states as packed tokens, and their log p/q."""
    states = make_states()
    actions, weight = torch.zeros(N, dtype=torch.long), torch.full((N,), 1.0 / N)
    tokens = Tokens(states.student_hidden, states.teacher_hidden, actions, weight, off_policy)
    return tokens, log_ratio(states.log_p, states.log_q)


def make_critic(name: str, seed: int) -> QCritic:
    critic = CRITICS[name]()
    torch.manual_seed(seed)
    for parameter in critic.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return critic


MIXED = torch.arange(N) % 3 == 0
ALL_OFF, ALL_ON = torch.ones(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)
sources = pytest.mark.parametrize("off_policy", [MIXED, ALL_OFF, ALL_ON], ids=["mixed", "off", "on"])


@sources
@pytest.mark.parametrize("name", LEARNING)
def test_each_state_is_judged_by_the_critic_of_its_source(name: str, off_policy: Tensor) -> None:
    off, on = make_critic(name, seed=1), make_critic(name, seed=2)
    tokens, ratio = make_tokens(off_policy)
    values = CriticPair(off, on)(tokens, ratio)
    expected = torch.where(
        off_policy.unsqueeze(-1),
        off(*make_states().critic_inputs),
        on(*make_states().critic_inputs),
    )
    torch.testing.assert_close(values, expected)


@sources
def test_each_critic_learns_from_its_own_source_only(off_policy: Tensor) -> None:
    off, on = make_critic("learned", seed=1), make_critic("learned", seed=2)
    tokens, ratio = make_tokens(off_policy)
    CriticPair(off, on)(tokens, ratio).sum().backward()
    for critic, count in ((off, int(off_policy.sum())), (on, int((~off_policy).sum()))):
        slope = head_of(critic).values.bias.grad
        assert (0.0 if slope is None else slope[0].item()) == count


@pytest.mark.parametrize("name", CRITICS)
def test_one_critic_may_serve_both_sources(name: str) -> None:
    critic = make_critic(name, seed=1)
    pair = CriticPair(critic, critic)
    tokens, ratio = make_tokens(MIXED)
    torch.testing.assert_close(pair(tokens, ratio), critic(*make_states().critic_inputs))
    assert len(list(pair.parameters())) == len(list(critic.parameters()))
    assert pair.learns == critic.learns


def test_no_states_give_no_values_from_a_pair() -> None:
    pair = CriticPair(make_critic("residual", seed=1), make_critic("residual", seed=2))
    tokens, ratio = make_tokens(MIXED)
    nothing = Tokens(*(field[:0] for field in tokens if field is not None))
    assert pair(nothing, ratio[:0]).shape == (0, V)
