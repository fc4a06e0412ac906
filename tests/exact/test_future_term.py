"""The on-policy gradient with its future term, through the module's own path, on a world that is finite.

At β = 0, normalised by sequences, the student descends L_on(θ) = Σ_s d_θ(s) D_θ(s). Autograd through the
enumerated visits d_θ is the judge. For D = KL(student‖teacher) the sum is that divergence between whole
responses; for a moment gap the critic is frozen in both.
"""

from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor

from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.horizon import Horizon
from amd_lightning.types import Batch, PromptBatch, Rollout
from tests.modules.harness import accumulate

from . import formulas
from .test_objectives_exact import (
    BY_HAND,
    EXACT,
    LinearPolicy,
    Setting,
    critic_by_hand,
    enumerate_tokens,
    make_module,
    make_setting,
    package_gradient,
)
from .testbed import DTYPE, World, future, gap_at_states, response_probabilities, visitation

WORLDS = {"no_eos": World(3, 4), "eos": World(4, 3, eos=0)}
MOMENTS = [f"moment_matching {name}" for name in ("closed_form", "residual", "learned", "sign", "kernel")]
DISTANCES = ["kl", "rkl", "js"]

worlds = pytest.mark.parametrize("world", WORLDS)
objectives = pytest.mark.parametrize("objective", [*DISTANCES, *MOMENTS])


# -- the judge -------------------------------------------------------------------------------------


def per_state(objective: str, setting: Setting, q: Tensor) -> Tensor:
    """D(s) [S] as a function of the student [S, V]; a critic is frozen at the setting's own student."""
    distance, _, critic_name = objective.partition(" ")
    if distance == "moment_matching":
        return gap_at_states(setting.p, q, critic_by_hand(critic_name, setting, setting.heads[1]))
    return BY_HAND[distance](setting.p, q)[0]


def exact_gradient(objective: str, setting: Setting) -> tuple[float, Tensor]:
    """L_on and its gradient w.r.t. the student's weight, by autograd through visits and distances."""
    weight = setting.weight.clone().requires_grad_()
    q = (setting.features @ weight).softmax(-1)
    total = (visitation(setting.world, q) * per_state(objective, setting, q)).sum()
    return total.item(), torch.autograd.grad(total, weight)[0]


def whole_reverse_kl_gradient(setting: Setting) -> Tensor:
    """∇KL(student‖teacher) between whole responses, by autograd of its sum over all of them."""
    weight = setting.weight.clone().requires_grad_()
    student = response_probabilities(setting.world, (setting.features @ weight).softmax(-1))
    teacher = response_probabilities(setting.world, setting.p)
    return torch.autograd.grad((student * (student / teacher).log()).sum(), weight)[0]


def future_by_hand(objective: str, setting: Setting, discount: float) -> Tensor:
    """Σ_s d(s) Σ_a q(a) ∇log q(a) · E Σ_{t'>t} discount^(t'−t) D(s_t'), w.r.t. the student's weight."""
    q = setting.q
    later = future(setting.world, q, per_state(objective, setting, q), discount)
    visits = visitation(setting.world, q).unsqueeze(-1)
    slope = visits * q * (later - (q * later).sum(-1, keepdim=True))
    return setting.features.T @ slope


# -- every state and action as a token, its future cost known ------------------------------------------


@worlds
@objectives
def test_with_the_exact_future_costs_the_gradient_is_that_of_the_sum(world: str, objective: str) -> None:
    setting = make_setting(WORLDS[world], "low_rank", seed=9)
    later = future(setting.world, setting.q, per_state(objective, setting, setting.q))
    tokens = enumerate_tokens(setting, beta=0.0, token_mean=False, advantage=later)
    _, found = package_gradient(make_module(objective, setting), tokens)
    _, exact = exact_gradient(objective, setting)
    torch.testing.assert_close(found, exact, rtol=0, atol=EXACT)
    if objective == "rkl":
        torch.testing.assert_close(found, whole_reverse_kl_gradient(setting), rtol=0, atol=EXACT)
    _, myopic = package_gradient(make_module(objective, setting), tokens._replace(advantage=None))
    assert (myopic - exact).norm() > 0.05 * exact.norm()


@worlds
@pytest.mark.parametrize("objective", ["rkl", *MOMENTS])
def test_on_the_teachers_states_nothing_follows(world: str, objective: str) -> None:
    """β·∇L_off at fixed visits, beside (1 − β) times the whole of ∇L_on."""
    setting = make_setting(WORLDS[world], "low_rank", seed=9)
    later = future(setting.world, setting.q, per_state(objective, setting, setting.q))
    tokens = enumerate_tokens(setting, beta=0.3, token_mean=False, advantage=later)
    _, found = package_gradient(make_module(objective, setting), tokens)
    off_policy = enumerate_tokens(setting, beta=1.0, token_mean=False)
    _, of_teacher = package_gradient(make_module(objective, setting), off_policy)
    expected = 0.3 * of_teacher + 0.7 * exact_gradient(objective, setting)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


# -- every response of the student in one batch --------------------------------------------------------


class Walker(LinearPolicy):
    """A linear policy that finds its states in responses."""

    def __init__(self, world: World, features: Tensor, weight: Tensor) -> None:
        super().__init__(weight)
        self.features = features
        self.state = {prefix: state for state, prefix in enumerate(world.prefixes)}

    def hidden(self, rollout: Rollout) -> Tensor:
        states = []
        for ids, mask in zip(
            rollout.response_ids.flatten(0, 1), rollout.response_mask.flatten(0, 1), strict=True
        ):
            response = tuple(ids[mask].tolist())
            states += [self.state[response[:step]] for step in range(len(response))]
        return self.features[states]


