"""Each objective's expected value and gradient on a world where both are finite sums.

The batch is the enumeration itself: every state twice, once as written by the teacher and once by the
student, with every action, weighted by how often that happens (`enumerate_tokens`). What the package's
modules make of it, through their per-token terms and autograd, must be the sums of formulas.py:

    J = β Σ_s d_teacher(s) D(s) / E len_teacher + (1 − β) Σ_s d_student(s) D(s) / E len_student

No gradient flows through the visits: that is the future term, which γ = 0 leaves out (with it:
test_future_term.py).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn

from amd_lightning.critics import (
    ClosedFormCritic,
    CriticHead,
    CriticPair,
    KernelCritic,
    LearnedCritic,
    QCritic,
    ResidualCritic,
    SignCritic,
    TanhCritic,
)
from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.divergence import DivergenceModule
from amd_lightning.modules.optim import Optimisation
from amd_lightning.objectives.divergences import DIVERGENCES, nll
from amd_lightning.objectives.policy_gradient import mixture_importance
from amd_lightning.objectives.support import Support, full_support
from amd_lightning.types import Tokens

from . import formulas
from .testbed import DTYPE, World, low_rank_features, random_logits

EXACT = 1e-12
ALPHA, RIDGE, SHARE = 0.3, 2.0, 0.4
BETAS = [0.0, 0.3, 1.0]
WORLDS = {"no_eos": World(4, 4), "eos": World(5, 4, eos=0)}
STUDENTS = ["tabular", "low_rank"]
CRITICS: dict[str, Callable[[CriticHead], QCritic]] = {
    "closed_form": lambda head: ClosedFormCritic(ALPHA, RIDGE),
    "residual": lambda head: ResidualCritic(head, ALPHA, RIDGE),
    "learned": LearnedCritic,
    "tanh": TanhCritic,
    "sign": lambda head: SignCritic(),
    "kernel": lambda head: KernelCritic(embeddings(head.values.out_features)).to(DTYPE),
}
BY_HAND: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "kl": formulas.kl,
    "rkl": formulas.rkl,
    "js": formulas.js,
    "tv": formulas.tv,
    "skew_kl": partial(formulas.skew_kl, skew=0.1),
    "skew_rkl": partial(formulas.skew_rkl, skew=0.1),
    "jeffreys": formulas.jeffreys,
    "akl": partial(formulas.akl, head=0.5),
    "alpha_beta": partial(formulas.alpha_beta, alpha=0.2, beta=0.7),
    "nll": formulas.nll,  # of the teacher's action, on either side's states
}
"""Each distance with the parameters that it has by default."""
OBJECTIVES = [*DIVERGENCES, "nll", *(f"moment_matching {name}" for name in CRITICS)]


class LinearPolicy(nn.Module):
    """What the modules need of a policy: features [N, D] -> log-probabilities [N, V]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    @property
    def vocabulary_size(self) -> int:
        return self.weight.shape[-1]

    @property
    def head_parameters(self) -> list[Tensor]:
        return [self.weight]

    def log_probs(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        return (hidden @ self.weight / temperature).log_softmax(-1)


class Setting(NamedTuple):
    """A world, two policies, and the heads of an off- and an on-policy critic, away from their start."""

    world: World
    log_p: Tensor
    """[S, V] of the teacher."""
    features: Tensor
    """[S, D] the student's logits are features @ weight: the identity gives one logit an action."""
    weight: Tensor
    """[D, V] what the student can change."""
    heads: tuple[CriticHead, CriticHead]

    @property
    def p(self) -> Tensor:
        return self.log_p.exp()

    @property
    def q(self) -> Tensor:
        return (self.features @ self.weight).softmax(-1)


def embeddings(vocabulary_size: int) -> Tensor:
    return torch.randn(vocabulary_size, 3, generator=torch.Generator().manual_seed(11))


def make_setting(world: World, student: str, seed: int) -> Setting:
    size = world.vocabulary_size
    generator = torch.Generator().manual_seed(seed + 1)
    if student == "tabular":
        features = torch.eye(len(world.prefixes), dtype=DTYPE)
    else:
        features = low_rank_features(world, seed, rank=2)
    weight = torch.randn(features.shape[-1], size, dtype=DTYPE, generator=generator)
    heads = tuple(CriticHead(features.shape[-1], size, size, rank=3).to(DTYPE) for _ in range(2))
    for head in heads:
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.7, generator=generator)
    return Setting(world, random_logits(world, seed).log_softmax(-1), features, weight, (heads[0], heads[1]))


