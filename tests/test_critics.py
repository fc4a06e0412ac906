"""The critics: what each kind is, by hand; what it sees; where its gradient may go."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from amd_lightning.critics import (
    ClosedFormCritic,
    CriticHead,
    KernelCritic,
    LearnedCritic,
    LearningCritic,
    QCritic,
    ResidualCritic,
    SignCritic,
    TanhCritic,
)
from amd_lightning.objectives.divergences import tv
from amd_lightning.objectives.moments import moment_gap
from amd_lightning.objectives.support import TAIL, Support, full_support, sampled_support, top_k_support
from amd_lightning.types import Tokens

N, V, D_STUDENT, D_TEACHER, RANK = 12, 5, 6, 8, 32
ALPHA, RIDGE = 0.5, 2.0
EMBEDDINGS = torch.randn(V, D_TEACHER, generator=torch.Generator().manual_seed(9)) + 1.0

CRITICS: dict[str, Callable[[], QCritic]] = {
    "closed_form": lambda: ClosedFormCritic(ALPHA, RIDGE),
    "sign": SignCritic,
    "kernel": lambda: KernelCritic(EMBEDDINGS),
    "residual": lambda: ResidualCritic(make_head(), ALPHA, RIDGE),
    "learned": lambda: LearnedCritic(make_head()),
    "tanh": lambda: TanhCritic(make_head()),
}
LEARNING = ["residual", "learned", "tanh"]
every = pytest.mark.parametrize("name", CRITICS)
learning = pytest.mark.parametrize("name", LEARNING)


class States(NamedTuple):
    """N states: what the two policies say and feel there."""

    tokens: Tokens
    log_p: Tensor
    log_q: Tensor

    @property
    def p(self) -> Tensor:
        return self.log_p.exp()

    @property
    def q(self) -> Tensor:
        return self.log_q.exp()

    def first(self, count: int) -> "States":
        return States(self.tokens.at(slice(count)), self.log_p[:count], self.log_q[:count])


def make_head() -> CriticHead:
    torch.manual_seed(0)
    return CriticHead(D_STUDENT, D_TEACHER, V, RANK)


def head_of(critic: QCritic) -> CriticHead:
    assert isinstance(critic, LearningCritic)
    return critic.head


def make_critic(name: str, seed: int = 1, dtype: torch.dtype = torch.float32) -> QCritic:
    """Away from its start."""
    critic = CRITICS[name]()
    torch.manual_seed(seed)
    for parameter in critic.parameters():
        nn.init.normal_(parameter, std=0.3)
    return critic.to(dtype)


def make_states(
    seed: int = 0, off_policy: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> States:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D_STUDENT + D_TEACHER, generator=generator).to(dtype)
    logits = 1.5 * torch.randn(2, N, V, generator=generator).to(dtype)
    log_p, log_q = logits.log_softmax(-1)
    tokens = Tokens(
        student_hidden=hidden[:, :D_STUDENT],
        teacher_hidden=hidden[:, D_STUDENT:],
        actions=torch.zeros(N, dtype=torch.long),
        weight=torch.full((N,), 1.0 / N, dtype=dtype),
        off_policy=torch.arange(N) % 3 == 0 if off_policy is None else off_policy,
    )
    return States(tokens, log_p, log_q)


# -- each kind by hand -----------------------------------------------------------------------------


def head_by_hand(head: CriticHead, states: States) -> Tensor:
    """u = W2 tanh(W1 [h_student; h_teacher] + b1) + b2."""
    inputs = torch.cat([states.tokens.student_hidden, states.tokens.teacher_hidden], -1)
    hidden = torch.tanh(inputs @ head.features.weight.T + head.features.bias)
    return hidden @ head.values.weight.T + head.values.bias


def ridge_optimum(p: Tensor, q: Tensor, alpha: float, ridge: float) -> Tensor:
    return (p - q) / (ridge * (alpha * p + (1 - alpha) * q))


def by_hand(name: str, critic: QCritic, states: States, alpha: float = ALPHA, ridge: float = RIDGE) -> Tensor:
    p, q = states.p, states.q
    if name == "closed_form":
        return ridge_optimum(p, q, alpha, ridge)
    if name == "sign":
        return torch.where(p > q, 1.0, -1.0).to(p.dtype)
    if name == "kernel":
        centred = EMBEDDINGS.to(p.dtype) - EMBEDDINGS.to(p.dtype).mean(0)
        w = centred / centred.norm(dim=-1).max()
        difference = torch.einsum("na,ad->nd", p - q, w)
        return torch.einsum("nd,ad->na", difference / difference.norm(dim=-1, keepdim=True), w)
    u = head_by_hand(head_of(critic), states)
    if (
        name == "residual"
    ):  # the log-ratio shifted by 2u is the teacher's probability tilted by its exponential
        return ridge_optimum(p * (2 * u).exp(), q, alpha, ridge)
    return {"learned": u, "tanh": u.tanh()}[name]


@every
def test_each_kind_is_its_formula(name: str) -> None:
    states = make_states(dtype=torch.float64)
    critic = make_critic(name, dtype=torch.float64)
    tolerance = 1e-6 if name == "kernel" else 1e-12  # whose embeddings are scaled in float32
    f = critic(states.tokens, states.log_p, states.log_q)
    torch.testing.assert_close(f, by_hand(name, critic, states), rtol=0, atol=tolerance)


@pytest.mark.parametrize("alpha, ridge", [(0.1, 1.0), (0.3, 2.0), (0.9, 0.5)])
@pytest.mark.parametrize("name", ["closed_form", "residual"])
def test_the_ridges_mixture_and_weight_are_those_given(name: str, alpha: float, ridge: float) -> None:
    states = make_states(dtype=torch.float64)
    critic = make_critic(name, dtype=torch.float64)
    critic.alpha, critic.ridge = alpha, ridge  # type: ignore[assignment]
    f = critic(states.tokens, states.log_p, states.log_q)
    torch.testing.assert_close(f, by_hand(name, critic, states, alpha, ridge), rtol=1e-10, atol=1e-12)


@every
def test_one_value_for_each_state_and_action(name: str) -> None:
    states = make_states()
    for some in (states, states.first(1), states.first(0)):
        assert CRITICS[name]()(*some).shape == some.log_p.shape


def test_only_critics_with_a_head_learn() -> None:
    assert [name for name, make in CRITICS.items() if make().learns] == LEARNING


def test_every_critic_starts_as_if_its_head_were_not_there() -> None:
    states = make_states()
    closed_form = CRITICS["closed_form"]()(*states)
    torch.testing.assert_close(closed_form, torch.tanh((states.log_p - states.log_q) / 2))
    torch.testing.assert_close(CRITICS["residual"]()(*states), closed_form, rtol=0, atol=0)
    for name in ("learned", "tanh"):
        assert CRITICS[name]()(*states).abs().max().item() == 0.0


def test_the_residual_shifts_half_the_log_ratio() -> None:
    states, critic = make_states(), make_critic("residual")
    shift = head_by_hand(head_of(critic), states)
    expected = torch.tanh(0.5 * (states.log_p - states.log_q) + shift)
    torch.testing.assert_close(critic(*states), expected)


@pytest.mark.parametrize("name", ["closed_form", "sign", "kernel", "residual", "tanh"])
def test_a_bounded_critic_is_bounded(name: str) -> None:
    """By 1, here, however far apart the policies and however large the head."""
    states, critic = make_states(), make_critic(name)
    if critic.learns:
        nn.init.normal_(head_of(critic).values.weight, std=100.0)
    apart = states._replace(
        log_p=(90 * states.log_p).log_softmax(-1), log_q=(90 * states.log_q).log_softmax(-1)
    )
    for some in (states, apart):
        assert critic(*some).abs().max().item() <= 1.0 + 1e-6


# -- the best of a class ---------------------------------------------------------------------------


def gap_of(states: States, f: Tensor) -> Tensor:
    return moment_gap(states.p, states.q, f)


def test_the_sign_critics_gap_is_twice_the_total_variation() -> None:
    states, critic = make_states(), SignCritic()
    gap = gap_of(states, critic(*states))
    torch.testing.assert_close(gap, 2.0 * tv(states.log_p, states.log_q))
    for _ in range(20):
        assert (gap_of(states, 2.0 * torch.rand(N, V) - 1.0) <= gap + 1e-6).all()
    same = states._replace(log_q=states.log_p)
    assert critic(*same).abs().max().item() == 0.0


def test_the_kernel_critics_gap_is_the_distance_of_the_mean_embeddings() -> None:
    states, critic = make_states(), KernelCritic(EMBEDDINGS)
    gap = gap_of(states, critic(*states))
    difference = (states.p - states.q) @ critic.embeddings
    torch.testing.assert_close(gap, difference.norm(dim=-1))
    torch.manual_seed(0)
    for _ in range(50):  # no other direction of the unit ball does better
        g = torch.randn(N, D_TEACHER)
        g = g / g.norm(dim=-1, keepdim=True)
        assert (gap_of(states, g @ critic.embeddings.T) <= gap + 1e-6).all()


def test_the_kernels_embeddings_are_centred_scaled_and_not_saved() -> None:
    critic = KernelCritic(EMBEDDINGS)
    torch.testing.assert_close(critic.embeddings.mean(0), torch.zeros(D_TEACHER), rtol=0, atol=1e-6)
    assert critic.embeddings.norm(dim=-1).max().item() == pytest.approx(1.0)
    assert dict(critic.state_dict()) == {}
    states = make_states()
    elsewhere = KernelCritic(7.0 * (EMBEDDINGS - 3.0))
    torch.testing.assert_close(elsewhere(*states), critic(*states), rtol=1e-4, atol=1e-5)


def test_the_kernel_critic_stays_bounded_beside_equality() -> None:
    critic, states = KernelCritic(EMBEDDINGS), make_states()
    assert critic(*states._replace(log_q=states.log_p)).abs().max().item() == 0.0
    # All but certain of the same action: the probabilities differ by less than a float's square can hold.
    logits = torch.tensor([[0.0, -70.0, -70.0, -70.0, -70.0]])
    nudged = logits + torch.tensor([[0.0, 1.0, -1.0, 0.5, 0.0]])
    f = critic(states.tokens.at(slice(1)), logits.log_softmax(-1), nudged.log_softmax(-1))
    assert 0.0 < f.abs().max().item() <= 1.0 + 1e-6


# -- some actions alone ----------------------------------------------------------------------------

SUPPORTS: dict[str, Callable[[Tensor, Tensor, float], Support]] = {
    "full": full_support,
    "top_k": partial(top_k_support, k=2),
    "sampled": partial(sampled_support, samples=7),
}


def gathered(name: str, critic: LearningCritic, states: States, support: Support) -> Tensor:
    """The whole f at the support's actions; at the tail, of which the head knows nothing, u = 0."""
    f = critic(*states)
    if support.actions is None:
        return f
    tail = critic.combine(torch.zeros_like(support.log_ratio), support.log_ratio)
    return torch.where(support.actions == TAIL, tail, f.gather(-1, support.actions.clamp(min=0)))


