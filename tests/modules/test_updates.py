"""One batch is one update: what moves, by which gradient, how often, and however it is cut up."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.optim import Optimisation
from amd_lightning.objectives.support import Support, full_support
from amd_lightning.policies import Policy
from amd_lightning.rollouts import token_weights
from amd_lightning.types import Batch, PromptBatch, Rollout, Tokens
from tests.families import llama, own_logits
from tests.helpers import rollout, t5
from tests.modules.harness import CONSTANT, CRITIC, critic, module, train

BOTH = rollout([3, 5, 2], [[4, 2], [1, 5], [3, 3]], [[True, False]] * 3)


PAIRS: dict[str, Callable[[], dict[str, Any]]] = {
    "t5": dict,
    "llama": lambda: {"student": llama(1), "teacher": llama(2, hidden_size=24)},
}


def no_sampler(policy: Policy, prompt: PromptBatch) -> Rollout:
    raise AssertionError("nothing may be sampled")


# -- micro-batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, beta", [("kl", 0.0), ("rkl", 0.5), ("nll", 1.0), ("residual", 0.5), ("learned", 0.3)]
)
@pytest.mark.parametrize("normalise", ["token", "sequence"])
def test_micro_batches_change_no_parameter(method: str, beta: float, normalise: str, tmp_path: Path) -> None:
    """In float64, so that AdamW's division by small gradients does not magnify rounding."""
    found = []
    for size in (4, 2, 1):
        some = module(
            method,
            beta,
            student=t5(1).double(),
            teacher=t5(2, d_model=24).double(),
            micro_batch_size=size,
            updates=2,
            normalise=normalise,
        ).double()
        found.append(train(some, tmp_path).parameters)
    whole, *cut = found
    assert max(float((whole[name] - before).abs().max()) for name, before in start(method).items()) > 1e-3
    for parts in cut:
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-8)


def start(method: str) -> dict[str, Tensor]:
    return {name: value.detach().double() for name, value in module(method, 0.5).named_parameters()}


# -- gradients -------------------------------------------------------------------------------------


def own_log_probs(policy: Policy, some: Rollout) -> Tensor:
    """The whole distribution at every response token, by the model's own forward: [N, V]."""
    return own_logits(policy, some).log_softmax(-1)


def formula(method: str, some: DistillationModule, weight: Tensor) -> Tensor:
    """The loss that the student descends, written out."""
    assert some.teacher is not None
    log_q = own_log_probs(some.student, BOTH)
    log_p = own_log_probs(some.teacher, BOTH).detach()
    p, q = log_p.exp(), log_q.exp()
    actions = BOTH.response_ids[BOTH.response_mask]
    if method == "kl":
        at_states = (p * (log_p - log_q)).sum(-1)
    elif method == "rkl":
        at_states = (q * (log_q - log_p)).sum(-1)
    elif method == "nll":
        at_states = -log_q[range(len(actions)), actions]
    else:
        assert isinstance(some, AdversarialModule)
        at_states = ((p - q) * frozen_critic(method, some, log_p, log_q)).sum(-1)
    return (weight[BOTH.response_mask] * at_states).sum()


def frozen_critic(method: str, some: AdversarialModule, log_p: Tensor, log_q: Tensor) -> Tensor:
    """f at every state from each source's own critic, by hand."""
    assert some.teacher is not None
    off = BOTH.off_policy.unsqueeze(-1).expand_as(BOTH.response_mask)[BOTH.response_mask]
    features = torch.cat([some.student.hidden(BOTH), some.teacher.hidden(BOTH)], -1).detach()
    values = []
    for source in (some.critics.off_policy, some.critics.on_policy):
        head: Any = source.head
        u = head.values(torch.tanh(head.features(features)))
        values.append(torch.tanh(0.5 * (log_p - log_q).detach() + u) if method == "residual" else u)
    chosen: Tensor = torch.where(off.unsqueeze(-1), values[0], values[1])
    return chosen.detach()


def tokens_of(some: DistillationModule, beta: float) -> tuple[Tokens, Tensor]:
    weight = token_weights(BOTH, beta, "token")
    return some._pack(Batch(BOTH, weight)), weight


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", ["kl", "rkl", "residual", "learned"])
def test_the_students_gradient_is_that_of_the_formula(method: str, pair: str) -> None:
    some = module(method, 0.3, **PAIRS[pair]())
    tokens, weight = tokens_of(some, 0.3)
    loss, _ = some._loss(tokens, diagnose=False)
    loss.backward()
    expected = formula(method, some, weight)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    parameters = dict(some.student.named_parameters())
    gradients = torch.autograd.grad(expected, list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6, msg=name)
    assert all(value.grad is None for value in some.parameters() if value not in set(parameters.values()))
    assert some.teacher is not None
    assert all(value.grad is None and not value.requires_grad for value in some.teacher.parameters())


