"""The divergences against hand-sized numbers, their bounds, and the edges of floating point."""

import inspect
from collections.abc import Callable
from functools import partial
from math import inf, log, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amd_lightning.objectives.divergences import (
    DIVERGENCES,
    PARAMETERS,
    akl,
    alpha_beta,
    jeffreys,
    js,
    kl,
    nll,
    rkl,
    skew_kl,
    skew_rkl,
    tv,
)

Divergence = Callable[[Tensor, Tensor], Tensor]
Row = list[float]

SETTINGS: dict[str, tuple[tuple[float, ...], ...]] = {
    "kl": ((),),
    "rkl": ((),),
    "js": ((0.5,), (0.1,), (0.9,), (1e-6,), (0.0,), (1.0,)),
    "tv": ((),),
    "skew_kl": ((0.1,), (0.9,), (1e-6,), (0.0,)),
    "skew_rkl": ((0.1,), (0.9,), (1e-6,), (0.0,)),
    "jeffreys": ((),),
    "akl": ((0.5,), (0.9,), (1.0,)),
    "alpha_beta": ((0.2, 0.7), (0.7, 0.2), (0.5, 0.5), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (1e-6, 0.8)),
}
CASES: dict[str, Divergence] = {
    f"{name}{values or ''}": partial(DIVERGENCES[name], **dict(zip(PARAMETERS[name], values, strict=True)))
    for name, all_values in SETTINGS.items()
    for values in all_values
}

every = pytest.mark.parametrize("name", CASES)
quick = settings(max_examples=60, deadline=None)


@st.composite
def logit_pairs(draw: st.DrawFn, size: float = 30.0) -> tuple[Tensor, Tensor]:
    """Teacher and student logits [N, V] of one shape, V from 2."""
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    logit = st.floats(-size, size, allow_nan=False)
    values = draw(st.lists(logit, min_size=2 * rows * columns, max_size=2 * rows * columns))
    both = torch.tensor(values, dtype=torch.float64).view(2, rows, columns)
    return both[0], both[1]