# --- The package's side ---


def enumerate_tokens(
    setting: Setting,
    beta: float,
    token_mean: bool = True,
    on_writes: str = "q",
    advantage: Tensor | None = None,
) -> Tokens:
    """Every (source, state, action) as one packed token.

    Its weight is β's share × the probability that the source visits the state × that the action is taken
    there: by the teacher on its own states, and by `on_writes` on the student's ("p", "q", or "mixture" with
    `SHARE` of the teacher), where `advantage` [S, V] says what it is charged with.
    """
    off, on = formulas.state_weights(setting.world, setting.p, setting.q, beta, token_mean)
    mixture = SHARE * setting.p + (1 - SHARE) * setting.q
    taken = {"p": setting.p, "q": setting.q, "mixture": mixture}[on_writes]
    joint = torch.stack([off.unsqueeze(-1) * setting.p, on.unsqueeze(-1) * taken])
    source, state, action = joint.nonzero(as_tuple=True)  # a source whose share is 0 writes nothing
    return Tokens(
        student_hidden=setting.features[state],
        teacher_hidden=setting.log_p[state],
        actions=action,
        weight=joint[source, state, action],
        off_policy=source == 0,
        advantage=None if advantage is None else torch.where(source == 0, 0.0, advantage[state, action]),
    )


def make_module(objective: str, setting: Setting, **settings: Any) -> DistillationModule:
    """The module that a run with this objective trains, with linear policies in place of networks."""
    distance, _, critic_name = objective.partition(" ")
    student = LinearPolicy(setting.weight.clone())
    teacher = LinearPolicy(torch.eye(setting.world.vocabulary_size, dtype=DTYPE))
    unused: dict[str, Any] = dict.fromkeys(("sampler", "beta", "normalise"))
    unused["optimisation"] = Optimisation(learning_rate=1e-3)
    unused |= dict.fromkeys(("updates", "micro_batch_size", "log_every"), 1) | settings
    policies = cast(Any, (student, teacher))
    if distance == "moment_matching":
        off, on = (CRITICS[critic_name](head) for head in setting.heads)
        unused |= {"support": partial(full_support, alpha=ALPHA), "ridge": RIDGE}
        unused |= {"critic_optimisation": unused["optimisation"], "critic_steps_per_update": 1}
        return AdversarialModule(*policies, critics=CriticPair(off, on), **unused)
    return DivergenceModule(*policies, distance=distance, **unused)


def package_loss(module: DistillationModule, tokens: Tokens) -> Tensor:
    """Σ_N weight · distance: what the student's step descends."""
    return module._loss(tokens, diagnose=False)[0]


def package_gradient(module: DistillationModule, tokens: Tokens) -> tuple[float, Tensor]:
    """The loss and its gradient w.r.t. the student's weight [D, V]."""
    loss = package_loss(module, tokens)
    return loss.item(), torch.autograd.grad(loss, list(module.student.parameters()))[0]


# --- The expectation by hand ---


def critic_by_hand(name: str, setting: Setting, head: CriticHead) -> Tensor:
    """f [S, V], from the ridge optimum's quotient and the head's two layers written out."""
    if name == "closed_form":
        return formulas.ridge_critic(setting.p, setting.q, ALPHA, RIDGE)
    if name == "sign":
        return (setting.p - setting.q).sign()
    if name == "kernel":
        w = KernelCritic(embeddings(setting.world.vocabulary_size)).embeddings.to(DTYPE)
        mean_difference = (setting.p - setting.q) @ w
        return mean_difference @ w.T / mean_difference.norm(dim=-1, keepdim=True)
    layers = {key: parameter.detach() for key, parameter in head.named_parameters()}
    inputs = torch.cat([setting.features, setting.log_p], dim=-1)
    hidden = torch.tanh(inputs @ layers["features.weight"].T + layers["features.bias"])
    learned = hidden @ layers["values.weight"].T + layers["values.bias"]
    if name in ("learned", "tanh"):
        return learned if name == "learned" else torch.tanh(learned)
    # log p/q shifted by twice the head is the same as the teacher's probability tilted by its exponential.
    return formulas.ridge_critic(setting.p * (2 * learned).exp(), setting.q, ALPHA, RIDGE)