def test_nll_on_stored_states_is_the_likelihood_of_what_was_written() -> None:
    some = module("nll", 1.0)
    weight = token_weights(BOTH, 1.0, "token")
    loss, _ = some._loss(some._pack(Batch(BOTH, weight)), diagnose=False)
    assert loss.item() == pytest.approx(formula("nll", some, weight).item(), rel=1e-5)


@pytest.mark.parametrize("method", ["residual", "learned"])
def test_the_critics_descend_minus_the_regularised_gap(method: str) -> None:
    some = module(method, 0.3)
    assert isinstance(some, AdversarialModule)
    assert some.teacher is not None
    tokens, weight = tokens_of(some, 0.3)
    with torch.no_grad():
        log_p, log_q = (
            some.teacher.log_probs(tokens.teacher_hidden),
            some.student.log_probs(tokens.student_hidden),
        )
    _, kept = some._loss(tokens, diagnose=False)
    support = Support(None, *(kept[name] for name in Support._fields[1:]))
    for one, other in zip(support[1:], full_support(log_p, log_q, alpha=0.5)[1:], strict=True):
        torch.testing.assert_close(one, other)
    some.critic_loss(tokens, support).backward()
    assert all(value.grad is None for value in some.student.parameters())
    assert all(value.grad is None for value in some.teacher.parameters())

    p, q = log_p.exp(), log_q.exp()
    off = tokens.off_policy
    features = torch.cat([tokens.student_hidden, tokens.teacher_hidden], -1).detach()
    for source, chosen in ((some.critics.off_policy, off), (some.critics.on_policy, ~off)):
        head: Any = source.head
        u = head.values(torch.tanh(head.features(features)))
        f = torch.tanh(0.5 * (log_p - log_q) + u) if method == "residual" else u
        value = ((p - q) * f - 2.0 * 0.5 * (0.5 * p + 0.5 * q) * f**2).sum(-1)
        expected = torch.autograd.grad(-(weight[BOTH.response_mask] * value)[chosen].sum(), head.parameters())
        for parameter, gradient in zip(head.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def test_no_step_lets_a_gradient_into_the_other_network(tmp_path: Path) -> None:
    """In the running loop: K critic steps pass the student's gradient by, and its step the critics'."""
    before = dict(module("residual", 0.5).named_parameters())
    clipped = Optimisation(learning_rate=1e-2, clip_norm=0.1, schedule="constant")
    some = module("residual", 0.5, updates=1, optimisation=clipped)
    *of_critics, of_student = train(some, tmp_path).steps
    assert [step.who for step in of_critics] == ["critic"] * 3
    first, last = of_critics[0], of_critics[-1]
    for name, value in first.gradients.items():
        if name.startswith("student."):
            assert value is not None
            # Bit for bit, not clipped yet.
            for step in of_critics:
                assert_equal(step.gradients[name], value)
                assert_equal(step.parameters[name], before[name])
            torch.testing.assert_close(of_student.gradients[name], value * 0.1 / of_student.norm)
        else:
            assert_equal(of_student.gradients[name], last.gradients[name])
            assert_equal(of_student.parameters[name], last.parameters[name])
    assert of_student.norm > 0.1
    moved = {name.split(".")[0] for name in before if not torch.equal(last.parameters[name], before[name])}
    assert moved == {"critics"}


def assert_equal(one: Tensor | None, other: Tensor | None) -> None:
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)


def test_the_students_gradient_is_against_the_critics_of_the_update_before(tmp_path: Path) -> None:
    """However many steps the critics take after it; of the next update's it knows."""
    few, many = (train(module("residual", 0.5, updates=2, steps=k), tmp_path).steps for k in (1, 4))
    students = [[step for step in steps if step.who == "student"] for steps in (few, many)]
    for name, gradient in students[0][0].gradients.items():
        if name.startswith("student."):
            assert_equal(gradient, students[1][0].gradients[name])
    assert students[0][0].loss == students[1][0].loss
    assert students[0][1].loss != students[1][1].loss


# -- the game --------------------------------------------------------------------------------------


def test_k_critic_steps_to_every_student_step(tmp_path: Path) -> None:
    trained = train(module("residual", 0.5, updates=3, steps=3), tmp_path)
    assert [step.who for step in trained.steps] == ["critic", "critic", "critic", "student"] * 3
    assert trained.global_step == 3
    assert trained.module.update == 3


@pytest.mark.parametrize("method", ["residual", "learned"])
def test_the_critics_regularised_value_rises_within_an_update(method: str, tmp_path: Path) -> None:
    slow = Optimisation(learning_rate=2e-3, betas=(0.5, 0.99), schedule="constant")
    trained = train(module(method, 0.5, updates=2, steps=6, critic_optimisation=slow), tmp_path)
    for update in range(2):
        losses = [step.loss for step in trained.steps[7 * update : 7 * update + 6]]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] - losses[-1] > 1e-3


