"""Distances that know their gradient: the same values and gradients as autograd's, at the edges too."""

from math import inf

import pytest
import torch
from torch import Tensor

from amd_lightning.objectives import fused
from amd_lightning.objectives.divergences import DIVERGENCES
from amd_lightning.objectives.moments import moment_gap

CASES = [
    ("kl", {}),
    ("rkl", {}),
    ("tv", {}),
    *(("js", {"js_mixture": share}) for share in (0.5, 0.1, 0.9, 1e-6, 0.0, 1.0)),
    *((name, {"skew": share}) for name in ("skew_kl", "skew_rkl") for share in (0.1, 0.5, 0.9, 1e-6, 0.0)),
]
every = pytest.mark.parametrize(
    "name,parameters", CASES, ids=[f"{name}{list(p.values())}" for name, p in CASES]
)


def differentiated(function: object, teacher: Tensor, student: Tensor, **parameters: float) -> list[Tensor]:
    """Values, and the gradient of their sum, differently weighed, in the student's logits."""
    logits = student.clone().requires_grad_()
    assert callable(function)
    value = function(teacher.log_softmax(-1), logits.log_softmax(-1), **parameters)
    weight = torch.arange(1.0, len(value) + 1.0, dtype=value.dtype)
    return [value.detach(), torch.autograd.grad((weight * value).sum(), logits)[0]]


def known(name: str) -> object:
    return lambda log_p, log_q, **parameters: fused.divergence(name, log_p, log_q, **parameters)


@every
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("size", [2, 50])
def test_value_and_gradient_are_autograds(
    name: str, parameters: dict[str, float], dtype: torch.dtype, tolerance: float, size: int
) -> None:
    torch.manual_seed(0)
    teacher, student = 3.0 * torch.randn(2, 7, size, dtype=dtype)
    student[0] = teacher[0]  # at equality, too
    expected = differentiated(DIVERGENCES[name], teacher, student, **parameters)
    found = differentiated(known(name), teacher, student, **parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@every
def test_the_edges_of_floating_point_are_autograds(name: str, parameters: dict[str, float]) -> None:
    rows = [
        ([0.3, 1.0, -inf], [0.2, -0.5, -inf]),
        ([0.0, 0.0, -inf], [0.0, 0.0, 0.0]),
        ([0.0, -200.0, 1.0], [0.0, 1.0, 1.0]),
        ([0.0, 1.0, 1.0], [0.0, -200.0, 1.0]),
        ([0.0, -1e4, 1.0], [0.0, -2e4, 1.0]),
        ([0.0, 0.0, -300.0], [-300.0, 0.0, 0.0]),
        ([0.0, -200.0, 1.0], [0.0, -inf, 1.0]),
        ([0.0, -inf, 1.0], [0.0, -200.0, 1.0]),
        ([0.0, 0.0, 0.0], [0.0, -inf, 0.0]),
    ]
    for teacher, student in rows:
        pair = torch.tensor([teacher]), torch.tensor([student])
        expected = differentiated(DIVERGENCES[name], pair[0], pair[1], **parameters)
        found = differentiated(known(name), pair[0], pair[1], **parameters)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
        if expected[0].isfinite().all():
            assert found[1].isfinite().all()
            torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-6)


@every
def test_what_is_no_number_is_not_hidden(name: str, parameters: dict[str, float]) -> None:
    good, bad = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.0, torch.nan]])
    for log_p, log_q in ((good, bad), (bad, good)):
        assert fused.divergence(name, log_p, log_q.clone().requires_grad_(), **parameters).isnan().all()


@every
def test_there_may_be_no_state(name: str, parameters: dict[str, float]) -> None:
    none = torch.zeros(0, 5)
    assert fused.divergence(name, none, none.clone().requires_grad_(), **parameters).shape == (0,)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_gap_is_the_moment_gap(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    teacher, student, critic = torch.randn(3, 7, 20, dtype=dtype)
    teacher[1, 3] = student[2, 4] = -inf

    def plain(log_p: Tensor, log_q: Tensor) -> Tensor:
        return moment_gap(log_p.exp(), log_q.exp(), critic)

    expected = differentiated(plain, teacher, student)
    found = differentiated(
        lambda log_p, log_q: fused.gap(log_p.exp(), log_q.exp(), log_q, critic), teacher, student
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_a_teacher_that_learns_gets_its_gradient() -> None:
    torch.manual_seed(0)
    log_p, log_q = torch.randn(2, 3, 5).log_softmax(-1).unbind()
    pair = log_p.requires_grad_(), log_q.requires_grad_()
    found = torch.autograd.grad(fused.divergence("js", *pair).sum(), pair)
    expected = torch.autograd.grad(DIVERGENCES["js"](*pair).sum(), pair)
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))


def test_a_second_walk_back_is_refused() -> None:
    torch.manual_seed(0)
    log_p, log_q = torch.randn(2, 3, 5).log_softmax(-1).unbind()
    value = fused.divergence("kl", log_p, log_q.requires_grad_()).sum()
    torch.autograd.grad(value, log_q, retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(value, log_q)


def test_parameters_without_a_meaning_are_refused() -> None:
    log_q = torch.tensor([[0.5, 0.5]]).log().requires_grad_()
    with pytest.raises(ValueError, match="choose"):
        fused.divergence("js", log_q.detach(), log_q, js_mixture=1.1)