def random_pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Teacher and student log-probabilities."""
    logits = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    log_p, log_q = logits.log_softmax(-1).to(dtype)
    return log_p, log_q


def log_probs(*probabilities: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """One state [1, V]."""
    return torch.tensor([probabilities], dtype=dtype).log()


TEACHER, STUDENT = log_probs(0.5, 0.5), log_probs(0.9, 0.1)
FORWARD = 0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1)
REVERSE = 0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5)


# --- Values ---


def test_every_divergence_is_listed_with_its_parameters() -> None:
    assert SETTINGS.keys() == DIVERGENCES.keys() == PARAMETERS.keys()
    for name, function in DIVERGENCES.items():
        parameters = list(inspect.signature(function).parameters.values())[2:]
        assert function.__name__ == name
        assert tuple(parameter.name for parameter in parameters) == PARAMETERS[name]
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
        # What the table of the papers says is what leaving them out means.
        defaults = tuple(parameter.default for parameter in parameters)
        assert defaults == SETTINGS[name][0]


def test_values_by_hand() -> None:
    by_hand = {
        "kl": FORWARD,
        "rkl": REVERSE,
        "tv": 0.4,
        "jeffreys": FORWARD + REVERSE,
        # The middle is (.7, .3).
        "js": 0.5
        * (0.5 * log(0.5 / 0.7) + 0.5 * log(0.5 / 0.3) + 0.9 * log(0.9 / 0.7) + 0.1 * log(0.1 / 0.3)),
        # .1 (.5, .5) + .9 (.9, .1) and .1 (.9, .1) + .9 (.5, .5).
        "skew_kl": 0.5 * log(0.5 / 0.86) + 0.5 * log(0.5 / 0.14),
        "skew_rkl": 0.9 * log(0.9 / 0.54) + 0.1 * log(0.1 / 0.46),
        "alpha_beta": -(
            0.5**0.2 * (0.9**0.7 + 0.1**0.7) - (2 * 0.2 * 0.5**0.9 + 0.7 * (0.9**0.9 + 0.1**0.9)) / 0.9
        )
        / (0.2 * 0.7),
    }
    for name, value in by_hand.items():
        assert DIVERGENCES[name](TEACHER, STUDENT).item() == pytest.approx(value, rel=1e-13), name
    # A quarter of the mixture is the teacher: (.8, .2).
    plain = 0.25 * (0.5 * log(0.5 / 0.8) + 0.5 * log(0.5 / 0.2)) + 0.75 * (
        0.9 * log(0.9 / 0.8) + 0.1 * log(0.1 / 0.2)
    )
    assert js(TEACHER, STUDENT, js_mixture=0.25).item() == pytest.approx(plain / 0.75, rel=1e-13)
    # Half the squared distance.
    assert alpha_beta(TEACHER, STUDENT, ab_alpha=1.0, ab_beta=1.0).item() == pytest.approx(0.5 * 2 * 0.16)
    assert nll(STUDENT, torch.tensor([1])).item() == pytest.approx(-log(0.1))


@pytest.mark.parametrize(
    "head,teacher,head_error",
    [
        # |p − q| is .1, .2, 0, .1 in the teacher's order; the action that crosses the threshold is in.
        (0.3, [0.4, 0.3, 0.2, 0.1], 0.1),
        (0.4 - 1e-9, [0.4, 0.3, 0.2, 0.1], 0.1),
        (0.4 + 1e-9, [0.4, 0.3, 0.2, 0.1], 0.3),
        (0.8, [0.4, 0.3, 0.2, 0.1], 0.3),
        (0.95, [0.4, 0.3, 0.2, 0.1], 0.4),
        (1.0, [0.4, 0.3, 0.2, 0.1], 0.4),
        # With it, all that are as likely.
        (0.1, [0.25, 0.25, 0.25, 0.25], None),
    ],
)
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_adaptive_kl_weighs_by_the_teachers_head(
    head: float, teacher: Row, head_error: float | None, order: list[int]
) -> None:
    log_p, log_q = log_probs(*teacher)[:, order], log_probs(0.5, 0.1, 0.2, 0.2)[:, order]
    share = 1.0 if head_error is None else head_error / 0.4
    log_q.requires_grad_()
    expected = share * kl(log_p, log_q) + (1 - share) * rkl(log_p, log_q)
    value = akl(log_p, log_q, akl_head=head)
    torch.testing.assert_close(value, expected)
    # The share is a constant to the gradient.
    torch.testing.assert_close(*(torch.autograd.grad(of.sum(), log_q)[0] for of in (value, expected)))


def test_nll_picks_each_states_own_action() -> None:
    log_q = torch.cat([TEACHER, STUDENT, STUDENT])
    expected = torch.tensor([0.5, 0.9, 0.1], dtype=torch.float64).log().neg()
    torch.testing.assert_close(nll(log_q, torch.tensor([0, 0, 1])), expected)


@every
def test_states_do_not_mix_and_may_be_none(name: str) -> None:
    log_p, log_q = random_pair(3, 5)
    whole = CASES[name](log_p, log_q)
    one_by_one = [CASES[name](log_p[row : row + 1], log_q[row : row + 1]) for row in range(3)]
    torch.testing.assert_close(torch.cat(one_by_one), whole)
    assert CASES[name](log_p[:0], log_q[:0]).shape == (0,)
    assert nll(log_q[:0], torch.zeros(0, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize(
    "call",
    [
        partial(js, js_mixture=-0.1),
        partial(js, js_mixture=1.1),
        partial(skew_kl, skew=1.0),
        partial(skew_rkl, skew=-0.1),
        partial(akl, akl_head=0.0),
        partial(akl, akl_head=1.1),
        partial(alpha_beta, ab_alpha=0.0, ab_beta=0.0),
        partial(alpha_beta, ab_alpha=0.5, ab_beta=-0.5),
        partial(alpha_beta, ab_alpha=-0.2, ab_beta=1.0),
    ],
)
def test_parameters_without_a_meaning_are_refused_with_a_remedy(call: Divergence) -> None:
    with pytest.raises(ValueError, match="choose"):
        call(TEACHER, STUDENT)


# --- Properties ---


@quick
@given(logits=logit_pairs())
def test_zero_at_equality_positive_elsewhere_and_bounded(logits: tuple[Tensor, Tensor]) -> None:
    log_p, log_q = (z.log_softmax(-1) for z in logits)
    for name, divergence in CASES.items():
        value = divergence(log_p, log_q)
        assert value.shape == log_p.shape[:1]
        assert value.ge(-1e-14).all(), name
        torch.testing.assert_close(divergence(log_p, log_p), torch.zeros_like(value), rtol=0, atol=1e-14)
    total = tv(log_p, log_q)
    assert total.le(1 + 1e-14).all()
    torch.testing.assert_close(tv(log_q, log_p), total)
    torch.testing.assert_close(kl(log_p, log_q), rkl(log_q, log_p))
    # Pinsker's inequality
    assert total.le((kl(log_p, log_q).clamp(min=0) / 2).sqrt() + 1e-7).all()
    for s in (0.1, 0.5, 0.9):
        entropy = -s * log(s) - (1 - s) * log(1 - s)  # log 2 at ½, where 4 s (1 − s) is 1
        assert js(log_p, log_q, js_mixture=s).le(entropy / (4 * s * (1 - s)) + 1e-14).all()
        # Convex in its second argument, and the mixture holds a share of the first.
        assert skew_kl(log_p, log_q, skew=s).le(-log(s) + 1e-14).all()
        assert skew_kl(log_p, log_q, skew=s).le((1 - s) * kl(log_p, log_q) + 1e-12).all()


@quick
@given(logits=logit_pairs())
def test_identities(logits: tuple[Tensor, Tensor]) -> None:
    log_p, log_q = (z.log_softmax(-1) for z in logits)
    forward, reverse = kl(log_p, log_q), rkl(log_p, log_q)
    same = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-13)
    same(skew_kl(log_p, log_q, skew=0.0), forward)
    same(skew_rkl(log_p, log_q, skew=0.0), reverse)
    same(skew_rkl(log_p, log_q, skew=0.3), skew_kl(log_q, log_p, skew=0.3))
    same(alpha_beta(log_p, log_q, ab_alpha=1.0, ab_beta=0.0), forward)
    same(alpha_beta(log_p, log_q, ab_alpha=0.0, ab_beta=1.0), reverse)
    same(
        alpha_beta(log_p, log_q, ab_alpha=0.3, ab_beta=0.8),
        alpha_beta(log_q, log_p, ab_alpha=0.8, ab_beta=0.3),
    )
    same(jeffreys(log_p, log_q), forward + reverse)
    assert jeffreys(log_p, log_q).equal(jeffreys(log_q, log_p))
    same(js(log_p, log_q, js_mixture=0.2), js(log_q, log_p, js_mixture=0.8))
    # Both are made of KLs to the mixture.
    to_mixture = 0.2 * skew_kl(log_p, log_q, skew=0.2) + 0.8 * skew_rkl(log_p, log_q, skew=0.8)
    same(js(log_p, log_q, js_mixture=0.2), to_mixture / 0.64)
    for head in (0.2, 0.5, 0.9):
        adaptive = akl(log_p, log_q, akl_head=head)
        assert adaptive.ge(torch.minimum(forward, reverse) * (1 - 1e-12) - 1e-13).all()
        assert adaptive.le(torch.maximum(forward, reverse) * (1 + 1e-12) + 1e-13).all()
    # Nothing of the teacher's head is left out: plain KL.
    same(akl(log_p, log_q, akl_head=1.0), forward)


@quick
@given(logits=logit_pairs(), shift=st.floats(-20, 20), seed=st.integers(0, 99))
def test_neither_a_shift_of_the_logits_nor_the_order_of_the_vocabulary_matters(
    logits: tuple[Tensor, Tensor], shift: float, seed: int
) -> None:
    teacher, student = logits
    order = torch.randperm(teacher.shape[-1], generator=torch.Generator().manual_seed(seed))
    for divergence in CASES.values():
        before = divergence(teacher.log_softmax(-1), student.log_softmax(-1))
        after = divergence((teacher - shift).log_softmax(-1), (student + shift).log_softmax(-1))
        torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)
        after = divergence(teacher[:, order].log_softmax(-1), student[:, order].log_softmax(-1))
        torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["js(0.5,)", "js(1e-06,)", "jeffreys", "alpha_beta(0.2, 0.7)"])
def test_what_is_a_sum_of_squares_keeps_its_accuracy_beside_equality(name: str) -> None:
    """Near p the value is Σ p (log p/q)² up to a factor: 1e-10 here, a thousandth of float32's rounding."""
    log_p, noise = random_pair(4, 50)
    log_p, log_q = log_p.float(), (log_p + 1e-5 * noise).log_softmax(-1).float()
    exact = CASES[name](log_p.double(), log_q.double())
    assert exact.max().item() < 1e-9
    torch.testing.assert_close(CASES[name](log_p, log_q).double(), exact, rtol=0.05, atol=0.0)


