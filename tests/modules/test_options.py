"""Temperatures, samples from a mixture with the teacher, and the gauge that no student sees."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amd_lightning.backends import HfBackend
from amd_lightning.critics import CriticPair, LearningCritic
from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.horizon import Horizon
from amd_lightning.objectives.divergences import DIVERGENCES
from amd_lightning.policies import Policy
from amd_lightning.rollouts import BackendSampler, token_weights
from amd_lightning.types import Batch
from tests.helpers import rollout, t5
from tests.modules.harness import accumulate, critic, module, train

STATES = rollout([3, 5, 2], [[4, 2], [1, 5], [3, 3]], [[True, False]] * 3)
MASK = STATES.response_mask
ON_POLICY = (~STATES.off_policy.unsqueeze(-1)).expand_as(MASK)[MASK]
BATCH = Batch(STATES, token_weights(STATES, 0.3, "token"))
CRITICS = ["residual", "learned", "tanh", "closed_form", "sign", "kernel"]


def gradients(some: DistillationModule, batch: Batch = BATCH) -> dict[str, Tensor]:
    found = accumulate(some, batch).gradients
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], who: str = "") -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if name.startswith(who):
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-6, msg=name)


# -- temperatures ----------------------------------------------------------------------------------


def divided(policy: Policy, temperature: float) -> Policy:
    """The same policy with its logits divided."""
    with torch.no_grad():
        policy.model.get_output_embeddings().weight /= temperature
    return policy


@pytest.mark.parametrize("method, beta", [*((name, 0.3) for name in (*DIVERGENCES, *CRITICS)), ("nll", 1.0)])
def test_a_distance_at_temperatures_is_that_of_divided_logits(method: str, beta: float) -> None:
    """With no factor before it. What a division does to the head's own weights is undone by hand."""
    cold, hot = 0.5, 4.0
    batch = Batch(STATES, token_weights(STATES, beta, "token"))
    teacher = t5(2, d_model=24)
    some = module(method, beta, teacher=teacher, temperatures=(cold, hot))
    other = module(method, beta, student=divided(t5(1), hot), teacher=divided(t5(2, d_model=24), cold))
    found, expected = gradients(some, batch), gradients(other, batch)
    expected["student.model.lm_head.weight"] = expected["student.model.lm_head.weight"] / hot
    assert_same(found, expected)
    plain = gradients(module(method, beta), batch)
    assert max(float((found[name] - plain[name]).abs().max()) for name in plain) > 1e-3


def test_the_teachers_temperature_leaves_labels_that_need_no_teacher() -> None:
    batch = Batch(STATES, token_weights(STATES, 1.0, "token"))
    assert_same(
        gradients(module("nll", 1.0, temperatures=(5.0, 1.0)), batch), gradients(module("nll", 1.0), batch)
    )


# -- samples from a mixture with the teacher -------------------------------------------------------


def importance_by_hand(some: DistillationModule, share: float) -> Tensor:
    """q / (share·p + (1 − share)·q) of the tokens written, [N]."""
    assert some.teacher is not None
    actions = STATES.response_ids[MASK].unsqueeze(-1)
    with torch.no_grad():
        p, q = (
            policy.log_probs(policy.hidden(STATES)).exp().gather(-1, actions).squeeze(-1)
            for policy in (some.teacher, some.student)
        )
    return q / (share * p + (1 - share) * q)


@pytest.mark.parametrize("method", ["kl", "rkl", "closed_form", "residual"])
def test_tokens_of_a_mixture_are_weighed_by_their_importance(method: str) -> None:
    """Those that the student wrote; the critics' weights are left as they are."""
    share = 0.4
    some = module(method, 0.3, teacher_share=share)
    weight = importance_by_hand(some, share)
    assert weight.max() <= 1 / (1 - share)
    assert weight[ON_POLICY].std() > 0.1
    reweighed = BATCH.weight.clone()
    reweighed[MASK] *= torch.where(ON_POLICY, weight, 1.0)
    by_hand = gradients(module(method, 0.3), Batch(STATES, reweighed))
    found = gradients(some)
    assert_same(found, by_hand, who="student")
    assert_same(found, gradients(module(method, 0.3)), who="critics")


