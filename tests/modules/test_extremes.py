"""Every distance and critic at the edges of floating point, by the path that a training step takes.

Logits that rule an action out, that underflow, that are coarse (bfloat16), one state, two actions: through
the modules' own terms, chunk by chunk, with their gradients in closed form. The judge is the plain function
under autograd, in float64 and all at once.
"""

from collections.abc import Callable
from functools import partial
from math import inf, log
from typing import Any, NamedTuple, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
from amd_lightning.objectives.divergences import DIVERGENCES, PARAMETERS, nll
from amd_lightning.objectives.moments import moment_gap
from amd_lightning.objectives.support import Support, full_support, top_k_support
from amd_lightning.types import Tokens
from tests.objectives.test_divergences import SETTINGS

FEATURES = 3
EDGES = (-inf, -1e4, -200.0, -100.0, 0.0, 100.0, 200.0)
"""In float32 a probability is 0 from about exp(−104) on, and coarse from exp(−87)."""
BETA, RIDGE = 0.5, 2.0
CRITICS: dict[str, Callable[[CriticHead], QCritic]] = {
    "residual": lambda head: ResidualCritic(head, 0.3, RIDGE),
    "learned": LearnedCritic,
    "tanh": TanhCritic,
    "closed_form": lambda head: ClosedFormCritic(0.3, RIDGE),
    "sign": lambda head: SignCritic(),
    "kernel": lambda head: KernelCritic(torch.linspace(-1, 1, head.values.out_features).unsqueeze(-1)),
}
DISTANCES = [
    f"{name} {' '.join(map(str, values))}".strip() for name, choices in SETTINGS.items() for values in choices
]
OBJECTIVES = [*DISTANCES, "nll", *(f"moment_matching {name}" for name in CRITICS)]

STEPS = ("moment_matching sign", "moment_matching kernel")
"""Critics that jump where p = q: rounding decides on which side, and no two precisions need agree."""

few = settings(max_examples=12, deadline=None)
every = pytest.mark.parametrize("objective", OBJECTIVES)


class Drawn(NamedTuple):
    """Logits of teacher and student [N, V], and the actions written [N], all possible for the student."""

    teacher: Tensor
    student: Tensor
    actions: Tensor


@st.composite
def draws(draw: st.DrawFn) -> Drawn:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    logit = st.one_of(st.sampled_from(EDGES), st.floats(-30, 30, width=16))
    values = draw(st.lists(logit, min_size=2 * rows * columns, max_size=2 * rows * columns))
    teacher, student = torch.tensor(values).view(2, rows, columns)
    actions = torch.tensor(draw(st.lists(st.integers(0, columns - 1), min_size=rows, max_size=rows)))
    for logits in (teacher, student):  # each side may do something, and the student what was written
        logits[torch.arange(rows), actions] = logits[torch.arange(rows), actions].clamp(min=-30)
    return Drawn(teacher, student, actions)


class Table(nn.Module):
    """A policy that looks its logits up and adds a head's: the first feature is the row."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", logits, persistent=False)
        self.weight = nn.Parameter(torch.zeros(FEATURES, logits.shape[-1], dtype=logits.dtype))

    @property
    def vocabulary_size(self) -> int:
        return self.weight.shape[-1]

    @property
    def head_parameters(self) -> list[Tensor]:
        return [self.weight]

    def log_probs(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        logits = cast(Tensor, self.table)[hidden[:, 0].long()] + hidden[:, 1:] @ self.weight
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (logits / temperature).log_softmax(-1)


class Found(NamedTuple):
    """What a student's step is given."""

    loss: float
    gradients: list[Tensor]
    kept: dict[str, Tensor]
    module: DistillationModule
    tokens: Tokens


def make_module(objective: str, drawn: Drawn, chunk: int | None, top_k: int | None) -> DistillationModule:
    distance, *rest = objective.split()
    policies = cast(Any, (Table(drawn.student), Table(drawn.teacher)))
    shared: dict[str, Any] = dict.fromkeys(("sampler", "normalise", "optimisation"))
    shared |= dict.fromkeys(("updates", "micro_batch_size", "log_every"), 1)
    shared |= {"beta": BETA, "chunk_tokens": chunk}
    if distance != "moment_matching":
        parameters = dict(zip(PARAMETERS.get(distance, ()), map(float, rest), strict=True))
        return DivergenceModule(*policies, distance=distance, parameters=parameters, **shared)
    torch.manual_seed(0)
    head = CriticHead(FEATURES + 1, FEATURES + 1, drawn.teacher.shape[-1], rank=4)
    nn.init.normal_(head.values.weight)
    critic = CRITICS[rest[0]](head)
    support = partial(top_k_support, k=top_k) if top_k else full_support
    return AdversarialModule(
        *policies,
        critics=CriticPair(critic, critic),
        support=partial(support, alpha=0.3),
        ridge=RIDGE,
        critic_optimisation=Optimisation(learning_rate=1e-3),
        critic_steps_per_update=1,
        **shared,
    )