def by_hand(objective: str, setting: Setting, beta: float, token_mean: bool = True) -> tuple[float, Tensor]:
    """The objective and its gradient w.r.t. the student's logits [S, V]."""
    p, q = setting.p, setting.q
    weights = formulas.state_weights(setting.world, p, q, beta, token_mean)
    distance, _, critic_name = objective.partition(" ")
    if distance == "moment_matching":
        critics = [critic_by_hand(critic_name, setting, head) for head in setting.heads]
        sides = [formulas.frozen_critic(p, q, critic) for critic in critics]
    else:
        sides = 2 * [BY_HAND[distance](p, q)]
    value = sum(float((w * values).sum()) for w, (values, _) in zip(weights, sides, strict=True))
    slopes = [w.unsqueeze(-1) * gradient for w, (_, gradient) in zip(weights, sides, strict=True)]
    return value, slopes[0] + slopes[1]


# --- They agree ---


@pytest.fixture
def teacher_draws_the_tokens_action(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tokens], None]:
    """Has the teacher's one random draw run through the enumerated actions, so that `nll` is exact too."""

    def arrange(tokens: Tokens) -> None:
        def draw(probabilities: Tensor, count: int) -> Tensor:
            assert count == 1
            torch.testing.assert_close(probabilities, tokens.teacher_hidden.exp())
            return tokens.actions.unsqueeze(-1)

        monkeypatch.setattr(torch, "multinomial", draw)

    return arrange


@pytest.mark.parametrize("token_mean", [True, False], ids=["token_mean", "sequence_sum"])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("world", WORLDS)
def test_value_and_gradient(
    world: str,
    student: str,
    objective: str,
    beta: float,
    token_mean: bool,
    teacher_draws_the_tokens_action: Callable[[Tokens], None],
) -> None:
    setting = make_setting(WORLDS[world], student, seed=3)
    tokens = enumerate_tokens(setting, beta, token_mean, on_writes="p" if objective == "nll" else "q")
    teacher_draws_the_tokens_action(tokens)
    loss, gradient = package_gradient(make_module(objective, setting), tokens)
    expected, expected_gradient = by_hand(objective, setting, beta, token_mean)
    assert loss == pytest.approx(expected, abs=EXACT)
    torch.testing.assert_close(gradient, setting.features.T @ expected_gradient, rtol=0, atol=EXACT)


@pytest.mark.parametrize("world", WORLDS)
def test_the_weights_of_a_batch_split_it_by_beta(world: str) -> None:
    tokens = enumerate_tokens(make_setting(WORLDS[world], "low_rank", seed=4), beta=0.3)
    assert tokens.weight.sum().item() == pytest.approx(1.0)
    assert tokens.weight[tokens.off_policy].sum().item() == pytest.approx(0.3)


@pytest.mark.parametrize("world", WORLDS)
def test_nll_of_the_teachers_tokens_has_the_gradient_of_kl(world: str) -> None:
    """SeqKD is KD with sampled targets: the same in expectation, up to the teacher's own entropy."""
    setting = make_setting(WORLDS[world], "low_rank", seed=5)
    tokens = enumerate_tokens(setting, beta=1.0)
    loss_nll, gradient_nll = package_gradient(make_module("nll", setting), tokens)
    loss_kl, gradient_kl = package_gradient(make_module("kl", setting), tokens)
    torch.testing.assert_close(gradient_nll, gradient_kl, rtol=0, atol=EXACT)
    off, _ = formulas.state_weights(setting.world, setting.p, setting.q, beta=1.0)
    entropy = -float((off.unsqueeze(-1) * setting.p * setting.log_p).sum())
    assert loss_nll - loss_kl == pytest.approx(entropy, abs=EXACT)


@pytest.mark.parametrize("world", WORLDS)
def test_nll_of_the_students_own_tokens_would_teach_nothing(world: str) -> None:
    """Why a student's state is labelled by the teacher: E ∇log q(a) = 0 for the student's own actions."""
    setting = make_setting(WORLDS[world], "tabular", seed=6)
    tokens = enumerate_tokens(setting, beta=0.0)
    student = LinearPolicy(setting.weight.clone())
    loss = (tokens.weight * nll(student.log_probs(tokens.student_hidden), tokens.actions)).sum()
    (gradient,) = torch.autograd.grad(loss, student.weight)
    assert gradient.abs().max().item() < EXACT


# --- The game's two sides ---


