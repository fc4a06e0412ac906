"""Distances on the teacher's likeliest actions and the rest: exact where nothing is lumped, else lower."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amd_lightning.objectives.coarse import coarsened, likeliest
from amd_lightning.objectives.divergences import DIVERGENCES, tv
from amd_lightning.objectives.moments import closed_form_critic, log_ratio, moment_gap, sign_critic

V = 7
F_DIVERGENCES = ["kl", "rkl", "js", "tv", "skew_kl", "skew_rkl", "jeffreys"]


def policies(seed: int, rows: int = 5, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(2, rows, V, generator=generator, dtype=torch.float64)
    log_p, log_q = logits.log_softmax(-1)
    return log_p, log_q


def gap(log_p: Tensor, log_q: Tensor, kind: str) -> Tensor:
    ratio = log_ratio(log_p, log_q)
    critic = sign_critic(ratio) if kind == "sign" else closed_form_critic(ratio, alpha=0.3, ridge=2.0)
    return moment_gap(log_p.exp(), log_q.exp(), critic)


def test_the_events_by_hand() -> None:
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    q = torch.tensor([[0.4, 0.3, 0.1, 0.2]])
    actions, log_p = likeliest(p.log(), 2)
    assert actions.tolist() == [[1, 3]]
    torch.testing.assert_close(log_p.exp(), torch.tensor([[0.5, 0.25, 0.25]]))
    torch.testing.assert_close(coarsened(q.log(), actions).exp(), torch.tensor([[0.3, 0.2, 0.5]]))


def test_a_rest_below_rounding_keeps_its_size() -> None:
    log_p = torch.tensor([[0.0, -60.0, -60.0]]).log_softmax(-1)
    actions, found = likeliest(log_p, 1)
    assert found[0, 1].item() == pytest.approx(-60.0 + math.log(2.0), abs=1e-3)
    assert bool(DIVERGENCES["rkl"](found, coarsened(torch.zeros(1, 3).log_softmax(-1), actions)).isfinite())


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("k", [V, V - 1, V + 9])
def test_nothing_is_lost_where_k_reaches_the_vocabulary(name: str, k: int) -> None:
    log_p, log_q = policies(1)
    gradients = []
    for coarse in (False, True):
        logits = log_q.clone().requires_grad_()
        student = logits.log_softmax(-1)
        actions, teacher = likeliest(log_p, k)
        pair = (teacher, coarsened(student, actions)) if coarse else (log_p, student)
        value = DIVERGENCES[name](*pair)
        gradients.append((value.detach(), torch.autograd.grad(value.sum(), logits)[0]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 10_000), k=st.integers(1, V - 1), sharpness=st.floats(0.1, 8.0))
@settings(max_examples=60, deadline=None)
def test_a_coarse_value_is_a_lower_bound(seed: int, k: int, sharpness: float) -> None:
    log_p, log_q = policies(seed, sharpness=sharpness)
    actions, teacher = likeliest(log_p, k)
    student = coarsened(log_q, actions)
    torch.testing.assert_close(teacher.logsumexp(-1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(student.logsumexp(-1), torch.zeros(5, dtype=torch.float64))
    for name in F_DIVERGENCES:
        full, coarse = DIVERGENCES[name](log_p, log_q), DIVERGENCES[name](teacher, student)
        assert bool((coarse <= full + 1e-12).all()), name
        assert bool((coarse >= -1e-12).all()), name
    for kind in ("sign", "closed_form"):
        assert bool((gap(teacher, student, kind) <= gap(log_p, log_q, kind) + 1e-12).all()), kind
    lost = tv(log_p, log_q) - tv(teacher, student)
    assert bool((lost <= teacher[:, -1].exp() + 1e-12).all())


def test_the_bound_is_met_where_the_rest_has_the_teachers_proportions() -> None:
    log_p, log_q = policies(3)
    actions, teacher = likeliest(log_p, 3)
    inside = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, actions, True)
    mass = coarsened(log_q, actions)[:, -1:]
    alike = torch.where(inside, log_q, log_p - teacher[:, -1:] + mass)
    for name in F_DIVERGENCES:
        coarse = DIVERGENCES[name](teacher, coarsened(alike, actions))
        torch.testing.assert_close(coarse, DIVERGENCES[name](log_p, alike))
        assert bool((coarse > 0.0).all())
