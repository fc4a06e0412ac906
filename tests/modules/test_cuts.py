"""However a batch is cut, into micro-batches of prompts or into chunks of tokens, its update is the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.horizon import Horizon, SequenceKernel
from amd_lightning.objectives.divergences import DIVERGENCES
from amd_lightning.objectives.support import Support
from amd_lightning.policies import Policy
from amd_lightning.rollouts import BackendSampler, token_weights
from amd_lightning.types import Batch, Responses
from tests.helpers import VOCABULARY, rollout, t5
from tests.modules.harness import accumulate, module, train

STATES = rollout(
    [3, 5, 2, 4],
    [[4, 2, 3], [1, 5, 2], [3, 3, 1], [2, 4, 6]],
    [[True, False, False]] * 4,
)._replace(
    samples=Responses(
        torch.randint(1, VOCABULARY, (4, 3, 5), generator=torch.Generator().manual_seed(7)),
        torch.arange(5) < torch.tensor([[5, 1, 3]] * 4).unsqueeze(-1),
    )
)
CRITICS = ["residual", "learned", "linear", "tanh", "closed_form", "sign", "kernel"]
# nll draws its labels on student-written states: a cut changes which.
METHODS = [*((name, 0.3) for name in (*DIVERGENCES, *CRITICS)), ("nll", 1.0)]
VARIANTS: dict[str, dict[str, Any]] = {
    "discounted": {"horizon": Horizon(0.9, baseline="none", centre=False)},
    "time step": {"horizon": Horizon(1.0, baseline="time_step")},
    "leave one out": {"horizon": Horizon(1.0, baseline="leave_one_out", length_normalise=True)},
    "sampled": {"horizon": Horizon(1.0, returns="sampled", baseline="time_step", centre=False)},
    "kernel": {"kernel": SequenceKernel(0.7)},
    "horizon and kernel": {"horizon": Horizon(1.0), "kernel": SequenceKernel(0.7, ngram=3)},
    "mixed with the teacher": {"teacher_share": 0.3, "horizon": Horizon(1.0)},
    "temperatures": {"temperatures": (2.0, 0.7)},
}
CUTS = [(4, 1), (4, 3), (2, None), (1, 3), (3, 2)]


def double(method: str, beta: float, **settings: Any) -> DistillationModule:
    """In float64, so that the order of a sum is not seen."""
    teacher = t5(2, d_model=24).double()
    return module(method, beta, student=t5(1).double(), teacher=teacher, **settings).double()


def assert_cuts_change_nothing(method: str, beta: float, normalise: str = "token", **settings: Any) -> None:
    batch = Batch(STATES, token_weights(STATES, beta, normalise))
    whole = accumulate(double(method, beta, **settings), batch, diagnose=True)
    moved = [gradient for gradient in whole.gradients.values() if gradient is not None]
    assert max(float(gradient.abs().max()) for gradient in moved) > 1e-3
    for micro_batch_size, chunk_tokens in CUTS:
        some = double(method, beta, micro_batch_size=micro_batch_size, chunk_tokens=chunk_tokens, **settings)
        cut = accumulate(some, batch, diagnose=True)
        assert cut.metrics == pytest.approx(whole.metrics, rel=1e-5, abs=1e-7)
        for name, gradient in whole.gradients.items():
            if gradient is None:
                assert cut.gradients[name] is None, name
            else:
                torch.testing.assert_close(cut.gradients[name], gradient, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("method, beta", METHODS)
def test_cuts_change_no_gradient(method: str, beta: float) -> None:
    assert_cuts_change_nothing(method, beta)


@pytest.mark.parametrize("method, beta", METHODS)
@pytest.mark.parametrize("variant", [None, "horizon and kernel"])
def test_padding_changes_no_gradient(method: str, beta: float, variant: str | None) -> None:
    """Behind prompts, responses and the teacher's samples, whatever stands there."""
    settings = VARIANTS[variant] if variant else {}
    assert STATES.samples is not None
    wider = STATES._replace(
        prompt=STATES.prompt._replace(
            input_ids=pad(STATES.prompt.input_ids, (0, 3), value=7),
            attention_mask=pad(STATES.prompt.attention_mask, (0, 3)),
        ),
        response_ids=pad(STATES.response_ids, (0, 4), value=5),
        response_mask=pad(STATES.response_mask, (0, 4)),
        samples=Responses(*(pad(part, (0, 2)) for part in STATES.samples)),
    )
    found, expected = (
        accumulate(double(method, beta, **settings), Batch(some, token_weights(some, beta, "token")))
        for some in (wider, STATES)
    )
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-5, abs=1e-7)
    for name, gradient in expected.gradients.items():
        if gradient is not None:
            torch.testing.assert_close(found.gradients[name], gradient, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("method", ["rkl", "closed_form", "residual"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_nor_with_anything_that_looks_beyond_a_token(variant: str, method: str) -> None:
    """The baselines look at the whole batch, wherever it is cut."""
    assert_cuts_change_nothing(method, 0.3, **VARIANTS[variant])


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("normalise", ["token", "sequence"])
def test_nor_with_another_weight_of_tokens(normalise: str, beta: float) -> None:
    assert_cuts_change_nothing("learned", beta, normalise, **VARIANTS["time step"])


@pytest.mark.parametrize("top_k", [2, 5])
def test_nor_on_the_likeliest_actions_alone(top_k: int) -> None:
    assert_cuts_change_nothing("residual", 0.3, top_k=top_k)


@pytest.mark.parametrize("method", ["kl", "residual"])
def test_a_tied_head_gets_its_gradient_from_both_of_its_uses(method: str) -> None:
    """Embeddings and head are one parameter: it is reached through the features and through the chunks."""
    batch = Batch(STATES, token_weights(STATES, 0.3, "token"))
    found = []
    for chunk_tokens in (None, 2):
        student = t5(1, tied=True).double()
        some = module(
            method, 0.3, student=student, teacher=t5(2, d_model=24).double(), chunk_tokens=chunk_tokens
        )
        (head,) = student.head_parameters
        name = next(name for name, value in some.named_parameters() if value is head)
        found.append(accumulate(some.double(), batch).gradients[name])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-10)
    assert found[0] is not None
    written = STATES.response_ids[STATES.response_mask].unique()
    assert found[0][written].abs().max() > 1e-3


@pytest.mark.parametrize("size", [4, 2, 1])
def test_a_run_with_everything_on_is_the_same_run(size: int, tmp_path: Path) -> None:
    """In Lightning's loop, with the student's own responses and AdamW."""
    found = []
    for micro_batch_size, chunk_tokens in ((4, None), (size, 2)):
        some = double(
            "residual",
            0.3,
            micro_batch_size=micro_batch_size,
            chunk_tokens=chunk_tokens,
            updates=2,
            sampler=BackendSampler(6, responses=2),
            **VARIANTS["horizon and kernel"],
        )
        found.append(train(some, tmp_path, samples=2).parameters)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-8, msg=name)


# -- what a cut is for -----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_tokens", [1, 3])
def test_no_more_than_a_chunk_meets_the_heads(chunk_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    some = module("residual", 0.3, chunk_tokens=chunk_tokens, horizon=Horizon(1.0))
    seen: list[int] = []
    own = Policy.logits

    def logits(policy: Policy, hidden: Tensor) -> Tensor:
        seen.append(len(hidden))
        return own(policy, hidden)

    monkeypatch.setattr(Policy, "logits", logits)
    accumulate(some, Batch(STATES, token_weights(STATES, 0.3, "token")))
    assert max(seen) == chunk_tokens
    # Both policies, for the costs and for the gradient.
    assert sum(seen) == 2 * 2 * int(STATES.response_mask.sum())


@pytest.mark.parametrize("horizon", [None, Horizon(1.0)])
def test_costs_take_no_gradient_and_prepare_nothing_for_the_critics(horizon: Horizon | None) -> None:
    """The forward that a horizon adds is one without a graph, and without a support."""
    some = module("residual", 0.3, horizon=horizon, chunk_tokens=3)
    assert isinstance(some, AdversarialModule)
    with_graph: list[bool] = []
    asked_for: list[int] = []
    own_terms, own_support = some.token_terms, some.support

    def token_terms(*arguments: Any, **named: Any) -> dict[str, Tensor]:
        with_graph.append(torch.is_grad_enabled())
        return own_terms(*arguments, **named)

    def support(log_p: Tensor, log_q: Tensor, **given: Any) -> Support:
        asked_for.append(len(log_p))
        return own_support(log_p, log_q, **given)

    object.__setattr__(some, "token_terms", token_terms)
    object.__setattr__(some, "support", support)
    accumulate(some, Batch(STATES, token_weights(STATES, 0.3, "token")))
    count = int(STATES.response_mask.sum())
    assert sum(asked_for) == count
    chunks = -(-count // 3)
    assert with_graph == [False] * (0 if horizon is None else chunks) + [True] * chunks
