"""From a configuration to a module: every knob of the objective, the critics and the rollouts arrives."""

from functools import partial
from typing import Any

import pytest
import torch

from amd_lightning.backends import HfBackend
from amd_lightning.build import build
from amd_lightning.build_method import make_fine_tuning, make_module
from amd_lightning.config.choices import CriticKind, Distance
from amd_lightning.critics import (
    ClosedFormCritic,
    KernelCritic,
    LearnedCritic,
    LearningCritic,
    QCritic,
    ResidualCritic,
    SignCritic,
    TanhCritic,
)
from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.divergence import DivergenceModule
from amd_lightning.modules.horizon import Horizon, SequenceKernel
from amd_lightning.modules.optim import Optimisation
from amd_lightning.objectives.support import full_support, sampled_support, top_k_support
from amd_lightning.replay import ReplayBuffer, Reuse
from amd_lightning.rollouts import BackendSampler
from amd_lightning.training.fitting import StageSpec
from tests.helpers import VOCABULARY, t5
from tests.test_rules import demo

STUDENT, TEACHER = t5(1), t5(2, d_model=24)


def made(**values: Any) -> DistillationModule:
    return make_module(demo(**values), STUDENT, TEACHER)


def adversarial(**values: Any) -> AdversarialModule:
    some = made(**values)
    assert isinstance(some, AdversarialModule)
    return some


def critic_of(**values: Any) -> QCritic:
    pair = adversarial(**values).critics
    assert type(pair.off_policy) is type(pair.on_policy)
    return pair.off_policy


KINDS: dict[str, type[QCritic]] = {
    "residual": ResidualCritic,
    "learned": LearnedCritic,
    "linear": LearnedCritic,
    "tanh": TanhCritic,
    "closed_form": ClosedFormCritic,
    "sign": SignCritic,
    "kernel": KernelCritic,
}


@pytest.mark.parametrize("kind", list(CriticKind))
def test_every_kind_of_critic(kind: str) -> None:
    assert type(critic_of(critic__kind=kind)) is KINDS[kind]


def test_the_ridge_arrives_at_critics_and_module() -> None:
    for kind in ("residual", "closed_form"):
        some = critic_of(critic__kind=kind, critic__alpha=0.3, critic__ridge=1.5)
        assert isinstance(some, ResidualCritic | ClosedFormCritic)
        assert (some.alpha, some.ridge) == (0.3, 1.5)
    assert adversarial(critic__ridge=1.5).ridge == 1.5
    assert adversarial(critic__steps=7).critic_steps_per_update == 7


def test_the_kernels_embeddings_are_the_teachers() -> None:
    some = critic_of(critic__kind="kernel")
    assert isinstance(some, KernelCritic)
    assert torch.equal(some.embeddings, KernelCritic(TEACHER.token_embeddings).embeddings)


@pytest.mark.parametrize("features, width", [("both", 16 + 24), ("student", 16), ("teacher", 24)])
@pytest.mark.parametrize("kind", ["residual", "tanh", "learned"])
def test_a_head_sees_the_features_asked_for(kind: str, features: str, width: int) -> None:
    some = critic_of(critic__kind=kind, critic__features=features, critic__rank=5)
    assert isinstance(some, LearningCritic)
    head = some.head
    assert (head.features.in_features, head.features.out_features) == (width, 5)
    assert head.values.out_features == VOCABULARY
    assert (head.sees_student, head.sees_teacher) == (features != "teacher", features != "student")


def test_a_pair_is_two_critics_unless_it_is_shared() -> None:
    for shared in (False, True):
        pair = adversarial(critic__shared=shared).critics
        assert (pair.off_policy is pair.on_policy) is shared


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"critic__top_k": 3}, partial(full_support, alpha=0.25)),  # 32 actions are under 16 times 3
        ({"critic__top_k": 2}, partial(top_k_support, alpha=0.25, k=2)),
        ({"critic__actions": "full", "critic__top_k": 1}, partial(full_support, alpha=0.25)),
        ({"critic__actions": "top_k", "critic__top_k": 5}, partial(top_k_support, alpha=0.25, k=5)),
        (
            {"critic__actions": "sampled", "critic__samples": 4, "critic__alpha": 0.2},
            partial(sampled_support, alpha=0.2, samples=4),
        ),
    ],
)
def test_the_actions_that_critic_steps_look_at(values: dict[str, Any], expected: Any) -> None:
    found: Any = adversarial(**values).support
    assert (found.func, found.keywords) == (expected.func, expected.keywords)


PARAMETERS: dict[str, dict[str, float]] = {
    "js": {"js_mixture": 0.1},
    "skew_kl": {"skew": 0.2},
    "skew_rkl": {"skew": 0.2},
    "akl": {"akl_head": 0.7},
    "alpha_beta": {"ab_alpha": 0.4, "ab_beta": 0.3},
}


@pytest.mark.parametrize("distance", [name for name in Distance if name != "moment_matching"])
def test_every_distance_with_its_parameters(distance: str) -> None:
    changed = {f"objective__{name}": value for own in PARAMETERS.values() for name, value in own.items()}
    some = made(objective__distance=distance, **changed)
    assert isinstance(some, DivergenceModule)
    assert some.distance == distance
    if distance == "nll":
        assert some.divergence is None
    else:
        assert some.divergence is not None
        assert some.divergence.keywords == PARAMETERS.get(distance, {})


def test_only_likelihood_of_what_is_stored_needs_no_teacher() -> None:
    without = {
        (distance, beta)
        for distance in Distance
        for beta in (0.0, 0.5, 1.0)
        if made(objective__distance=distance, objective__beta=beta).teacher is None
    }
    assert without == {(Distance.nll, 1.0)}