class Everything(NamedTuple):
    """All R responses, spread over prompts, and the module that trains on them."""

    module: DistillationModule
    batch: Batch


def everything(objective: str, setting: Setting, prompts: int, beta: float, **settings: Any) -> Everything:
    """Every response once for the student and, above β = 0, once for the teacher; weighed by how likely."""
    world = setting.world
    length = max(map(len, world.responses))
    ids = torch.tensor([[*response, *[1] * (length - len(response))] for response in world.responses])
    mask = torch.tensor([[t < len(response) for t in range(length)] for response in world.responses])
    likely = (1 - beta) * response_probabilities(world, setting.q)
    written = torch.zeros(len(ids), dtype=torch.bool)
    if beta > 0:
        ids, mask = ids.repeat(2, 1), mask.repeat(2, 1)
        likely = torch.cat([likely, beta * response_probabilities(world, setting.p)])
        written = torch.cat([written, ~written])
    shape = (prompts, -1)
    prompt = PromptBatch(torch.ones(prompts, 1).long(), torch.ones(prompts, 1).long())
    mask = mask.unflatten(0, shape)
    rollout = Rollout(prompt, ids.unflatten(0, shape), mask, written.unflatten(0, shape))
    weight = likely.unflatten(0, shape).unsqueeze(-1) * mask
    module = make_module(objective, setting, beta=beta, **settings)
    policies = (
        Walker(world, setting.features, setting.weight.clone()),
        Walker(world, setting.log_p, torch.eye(world.vocabulary_size, dtype=DTYPE)),
    )
    module.student = cast(Any, policies[0])
    object.__setattr__(module, "teacher", policies[1].requires_grad_(False))
    return Everything(module, Batch(rollout, weight))


def gradient_of(some: Everything) -> Tensor:
    found = accumulate(some.module, some.batch).gradients["student.weight"]
    assert found is not None
    return found


def test_a_walker_finds_its_states() -> None:
    setting = make_setting(WORLDS["eos"], "low_rank", seed=9)
    some = everything("kl", setting, 1, 0.0)
    tokens = some.module._pack(some.batch)
    visits = torch.zeros(len(setting.world.prefixes), dtype=DTYPE)
    states = (tokens.student_hidden.unsqueeze(1) == setting.features).all(-1).nonzero()[:, 1]
    visits.index_add_(0, states, tokens.weight)
    torch.testing.assert_close(visits, visitation(setting.world, setting.q))


@worlds
@objectives
def test_an_update_on_all_responses_has_the_gradient_of_the_sum(world: str, objective: str) -> None:
    setting = make_setting(WORLDS[world], "low_rank", seed=9)
    some = everything(objective, setting, 1, 0.0, horizon=Horizon(1.0, baseline="none", centre=False))
    _, exact = exact_gradient(objective, setting)
    torch.testing.assert_close(gradient_of(some), exact, rtol=0, atol=EXACT)


@worlds
@pytest.mark.parametrize("objective", ["rkl", *MOMENTS])
def test_sampled_costs_have_the_same_expectation(world: str, objective: str) -> None:
    """What the written actions say of later states, in place of the distance there."""
    setting = make_setting(WORLDS[world], "low_rank", seed=9)
    horizon = Horizon(1.0, returns="sampled", baseline="none", centre=False)
    _, exact = exact_gradient(objective, setting)
    found = gradient_of(everything(objective, setting, 1, 0.0, horizon=horizon))
    torch.testing.assert_close(found, exact, rtol=0, atol=EXACT)


@worlds
@pytest.mark.parametrize("discount", [0.8, 0.3])
@pytest.mark.parametrize("objective", ["rkl", "moment_matching residual"])
def test_a_discount_counts_each_step_in_between(world: str, objective: str, discount: float) -> None:
    setting = make_setting(WORLDS[world], "low_rank", seed=9)
    horizon = Horizon(discount, baseline="none", centre=False)
    myopic = gradient_of(everything(objective, setting, 1, 0.0))
    found = gradient_of(everything(objective, setting, 1, 0.0, horizon=horizon))
    torch.testing.assert_close(
        found - myopic, future_by_hand(objective, setting, discount), rtol=0, atol=EXACT
    )


@pytest.mark.parametrize("objective", ["rkl", "moment_matching residual", "moment_matching sign"])
@pytest.mark.parametrize("micro_batch_size, chunk_tokens", [(4, 7), (1, None)])
def test_however_it_is_cut_and_beside_the_teachers_states(
    objective: str, micro_batch_size: int, chunk_tokens: int | None
) -> None:
    setting = make_setting(WORLDS["eos"], "low_rank", seed=9)
    settings: dict[str, Any] = {"micro_batch_size": micro_batch_size, "chunk_tokens": chunk_tokens}
    horizon = Horizon(1.0, baseline="none", centre=False)
    found = gradient_of(everything(objective, setting, 8, 0.3, horizon=horizon, **settings))
    off_policy = enumerate_tokens(setting, beta=1.0, token_mean=False)
    _, of_teacher = package_gradient(make_module(objective, setting), off_policy)
    expected = 0.3 * of_teacher + 0.7 * exact_gradient(objective, setting)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


@worlds
@pytest.mark.parametrize("critic", ["closed_form", "residual"])
def test_the_judge_is_the_one_by_hand(world: str, critic: str) -> None:
    """Autograd through visits, against moving each logit's effect on each response."""
    setting = make_setting(WORLDS[world], "low_rank", seed=9)
    f = critic_by_hand(critic, setting, setting.heads[1])
    by_hand = formulas.on_policy_gradient(setting.world, setting.p, setting.q, f)
    _, exact = exact_gradient(f"moment_matching {critic}", setting)
    torch.testing.assert_close(exact, setting.features.T @ by_hand, rtol=0, atol=EXACT)