# --- Gradients ---


def from_logits(divergence: Divergence) -> Divergence:
    return lambda z_p, z_q: divergence(z_p.log_softmax(-1), z_q.log_softmax(-1))


# Adaptive KL's share is no part of its derivative: test_adaptive_kl_weighs_by_the_teachers_head.
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("akl")])
def test_gradients_agree_with_finite_differences(name: str) -> None:
    teacher, student = random_pair(3, 5)
    pairs = [(teacher, student)]
    if name != "tv":  # which has a kink where an action, or every one, is alike
        pairs += [(teacher, teacher[:, [0, 2, 1, 4, 3]]), (teacher, teacher)]
    for pair in pairs:
        inputs = tuple(z.clone().requires_grad_() for z in pair)
        assert torch.autograd.gradcheck(from_logits(CASES[name]), inputs)


@every
def test_the_gradient_vanishes_at_equality(name: str) -> None:
    logits = random_pair(3, 5)[0]
    pair = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    for gradient in torch.autograd.grad(from_logits(CASES[name])(*pair).sum(), pair):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


def test_gradient_of_nll_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    actions = torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(lambda z: nll(z.log_softmax(-1), actions), (logits,))


# --- The edges of floating point ---


def value_and_gradient(divergence: Divergence, teacher: Row, student: Row) -> tuple[float, Tensor, Tensor]:
    """One state in float32: the value, and its gradients, by the student's and by the teacher's logits."""
    z_q, z_p = torch.tensor([student], requires_grad=True), torch.tensor([teacher], requires_grad=True)
    value = divergence(z_p.log_softmax(-1), z_q.log_softmax(-1))
    of_student, of_teacher = torch.autograd.grad(value.sum(), (z_q, z_p))
    return value.item(), of_student, of_teacher