def test_what_follows_is_weighed_alike() -> None:
    settings: dict[str, Any] = {"horizon": Horizon(0.8, baseline="none", centre=False)}
    some = module("kl", 0.3, teacher_share=0.4, **settings)
    reweighed = BATCH.weight.clone()
    reweighed[MASK] *= torch.where(ON_POLICY, importance_by_hand(some, 0.4), 1.0)
    expected = gradients(module("kl", 0.3, **settings), Batch(STATES, reweighed))
    assert_same(gradients(some), expected)


@pytest.mark.parametrize("method", ["kl", "residual"])
def test_without_a_share_of_the_teacher_nothing_changes(method: str, tmp_path: Path) -> None:
    teacher = t5(2, d_model=24)
    plain = train(module(method, 0.3), tmp_path).parameters
    none = module(
        method,
        0.3,
        teacher=teacher,
        teacher_share=0.0,
        sampler=BackendSampler(6, backend=HfBackend(teacher, 0.0)),
    )
    found = train(none, tmp_path).parameters
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_a_run_on_samples_of_the_mixture(tmp_path: Path) -> None:
    teacher = t5(2, d_model=24)
    sampler = BackendSampler(6, responses=2, backend=HfBackend(teacher, 0.3))
    some = module("residual", 0.3, teacher=teacher, teacher_share=0.3, sampler=sampler)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trained = train(some, tmp_path)
    assert all(bool(value.isfinite().all()) for value in trained.parameters.values())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(value.requires_grad for value in teacher.parameters())


def test_several_responses_are_seen_as_tokens_of_the_student(tmp_path: Path) -> None:
    one, three = (
        train(module("kl", 0.5, updates=1, sampler=BackendSampler(6, responses=count)), tmp_path)
        for count in (1, 3)
    )
    assert one.module.tokens_seen["off"] == three.module.tokens_seen["off"]
    assert three.module.tokens_seen["on"] > 1.5 * one.module.tokens_seen["on"]
    for trained in (one, three):
        length = trained.logged[0]["train/response_length"]
        responses = {1: 4, 3: 12}[1 if trained is one else 3]
        assert trained.module.tokens_seen["on"] == pytest.approx(length * responses, rel=1e-4)


# -- critics -------------------------------------------------------------------------------------------


def test_a_value_of_the_state_alone_moves_no_student() -> None:
    """b(s) = ⟨v, hidden(s)⟩ + c added to f(s, a): the gauge, through the module's own path."""
    found = []
    for shift in (0.0, 5.0):
        some = module("learned", 0.3)
        assert isinstance(some, AdversarialModule)
        with torch.no_grad():
            for source in (some.critics.off_policy, some.critics.on_policy):
                assert isinstance(source, LearningCritic)
                values = source.head.values
                values.weight.add_(shift * torch.linspace(-1.0, 1.0, values.in_features))
                values.bias.add_(shift)
        result = accumulate(some, BATCH)
        found.append((result.metrics["train/loss"], result.gradients))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
    for name, gradient in found[0][1].items():
        if name.startswith("student."):
            torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-3, atol=2e-6, msg=name)


def test_one_shared_critic_is_trained_on_both_sources() -> None:
    """With the same weights it judges as the pair does; what it learns is the sum of the pair's gradients."""
    student, teacher = t5(1), t5(2, d_model=24)
    some = module("residual", 0.3, student=student, teacher=teacher)
    assert isinstance(some, AdversarialModule)
    torch.manual_seed(5)
    one, copy = critic("residual", student, teacher), critic("residual", student, teacher)
    copy.load_state_dict(one.state_dict())
    some.critics = CriticPair(one, copy)
    pair = gradients(some)
    some.zero_grad()
    some.critics = CriticPair(one, one)
    shared = gradients(some)
    assert_same({**shared}, {name: pair[name] for name in shared}, who="student")
    of_critics = [name for name in shared if name.startswith("critics.")]
    assert len(of_critics) == len(list(one.parameters()))
    for name in of_critics:
        both = pair[name] + pair[name.replace("off_policy", "on_policy")]
        torch.testing.assert_close(shared[name], both, rtol=1e-4, atol=1e-7)