@pytest.mark.parametrize("actions", SUPPORTS)
@learning
def test_at_some_actions_a_critic_says_what_it_says_of_them_among_all(name: str, actions: str) -> None:
    states, critic = make_states(dtype=torch.float64), make_critic(name, dtype=torch.float64)
    assert isinstance(critic, LearningCritic)
    torch.manual_seed(0)
    support = SUPPORTS[actions](states.log_p, states.log_q, ALPHA)
    found, expected = critic.at(states.tokens, support), gathered(name, critic, states, support)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    direction = torch.randn(found.shape, dtype=found.dtype)
    parameters = list(critic.parameters())
    slopes = [torch.autograd.grad((direction * f).sum(), parameters) for f in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@learning
def test_the_tail_is_what_the_kind_makes_of_its_log_ratio_alone(name: str) -> None:
    states, critic = make_states(), make_critic(name)
    assert isinstance(critic, LearningCritic)
    support = top_k_support(states.log_p, states.log_q, ALPHA, 2)
    assert support.actions is not None
    assert (support.actions[:, -1] == TAIL).all()
    top = support.actions[:, :-1]
    rest = [1.0 - policy.gather(-1, top).sum(-1) for policy in (states.p, states.q)]
    expected = (rest[0] / rest[1]).log().div(2).tanh() if name == "residual" else torch.zeros(N)
    torch.testing.assert_close(critic.at(states.tokens, support)[:, -1], expected, rtol=1e-4, atol=1e-5)


# -- what a head sees ------------------------------------------------------------------------------


@pytest.mark.parametrize("sees", ["student", "teacher", "both"])
def test_a_head_sees_the_features_that_it_was_given_and_no_others(sees: str) -> None:
    sizes = (0 if sees == "teacher" else D_STUDENT, 0 if sees == "student" else D_TEACHER)
    torch.manual_seed(0)
    critic = LearnedCritic(CriticHead(*sizes, V, RANK))
    nn.init.normal_(critic.head.values.weight)
    assert critic.head.features.in_features == sum(sizes)
    states = make_states()
    support = top_k_support(states.log_p, states.log_q, ALPHA, 2)
    for field, size in zip(("student_hidden", "teacher_hidden"), sizes, strict=True):
        moved = states.tokens._replace(**{field: getattr(states.tokens, field) + 1.0})
        changes = {
            "forward": critic(moved, *states[1:]) - critic(*states),
            "at": critic.at(moved, support) - critic.at(states.tokens, support),
        }
        for change in changes.values():
            assert bool(change.abs().max() > 1e-3) is (size > 0)


@learning
def test_bfloat16_features_are_read_in_the_heads_own_precision(name: str) -> None:
    states, critic = make_states(), make_critic(name)
    assert isinstance(critic, LearningCritic)
    tokens = states.tokens._replace(
        student_hidden=states.tokens.student_hidden.bfloat16(),
        teacher_hidden=states.tokens.teacher_hidden.bfloat16(),
    )
    support = top_k_support(states.log_p, states.log_q, ALPHA, 2)
    assert critic(tokens, *states[1:]).dtype == critic.at(tokens, support).dtype == torch.float32


# -- where its gradient may go ---------------------------------------------------------------------


@every
def test_no_gradient_reaches_teacher_or_student(name: str) -> None:
    critic, states = make_critic(name), make_states()
    leaves = [tensor.clone().requires_grad_() for tensor in (*states.tokens[:2], states.log_p, states.log_q)]
    tokens = states.tokens._replace(student_hidden=leaves[0], teacher_hidden=leaves[1])
    values = [critic(tokens, leaves[2], leaves[3])]
    if isinstance(critic, LearningCritic):
        values.append(critic.at(tokens, top_k_support(leaves[2], leaves[3], ALPHA, 2)))
    for value in values:
        assert value.requires_grad is critic.learns
        if critic.learns:
            value.square().sum().backward()
            assert all(parameter.grad is not None for parameter in critic.parameters())
    assert all(tensor.grad is None for tensor in leaves)


@every
def test_a_value_of_the_state_alone_changes_neither_gap_nor_gradient(name: str) -> None:
    """The gauge: f(s, a) + b(s) is the same critic to the student."""
    states, critic = make_states(dtype=torch.float64), make_critic(name, dtype=torch.float64)
    logits = states.log_q.clone().requires_grad_()
    f = critic(*states).detach()
    found = []
    for shift in (0.0, torch.linspace(-3.0, 40.0, N, dtype=f.dtype).unsqueeze(-1)):
        gap = moment_gap(states.p, logits.softmax(-1), f + shift)
        found.append((gap.detach(), torch.autograd.grad(gap.sum(), logits)[0]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert found[0][1].abs().max() > 1e-2