@pytest.mark.parametrize("critic", CRITICS)
def test_the_student_descends_the_gap(critic: str) -> None:
    """With the critics frozen, a step along minus the gradient lowers what the student pays."""
    setting = make_setting(WORLDS["eos"], "low_rank", seed=7)
    module = make_module(f"moment_matching {critic}", setting)
    _, gradient = package_gradient(module, enumerate_tokens(setting, beta=0.5))
    weights = formulas.state_weights(setting.world, setting.p, setting.q, beta=0.5)
    critics = [critic_by_hand(critic, setting, head) for head in setting.heads]

    def value(step: float) -> float:
        q = (setting.features @ (setting.weight + step * gradient)).softmax(-1)
        sides = zip(weights, critics, strict=True)
        return sum(float((w * formulas.frozen_critic(setting.p, q, f)[0]).sum()) for w, f in sides)

    assert value(-1e-2) < value(0.0) < value(1e-2)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("critic", ["residual", "learned", "tanh"])
def test_each_critic_ascends_its_own_sides_gap_less_the_ridge(critic: str, beta: float) -> None:
    setting = make_setting(WORLDS["eos"], "low_rank", seed=8)
    p, q = setting.p, setting.q
    tokens = enumerate_tokens(setting, beta)
    module = make_module(f"moment_matching {critic}", setting)
    assert isinstance(module, AdversarialModule)
    _, kept = module._loss(tokens, diagnose=False)
    support = Support(None, *(kept[name] for name in Support._fields[1:]))
    loss = module.critic_loss(tokens, support)

    mu = ALPHA * p + (1 - ALPHA) * q
    expected = 0.0
    weights = formulas.state_weights(setting.world, p, q, beta)
    for weight, head in zip(weights, setting.heads, strict=True):
        f = critic_by_hand(critic, setting, head)
        ascended = (p - q) * f - RIDGE / 2 * mu * f.square()
        expected -= float((weight.unsqueeze(-1) * ascended).sum())
        if critic == "learned" and weight.sum() > 0:
            (gradient,) = torch.autograd.grad(loss, head.values.bias, retain_graph=True)
            slope = -(weight.unsqueeze(-1) * (p - q - RIDGE * mu * f)).sum(0)
            torch.testing.assert_close(gradient, slope, rtol=0, atol=EXACT)
    assert loss.item() == pytest.approx(expected, abs=EXACT)


# --- Tokens drawn from a mixture with the teacher ---


@pytest.mark.parametrize("objective", ["rkl", "js", "moment_matching residual"])
def test_importance_turns_tokens_of_a_mixture_into_the_students(objective: str) -> None:
    """At given states: what is weighed by it has the expectation of the student's own tokens."""
    setting = make_setting(WORLDS["eos"], "low_rank", seed=9)
    advantage = random_logits(setting.world, seed=10)
    mixed, own = (
        enumerate_tokens(setting, beta=0.3, on_writes=writes, advantage=advantage)
        for writes in ("mixture", "q")
    )
    found = package_gradient(make_module(objective, setting, teacher_share=SHARE), mixed)[1]
    expected = package_gradient(make_module(objective, setting), own)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)
    assert (package_gradient(make_module(objective, setting), mixed)[1] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("critic", ["residual", "learned", "tanh"])
def test_critics_need_no_importance(critic: str) -> None:
    """Its mean at a state is 1, and what a critic ascends there does not depend on the action: only noise."""
    setting = make_setting(WORLDS["eos"], "low_rank", seed=9)
    module = make_module(f"moment_matching {critic}", setting, teacher_share=SHARE)
    assert isinstance(module, AdversarialModule)
    tokens = enumerate_tokens(setting, beta=0.3, on_writes="mixture")
    support = Support(*(module._loss(tokens, diagnose=False)[1].get(name) for name in Support._fields))  # type: ignore[arg-type]
    log_p, log_q = (
        policy.gather(-1, tokens.actions.unsqueeze(-1)).squeeze(-1)
        for policy in (tokens.teacher_hidden, (tokens.student_hidden @ setting.weight).log_softmax(-1))
    )
    importance = mixture_importance(log_p, log_q, SHARE).where(~tokens.off_policy, 1.0)
    assert importance.std() > 0.1
    parameters = list(module.critics.parameters())
    found = []
    for weight in (tokens.weight, tokens.weight * importance):
        loss = module.critic_loss(tokens._replace(weight=weight), support)
        found.append([loss.detach(), *torch.autograd.grad(loss, parameters)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=EXACT)