def step(objective: str, drawn: Drawn, chunk: int | None = None, top_k: int | None = None) -> Found:
    """The loss of every state, weighed differently, with its gradient in features and head."""
    rows = len(drawn.actions)
    features = torch.linspace(-1.0, 1.0, rows * FEATURES).view(rows, FEATURES)
    hidden = torch.cat([torch.arange(rows).unsqueeze(-1), features], dim=-1).to(drawn.student.dtype)
    hidden = hidden.requires_grad_()
    module = make_module(objective, drawn, chunk, top_k)
    weight = torch.linspace(0.5, 1.0, rows, dtype=torch.promote_types(hidden.dtype, torch.float32))
    tokens = Tokens(hidden, hidden.detach(), drawn.actions, weight, torch.ones(rows, dtype=torch.bool))
    loss, kept = module._loss(tokens, diagnose=True)
    gradients = torch.autograd.grad(loss, [hidden, *module.student.head_parameters])
    return Found(loss.item(), list(gradients), kept, module, tokens.constant())


def plainly(objective: str, drawn: Drawn) -> tuple[float, list[Tensor]]:
    """The same in float64, of the plain functions, by autograd, at once."""
    distance, *rest = objective.split()
    drawn = drawn._replace(teacher=drawn.teacher.double(), student=drawn.student.double())
    found = step("kl", drawn)  # whose tokens and policies are the setting
    hidden = found.tokens.student_hidden.clone().requires_grad_()
    student = cast(Table, found.module.student)
    log_p, log_q = drawn.teacher.log_softmax(-1), student.log_probs(hidden)
    if distance == "nll":
        values = nll(log_q, drawn.actions)
    elif distance == "moment_matching":
        critics = cast(AdversarialModule, make_module(objective, drawn, None, None)).double().critics
        values = moment_gap(log_p.exp(), log_q.exp(), critics(found.tokens, log_p, log_q).detach())
    else:
        parameters = dict(zip(PARAMETERS[distance], map(float, rest), strict=True))
        values = DIVERGENCES[distance](log_p, log_q, **parameters)
    loss = (found.tokens.weight * values).sum()
    return loss.item(), list(torch.autograd.grad(loss, [hidden, student.weight]))


@every
@few
@given(drawn=draws())
def test_no_edge_makes_a_loss_that_is_no_number_or_a_gradient_without_end(
    objective: str, drawn: Drawn
) -> None:
    found = step(objective, drawn)
    assert found.loss == found.loss, "no number"
    assert not any(value.isnan().any() for name, value in found.kept.items() if name.startswith("log."))
    if abs(found.loss) < inf:
        assert all(gradient.isfinite().all() for gradient in found.gradients)
    expected, gradients = plainly(objective, drawn)
    if abs(expected) < inf and objective not in STEPS:
        assert found.loss == pytest.approx(expected, rel=1e-3, abs=1e-4)
        rounding = 1e-3 + 1e-6 * abs(
            expected
        )  # in float32, of terms that cancel: a small exponent's are huge
        for one, other in zip(found.gradients, gradients, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=rounding)


@every
@few
@given(drawn=draws(), chunk=st.integers(1, 3))
def test_chunks_meet_the_edges_as_the_whole_does(objective: str, drawn: Drawn, chunk: int) -> None:
    found, whole = step(objective, drawn, chunk), step(objective, drawn)
    assert found.loss == pytest.approx(whole.loss, rel=1e-5, abs=1e-6)
    if abs(whole.loss) < inf:
        for one, other in zip(found.gradients, whole.gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 + 1e-6 * abs(whole.loss))
    for name, value in whole.kept.items():
        torch.testing.assert_close(found.kept[name], value, msg=name)


@every
@few
@given(drawn=draws())
def test_coarse_logits_are_compared_in_float32(objective: str, drawn: Drawn) -> None:
    """bfloat16 in, and the loss of the same logits in float32 out: only the gradients are rounded again."""
    coarse = drawn._replace(teacher=drawn.teacher.bfloat16(), student=drawn.student.bfloat16())
    again = coarse._replace(teacher=coarse.teacher.float(), student=coarse.student.float())
    found, expected = step(objective, coarse), step(objective, again)
    for name in expected.kept:
        if name.startswith("log.") and expected.kept[name].is_floating_point():
            assert found.kept[name].dtype == torch.float32, name
    assert [gradient.dtype for gradient in found.gradients] == [torch.bfloat16] * 2
    if abs(expected.loss) < inf:
        assert all(gradient.isfinite().all() for gradient in found.gradients)
        if not objective.startswith("moment_matching"):  # whose heads see rounded features
            assert found.loss == pytest.approx(expected.loss, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("critic", ["residual", "learned", "tanh"])
@pytest.mark.parametrize("top_k", [None, 1, 2])
@few
@given(drawn=draws())
def test_a_critics_step_stays_finite_on_every_support(critic: str, top_k: int | None, drawn: Drawn) -> None:
    found = step(f"moment_matching {critic}", drawn, top_k=top_k)
    module = cast(AdversarialModule, found.module)
    support = Support(*(found.kept.get(name) for name in Support._fields))  # type: ignore[arg-type]
    loss = module.critic_loss(found.tokens, support)
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, list(module.critics.parameters()), allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@every
def test_one_state_of_two_actions_by_hand(objective: str) -> None:
    """(¾, ¼) against itself is 0 (nll: the action's own), and against (¼, ¾) what the plain function says."""
    same = torch.tensor([[log(3.0), 0.0]])
    at_equality = step(objective, Drawn(same, same, torch.tensor([0])))
    assert at_equality.loss == pytest.approx(0.5 * log(4 / 3) if objective == "nll" else 0.0, abs=1e-7)
    apart = Drawn(same, same.flip(-1), torch.tensor([0]))
    assert step(objective, apart).loss == pytest.approx(plainly(objective, apart)[0], rel=1e-5)