def test_a_horizon_and_a_kernel_are_left_out_where_they_would_do_nothing() -> None:
    horizon = {"objective__horizon__gamma": 0.9, "objective__horizon__returns": "sampled"}
    rest = {
        "objective__horizon__baseline": "leave_one_out",
        "objective__horizon__centre": False,
        "objective__horizon__length_normalise": True,
    }
    kernel = {"objective__kernel__weight": 0.3, "objective__kernel__ngram": 3}
    some = made(**horizon, **rest, **kernel)
    assert some.horizon == Horizon(0.9, "sampled", "leave_one_out", centre=False, length_normalise=True)
    assert some.kernel == SequenceKernel(0.3, 3)
    assert made(**horizon).horizon == Horizon(0.9, "sampled", "time_step", centre=True)
    for none in (made(), made(**rest), made(**horizon, **kernel, objective__beta=1.0)):
        assert none.horizon is None
        assert none.kernel is None


def test_the_students_responses() -> None:
    values = {"rollout__temperature": 0.7, "rollout__responses": 3, "data__max_response_tokens": 9}
    assert made(**values).states.sampler == BackendSampler(9, 0.7, 3)
    mixed = made(**values, rollout__teacher_share=0.2)
    assert mixed.states.sampler == BackendSampler(9, 0.7, 3, HfBackend(TEACHER, 0.2))
    assert mixed.teacher_share == 0.2


@pytest.mark.parametrize("distance", ["moment_matching", "kl"])
def test_what_every_method_is_told(distance: str) -> None:
    some = made(
        objective__distance=distance,
        objective__teacher_temperature=2.0,
        objective__student_temperature=0.5,
        objective__beta=0.2,
        objective__normalise="sequence",
        trainer__chunk_tokens=11,
        trainer__log_every=4,
    )
    assert some.temperatures == (2.0, 0.5)
    assert (some.states.beta, some.states.normalise) == (0.2, "sequence")
    assert (some.chunk_tokens, some.log_every) == (11, 4)
    assert made(objective__distance=distance).chunk_tokens is None


def test_fine_tuning_is_likelihood_at_temperature_1_whatever_the_distillation() -> None:
    stage = StageSpec(3, 4, 2, Optimisation(learning_rate=1e-3))
    config = demo(objective__student_temperature=3.0, objective__horizon__gamma=1.0, rollout__responses=4)
    some = make_fine_tuning(config, STUDENT, stage)
    assert isinstance(some, DivergenceModule)
    assert (some.distance, some.states.beta, some.temperatures) == ("nll", 1.0, (1.0, 1.0))
    assert some.teacher is None
    assert some.horizon is None


def test_a_run_draws_samples_of_the_teacher_where_a_kernel_compares_with_them() -> None:
    kernel = {"objective__kernel__weight": 0.3, "objective__kernel__teacher_samples": 5}
    asked_for = [
        build(demo(**values), {}).kernel_samples
        for values in (kernel, {**kernel, "objective__beta": 1.0}, {})
    ]
    assert asked_for == [5, 0, 0]


def test_student_written_responses_that_serve_again() -> None:
    buffer = made(
        rollout__replay__capacity=40,
        rollout__replay__refresh=0.3,
        rollout__replay__decay=True,
        rollout__replay__shuffle=True,
    ).states.replay
    assert isinstance(buffer, ReplayBuffer)
    assert (buffer.capacity, buffer.refresh, buffer.decay, buffer.shuffle) == (40, 0.3, True, True)
    again = made(rollout__reuse=3).states.replay
    assert isinstance(again, Reuse)
    assert again.times == 3
    for none in (made(), made(rollout__reuse=3, objective__beta=1.0)):
        assert none.states.replay is None


def test_the_seed_of_a_buffer_is_the_runs() -> None:
    states = []
    for seed in (0, 0, 1):
        buffer = made(rollout__replay__capacity=40, seed=seed).states.replay
        assert isinstance(buffer, ReplayBuffer)
        states.append(buffer.generator.get_state())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_beta_that_follows_the_validation_loss() -> None:
    some = made(
        objective__beta=0.2, objective__adaptive_beta__step=0.3, objective__adaptive_beta__tolerance=0.05
    )
    adaptive = some.states.adaptive
    assert adaptive is not None
    assert (adaptive.floor, adaptive.step, adaptive.tolerance) == (0.2, 0.3, 0.05)
    assert some.states.beta == 1.0
    assert made(objective__beta=0.2).states.adaptive is None
    assert made(objective__beta=1.0, objective__adaptive_beta__step=0.3).states.adaptive is None


def test_likelihood_beside_a_distance() -> None:
    assert made(objective__sft_weight=0.3).sft_weight == 0.3


def test_a_run_writes_the_teacher_down_where_off_policy_states_are_seen() -> None:
    values = {"rollout__teacher_top_k": 7, "objective__teacher_temperature": 2.0}
    on_policy = {"objective__beta": 0.0}
    later = {**on_policy, "objective__adaptive_beta__step": 0.1}
    found = [build(demo(**values, **more), {}).top_k for more in ({}, on_policy, later)]
    assert found == [(7, 2.0), None, (7, 2.0)]
    assert build(demo(), {}).top_k is None
    writes = {"rollout__off_policy": "teacher"}
    assert [build(demo(**writes, **more), {}).teacher_writes for more in ({}, on_policy, later)] == [
        True,
        False,
        True,
    ]
