"""Chunked evaluation is the dense one: values, gradients and whatever else is kept, for every head."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amd_lightning.critics import (
    ClosedFormCritic,
    CriticHead,
    KernelCritic,
    LearnedCritic,
    QCritic,
    ResidualCritic,
    SignCritic,
    TanhCritic,
)
from amd_lightning.objectives.chunked import chunk_size, chunks, weighted_sum
from amd_lightning.objectives.divergences import DIVERGENCES, nll
from amd_lightning.objectives.moments import moment_gap
from amd_lightning.types import Tokens

N, V, D, D_TEACHER = 23, 17, 6, 5
CHUNKS = [1, 4, 23, 100]


class LoraHead(nn.Module):
    """A frozen projection with a low-rank adapter that learns."""

    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(D, V, bias=False).requires_grad_(False)
        self.down, self.up = nn.Linear(D, rank, bias=False), nn.Linear(rank, V, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base(hidden) + 0.5 * self.up(self.down(hidden))


def frozen() -> nn.Module:
    return nn.Linear(D, V).requires_grad_(False)


HEADS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(D, V, bias=False),
    "bias": lambda: nn.Linear(D, V),
    "lora": LoraHead,
    "frozen": frozen,
}


def critics() -> dict[str, QCritic]:
    torch.manual_seed(5)
    head = CriticHead(D, D_TEACHER, V, rank=3)
    nn.init.normal_(head.values.weight)
    return {
        "closed_form": ClosedFormCritic(0.3, 2.0),
        "sign": SignCritic(),
        "kernel": KernelCritic(torch.randn(V, 4)),
        "residual": ResidualCritic(head, 0.5, 2.0),
        "learned": LearnedCritic(head),
        "tanh": TanhCritic(head),
    }


DISTANCES = [*DIVERGENCES, "nll", *critics()]


class Setting:
    """Features, a teacher, weights, and what makes a distance of each token."""

    def __init__(self, distance: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.hidden = torch.randn(N, D, dtype=dtype, requires_grad=True)
        self.log_p = (2.0 * torch.randn(N, V)).to(dtype).log_softmax(-1)
        self.tokens = Tokens(
            self.hidden.detach(),
            torch.randn(N, D_TEACHER).to(dtype),
            torch.randint(V, (N,)),
            torch.rand(N).to(dtype),
            torch.rand(N) > 0.5,
        )
        critic = critics().get(distance)
        self.critic = None if critic is None else critic.to(dtype)
        self.distance = distance

    def terms(self, rows: slice, log_q: Tensor) -> dict[str, Tensor]:
        tokens, log_p = self.tokens.at(rows), self.log_p[rows]
        if self.critic is not None:
            with torch.no_grad():
                f = self.critic(tokens, log_p, log_q)
            distance = moment_gap(log_p.exp(), log_q.exp(), f)
        elif self.distance == "nll":
            distance = nll(log_q, tokens.actions)
        else:
            distance = DIVERGENCES[self.distance](log_p, log_q)
        return {"distance": distance, "kept": log_q[:, :2], "value": distance}

    def gradients(self, loss: Tensor, head: nn.Module) -> list[Tensor | None]:
        inputs = [self.hidden, *(p for p in head.parameters() if p.requires_grad)]
        return list(torch.autograd.grad(loss, inputs, allow_unused=True))


def log_probs(head: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda hidden: head(hidden).log_softmax(-1)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_every_distance_equals_its_dense_form(
    distance: str, chunk: int, dtype: torch.dtype, tolerance: float
) -> None:
    setting = Setting(distance, dtype)
    head = nn.Linear(D, V).to(dtype)
    dense = setting.terms(slice(None), log_probs(head)(setting.hidden))
    expected = (setting.tokens.weight * dense["distance"]).sum()
    loss, kept = weighted_sum(
        setting.terms, setting.hidden, setting.tokens.weight, log_probs(head), list(head.parameters()), chunk
    )
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    for found, wanted in zip(setting.gradients(loss, head), setting.gradients(expected, head), strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    for name in ("kept", "value"):
        other = dense["kept"] if name == "kept" else dense["value"]
        torch.testing.assert_close(kept[name], other.detach(), rtol=tolerance, atol=tolerance)
        assert not kept[name].requires_grad


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_gets_the_gradient_that_it_wants(kind: str) -> None:
    setting = Setting("js", torch.float64)
    head = HEADS[kind]().double()
    expected = (
        setting.tokens.weight * setting.terms(slice(None), log_probs(head)(setting.hidden))["distance"]
    ).sum()
    loss, _ = weighted_sum(
        setting.terms, setting.hidden, setting.tokens.weight, log_probs(head), list(head.parameters()), 5
    )
    expected.backward()
    wanted = [None if p.grad is None else p.grad.clone() for p in [setting.hidden, *head.parameters()]]
    setting.hidden.grad = None
    head.zero_grad(set_to_none=True)
    (3.0 * loss).backward()
    for parameter, gradient in zip([setting.hidden, *head.parameters()], wanted, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, 3.0 * gradient, rtol=1e-10, atol=1e-12)


def test_a_head_tied_to_the_embeddings_adds_up_both_gradients() -> None:
    """The features come from the very weights that the head projects them with, scaled as T5 does."""
    setting = Setting("kl", torch.float64)
    embedding = nn.Parameter(torch.randn(V, D, dtype=torch.float64))
    inputs = torch.randint(V, (N,))

    def loss_of(chunk: int | None) -> Tensor:
        hidden = torch.tanh(embedding[inputs]) * D**-0.5
        head: Callable[[Tensor], Tensor] = lambda h: (h @ embedding.T).log_softmax(-1)  # noqa: E731
        if chunk is None:
            return (setting.tokens.weight * setting.terms(slice(None), head(hidden))["distance"]).sum()
        return weighted_sum(setting.terms, hidden, setting.tokens.weight, head, [embedding], chunk)[0]

    (dense,) = torch.autograd.grad(loss_of(None), embedding)
    (chunked,) = torch.autograd.grad(loss_of(4), embedding)
    torch.testing.assert_close(chunked, dense, rtol=1e-10, atol=1e-12)


def test_frozen_features_leave_the_heads_gradient() -> None:
    setting = Setting("rkl", torch.float64)
    head = nn.Linear(D, V).double()
    loss, _ = weighted_sum(
        setting.terms,
        setting.hidden.detach(),
        setting.tokens.weight,
        log_probs(head),
        [*head.parameters()],
        4,
    )
    expected = (
        setting.tokens.weight * setting.terms(slice(None), log_probs(head)(setting.hidden))["distance"]
    ).sum()
    found, wanted = (torch.autograd.grad(one, list(head.parameters())) for one in (loss, expected))
    torch.testing.assert_close(found, wanted)


def test_no_chunk_sees_more_tokens_than_it_may_and_each_is_projected_once() -> None:
    setting = Setting("closed_form", torch.float64)
    head = nn.Linear(D, V).double()
    seen: list[int] = []

    def recording(hidden: Tensor) -> Tensor:
        seen.append(len(hidden))
        return log_probs(head)(hidden)

    loss, _ = weighted_sum(
        setting.terms, setting.hidden, setting.tokens.weight, recording, [*head.parameters()], 5
    )
    loss.backward()
    assert max(seen) == 5
    assert sum(seen) == N


def test_without_gradients_there_is_no_graph_and_without_tokens_nothing() -> None:
    setting = Setting("kl", torch.float64)
    head = nn.Linear(D, V).double()
    arguments: dict[str, Any] = {"head": log_probs(head), "parameters": list(head.parameters()), "chunk": 4}
    with torch.no_grad():
        loss, kept = weighted_sum(setting.terms, setting.hidden, setting.tokens.weight, **arguments)
    assert not loss.requires_grad
    assert len(kept["value"]) == N
    empty, kept = weighted_sum(setting.terms, setting.hidden[:0], setting.tokens.weight[:0], **arguments)
    assert (empty.item(), kept) == (0.0, {})


def test_bfloat16_heads_accumulate_their_gradient_in_float32() -> None:
    """A sum of many small equal parts: in bfloat16 it would stop growing after 256 of them."""
    head = nn.Linear(1, 2, bias=False).bfloat16()
    nn.init.zeros_(head.weight)
    hidden = torch.ones(1000, 1, dtype=torch.bfloat16)

    def terms(rows: slice, log_q: Tensor) -> dict[str, Tensor]:
        return {"distance": log_q[:, 0]}

    loss, _ = weighted_sum(
        terms, hidden, torch.ones(1000), lambda h: head(h).float().log_softmax(-1), [head.weight], 1
    )
    loss.backward()
    assert head.weight.grad is not None
    torch.testing.assert_close(head.weight.grad.float(), torch.tensor([[500.0], [-500.0]]), rtol=0.01, atol=0)


def test_chunks_cover_all_rows_in_order() -> None:
    assert [list(range(7))[rows] for rows in chunks(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunks(0, 3)) == []
    assert chunk_size(2**13, on_cpu=False) == 2**10
    assert chunk_size(2**13, on_cpu=True) == 2**7
    assert chunk_size(50_000, on_cpu=True) == 64
    assert chunk_size(10**9, on_cpu=False) == chunk_size(10**9, on_cpu=True) == 128