@every
def test_an_action_that_both_rule_out_does_not_count(name: str) -> None:
    with_it = value_and_gradient(CASES[name], [0.3, 1.0, -inf], [0.2, -0.5, -inf])
    without = value_and_gradient(CASES[name], [0.3, 1.0], [0.2, -0.5])
    assert with_it[0] == pytest.approx(without[0])
    for longer, shorter in zip(with_it[1:], without[1:], strict=True):
        torch.testing.assert_close(longer[:, :2], shorter)
        assert longer[0, 2].item() == 0.0


LIMITS: dict[str, tuple[float | None, ...]] = {
    # (½, ½, 0) against (½, 0, ½); thirds against (½, 0, ½); (½, ½, 0) against thirds; None: finite
    "kl": (inf, inf, log(1.5)),
    "rkl": (inf, log(1.5), inf),
    "js(0.5,)": (log(2) / 2, None, None),
    "js(0.1,)": ((0.05 * log(10) - 0.45 * log(0.9)) / 0.36, None, None),
    "js(0.0,)": (inf, inf, log(1.5) / 4),
    "js(1.0,)": (inf, log(1.5) / 4, inf),
    "tv": (0.5, 1 / 3, 1 / 3),
    "skew_kl(0.1,)": (0.5 * log(10), 2 / 3 * log((1 / 3) / (0.1 / 3 + 0.45)) + log(10) / 3, None),
    "skew_kl(0.0,)": (inf, inf, log(1.5)),
    "skew_rkl(0.1,)": (0.5 * log(10), None, 2 / 3 * log((1 / 3) / (0.1 / 3 + 0.45)) + log(10) / 3),
    "skew_rkl(0.0,)": (inf, log(1.5), inf),
    "jeffreys": (inf, inf, inf),
    "akl(0.5,)": (inf, inf, inf),
    "akl(1.0,)": (inf, inf, log(1.5)),
    "alpha_beta(0.5, 0.5)": (2.0, 4 - 8 * sqrt(1 / 6), 4 - 8 * sqrt(1 / 6)),
    "alpha_beta(1.0, 0.0)": (inf, inf, log(1.5)),
    "alpha_beta(0.0, 1.0)": (inf, log(1.5), inf),
}


