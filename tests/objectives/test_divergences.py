"""The divergences against hand-sized numbers, their bounds, and the edges of floating point."""

from collections.abc import Callable
from math import inf, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amd_lightning.objectives.divergences import kl, nll, rkl, tv

Divergence = Callable[[Tensor, Tensor], Tensor]
Row = list[float]
DIVERGENCES: dict[str, Divergence] = {"kl": kl, "rkl": rkl, "tv": tv}

every = pytest.mark.parametrize("name", DIVERGENCES)
quick = settings(max_examples=60, deadline=None)


@st.composite
def logit_pairs(draw: st.DrawFn, size: float = 30.0) -> tuple[Tensor, Tensor]:
    """Teacher and student logits [N, V] of one shape, V from 2."""
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    logit = st.floats(-size, size, allow_nan=False)
    values = draw(st.lists(logit, min_size=2 * rows * columns, max_size=2 * rows * columns))
    both = torch.tensor(values, dtype=torch.float64).view(2, rows, columns)
    return both[0], both[1]


def log_probs(*probabilities: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """One state [1, V]."""
    return torch.tensor([probabilities], dtype=dtype).log()


TEACHER, STUDENT = log_probs(0.5, 0.5), log_probs(0.9, 0.1)


def test_values_by_hand() -> None:
    assert kl(TEACHER, STUDENT).item() == pytest.approx(0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1))
    assert rkl(TEACHER, STUDENT).item() == pytest.approx(0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5))
    assert tv(TEACHER, STUDENT).item() == pytest.approx(0.4)
    assert nll(STUDENT, torch.tensor([1])).item() == pytest.approx(-log(0.1))


def test_nll_picks_each_states_own_action() -> None:
    log_q = torch.cat([TEACHER, STUDENT, STUDENT])
    expected = torch.tensor([0.5, 0.9, 0.1], dtype=torch.float64).log().neg()
    torch.testing.assert_close(nll(log_q, torch.tensor([0, 0, 1])), expected)


@every
def test_no_states_give_no_values(name: str) -> None:
    assert DIVERGENCES[name](torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)
    assert nll(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).shape == (0,)


@quick
@given(logits=logit_pairs())
def test_zero_at_equality_positive_elsewhere_and_bounded(logits: tuple[Tensor, Tensor]) -> None:
    log_p, log_q = (z.log_softmax(-1) for z in logits)
    for divergence in DIVERGENCES.values():
        value = divergence(log_p, log_q)
        assert value.shape == log_p.shape[:1]
        assert value.ge(-1e-14).all()
        torch.testing.assert_close(divergence(log_p, log_p), torch.zeros_like(value), rtol=0, atol=1e-14)
    total = tv(log_p, log_q)
    assert total.le(1 + 1e-14).all()
    torch.testing.assert_close(tv(log_q, log_p), total)
    torch.testing.assert_close(kl(log_p, log_q), rkl(log_q, log_p))
    # Pinsker's inequality
    assert total.le((kl(log_p, log_q).clamp(min=0) / 2).sqrt() + 1e-7).all()


@quick
@given(logits=logit_pairs(), shift=st.floats(-20, 20))
def test_a_shift_of_the_logits_changes_nothing(logits: tuple[Tensor, Tensor], shift: float) -> None:
    teacher, student = logits
    for divergence in DIVERGENCES.values():
        before = divergence(teacher.log_softmax(-1), student.log_softmax(-1))
        after = divergence((teacher - shift).log_softmax(-1), (student + shift).log_softmax(-1))
        torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)


@every
def test_gradients_agree_with_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    teacher, student = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def from_logits(z_p: Tensor, z_q: Tensor) -> Tensor:
        return DIVERGENCES[name](z_p.log_softmax(-1), z_q.log_softmax(-1))

    assert torch.autograd.gradcheck(from_logits, (teacher, student))


def test_gradient_of_nll_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    actions = torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(lambda z: nll(z.log_softmax(-1), actions), (logits,))


def value_and_gradient(divergence: Divergence, teacher: Row, student: Row) -> tuple[float, Tensor]:
    """One state in float32: the value, and the gradient with respect to the student's logits."""
    z = torch.tensor([student], requires_grad=True)
    value = divergence(torch.tensor([teacher]).log_softmax(-1), z.log_softmax(-1))
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.item(), gradient


@every
def test_an_action_that_both_rule_out_does_not_count(name: str) -> None:
    with_it = value_and_gradient(DIVERGENCES[name], [0.3, 1.0, -inf], [0.2, -0.5, -inf])
    without = value_and_gradient(DIVERGENCES[name], [0.3, 1.0], [0.2, -0.5])
    assert with_it[0] == pytest.approx(without[0])
    torch.testing.assert_close(with_it[1][:, :2], without[1])
    assert with_it[1][0, 2].item() == 0.0


def test_where_one_side_rules_an_action_out_the_divergences_have_their_limits() -> None:
    only_teacher, only_student = [0.0, 0.0, -inf], [0.0, -inf, 0.0]
    assert value_and_gradient(kl, only_teacher, [0.0, 0.0, 0.0])[0] == pytest.approx(log(1.5))
    assert kl(*(torch.tensor([z]).log_softmax(-1) for z in (only_teacher, only_student))).item() == inf
    assert rkl(*(torch.tensor([z]).log_softmax(-1) for z in (only_teacher, only_student))).item() == inf
    value, gradient = value_and_gradient(rkl, [0.0, 0.0, 0.0], only_student)
    assert value == pytest.approx(log(1.5))
    assert gradient.isfinite().all()
    assert gradient[0, 1].item() == 0.0
    value, gradient = value_and_gradient(tv, only_teacher, only_student)
    assert value == pytest.approx(0.5)
    assert gradient.isfinite().all()


@every
@pytest.mark.parametrize(
    "teacher,student",
    [
        ([0.0, -200.0, 1.0], [0.0, 1.0, 1.0]),
        ([0.0, 1.0, 1.0], [0.0, -200.0, 1.0]),
        ([0.0, -1e4, 1.0], [0.0, -2e4, 1.0]),
        ([0.0, -300.0], [-300.0, 0.0]),
        # Of no consequence, whatever the other side says: the probability is 0 in float32.
        ([0.0, -200.0, 1.0], [0.0, -inf, 1.0]),
        ([0.0, -inf, 1.0], [0.0, -200.0, 1.0]),
    ],
)
def test_underflowing_probabilities_stay_finite(name: str, teacher: Row, student: Row) -> None:
    value, gradient = value_and_gradient(DIVERGENCES[name], teacher, student)
    assert 0.0 <= value < inf
    assert gradient.isfinite().all()


@every
def test_bfloat16_logits_that_the_caller_upcasts_lose_only_their_own_rounding(name: str) -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(64, 50), torch.randn(64, 50)
    exact = DIVERGENCES[name](teacher.log_softmax(-1), student.log_softmax(-1))
    rounded = (z.bfloat16().float().log_softmax(-1) for z in (teacher, student))
    torch.testing.assert_close(DIVERGENCES[name](*rounded), exact, rtol=0.02, atol=0.0)