def test_only_the_off_policy_critic_learns_at_beta_1(tmp_path: Path) -> None:
    before = dict(module("residual", 1.0).named_parameters())
    trained = train(module("residual", 1.0, sampler=no_sampler), tmp_path)
    moved = {name for name, value in trained.parameters.items() if not torch.equal(value, before[name])}
    assert {name for name in moved if "off_policy" in name}
    assert not {name for name in moved if "on_policy" in name}
    assert trained.module.tokens_seen["on"] == 0


def test_a_closed_form_critic_steps_nothing(tmp_path: Path) -> None:
    trained = train(module("closed_form", 0.5), tmp_path)
    assert [step.who for step in trained.steps] == ["student"] * 3
    assert "critic/loss" not in trained.logged[0]


def test_critics_have_their_own_clip_and_schedule(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        (group,) = optimizer.param_groups
        squares = [float(p.grad.square().sum()) for p in group["params"] if p.grad is not None]
        seen.append((group["lr"], math.sqrt(sum(squares))))

    student = Optimisation(learning_rate=1e-2, clip_norm=1e-2, schedule="linear")
    critics = Optimisation(learning_rate=1e-3, clip_norm=1e-4, schedule="constant", warmup_updates=1)
    handle = register_optimizer_step_pre_hook(look)
    try:
        some = module("residual", 0.5, steps=1, optimisation=student, critic_optimisation=critics)
        trained = train(some, tmp_path)
    finally:
        handle.remove()
    assert [rate for rate, _ in seen[0::2]] == pytest.approx([0.5e-3, 1e-3, 1e-3])
    assert [rate for rate, _ in seen[1::2]] == pytest.approx([1e-2, 2e-2 / 3, 1e-2 / 3])
    assert [norm for _, norm in seen[0::2]] == pytest.approx([1e-4] * 3, rel=1e-2)
    assert [norm for _, norm in seen[1::2]] == pytest.approx([1e-2] * 3, rel=1e-2)
    assert [row["train/learning_rate"] for row in trained.logged] == [rate for rate, _ in seen[1::2]]
    assert min(row["train/grad_norm"] for row in trained.logged) > 0.1  # logged before clipping
    assert trained.logged[0]["train/grad_norm"] == trained.steps[1].norm


# -- what is drawn ---------------------------------------------------------------------------------


def test_a_run_is_a_function_of_its_seed(tmp_path: Path) -> None:
    one, same, other = (train(module("residual", 0.5), tmp_path, seed=seed).parameters for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_labels_on_student_states_are_drawn_from_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    some = module("nll", 0.5)
    assert some.teacher is not None
    copies = 4000
    states = rollout([3] * 2, [[1] * copies] * 2, [[True] * copies, [False] * copies])
    weight = torch.ones(states.response_mask.shape)
    with torch.no_grad():
        tokens = some._pack(Batch(states, weight))
        log_p = some.teacher.log_probs(tokens.teacher_hidden)
        log_q = some.student.log_probs(tokens.student_hidden)
        p = log_p[-1].exp()
    labels: list[Tensor] = []
    monkeypatch.setattr(
        "amd_lightning.modules.divergence.nll",
        lambda log_q, actions: (labels.append(actions), torch.zeros(len(actions)))[1],  # type: ignore[func-returns-value]
    )
    torch.manual_seed(0)
    some.token_terms(tokens, log_p, log_q, diagnose=False)
    written, drawn = labels[0][:copies], labels[0][copies:]
    assert torch.equal(written, tokens.actions[:copies])
    frequencies = drawn.bincount(minlength=len(p)) / copies
    assert float((frequencies - p).abs().sum() / 2) < 0.05
    assert len(set(drawn.tolist())) > 5


# -- Lightning -------------------------------------------------------------------------------------


def test_the_teacher_is_neither_saved_nor_moved(tmp_path: Path) -> None:
    teacher = t5(2, d_model=24).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    some = train(module("residual", 0.5, teacher=teacher), tmp_path).module
    assert {name.split(".")[0] for name in some.state_dict()} == {"student", "critics"}
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training


def test_the_student_trains_in_training_mode(tmp_path: Path) -> None:
    """Although `from_pretrained` gives it in evaluation mode and it writes its responses there."""
    student = t5(1, dropout_rate=0.3).eval()
    modes: list[bool] = []

    def look(*_: Any) -> None:
        modes.append(student.model.get_decoder().training)

    student.model.get_output_embeddings().register_forward_pre_hook(look)
    some = module("kl", 0.0, student=student, updates=1)
    some_steps = train(some, tmp_path)
    assert modes[-1] is True
    assert False in modes  # while it responded
    assert some_steps.module.student.training


@pytest.fixture(autouse=True)
def _no_warnings(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """A tiny run tells nothing that nobody can act on."""
    yield
    assert [str(warning.message) for warning in recwarn.list] == []


def test_fixtures_are_not_trivial() -> None:
    """The two critics of a pair differ, or taking the wrong one would go unseen."""
    student, teacher = t5(1), t5(2)
    one, other = critic("learned", student, teacher), critic("learned", student, teacher)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    assert CONSTANT.learning_rate != CRITIC.learning_rate