@pytest.mark.parametrize("name", LIMITS)
def test_where_one_side_rules_an_action_out_the_divergences_have_their_limits(name: str) -> None:
    only_teacher, only_student, all_three = [0.0, 0.0, -inf], [0.0, -inf, 0.0], [0.0, 0.0, 0.0]
    pairs = ((only_teacher, only_student), (all_three, only_student), (only_teacher, all_three))
    for (teacher, student), limit in zip(pairs, LIMITS[name], strict=True):
        value, *gradients = value_and_gradient(CASES[name], teacher, student)
        assert value > 0.0
        if limit is not None:
            assert value == pytest.approx(limit, rel=1e-5)
        if limit != inf:
            assert all(gradient.isfinite().all() for gradient in gradients)
            assert gradients[0][0, torch.tensor(student) == -inf].abs().sum().item() == 0.0


def test_adaptive_kl_leaves_out_a_kl_of_no_share() -> None:
    """The whole error is the tail's and the tail's KL(p‖q) infinite: 0 · ∞ is 0, in the gradients too."""
    teacher, student = log_probs(0.5, 0.25, 0.25, 0.0), log_probs(0.5, 0.5, 0.0, 0.0)
    pair = teacher.requires_grad_(), student.requires_grad_()
    value = akl(*pair)
    assert value.item() == pytest.approx(0.5 * log(2))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value.sum(), pair))


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
    value, *gradients = value_and_gradient(CASES[name], teacher, student)
    assert 0.0 <= value < inf
    assert all(gradient.isfinite().all() for gradient in gradients)


@every
def test_a_logit_that_is_no_number_is_not_hidden(name: str) -> None:
    good, bad = log_probs(0.5, 0.5), torch.tensor([[0.0, torch.nan]], dtype=torch.float64)
    assert CASES[name](good, bad).isnan().all()
    assert CASES[name](bad, good).isnan().all()


@every
def test_bfloat16_logits_that_the_caller_upcasts_lose_only_their_own_rounding(name: str) -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(64, 50), torch.randn(64, 50)
    exact = CASES[name](teacher.log_softmax(-1), student.log_softmax(-1))
    rounded = (z.bfloat16().float().log_softmax(-1) for z in (teacher, student))
    torch.testing.assert_close(CASES[name](*rounded), exact, rtol=0.02, atol=0.0)
