"""Products of features with a few rows of a matrix: what a critic says of M actions a state, not of all V.

    forward     ⟨h_n, w_a⟩                 for the M actions a of state n
    backward    Σ_m g_nm w_a  to h_n,      Σ_{n, m: a} g_nm h_n  to w_a

Gathering the rows, [N, M, R], would take most of a critic step's time. All three are what an embedding bag,
a weighted sum of rows, computes without gathering: the second is one itself, the first its gradient in the
weights, and the third one over the states at which an action was asked for.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag


def products_at(hidden: Tensor, weight: Tensor, actions: Tensor) -> Tensor:
    """⟨hidden_n, weight_a⟩ for the actions a of state n. [N, R], [V, R], actions [N, M] long -> [N, M].

    Features and matrix are of one dtype. On a CPU the rows are not gathered; to be differentiated once.
    """
    if weight.is_cpu and weight.dtype in (torch.float32, torch.float64) and actions.numel():
        return _ProductsAt.apply(hidden, weight, actions)
    return torch.bmm(rows_at(weight, actions), hidden.unsqueeze(-1)).squeeze(-1)


def rows_at(weight: Tensor, actions: Tensor) -> Tensor:
    """The rows of a matrix that actions ask for. [V, R], [N, M] long -> [N, M, R].

    On a GPU by indexing, whose gradient sorts what is asked for twice and sums it in one order: those of
    index_select and of an embedding are summed as threads come, and no run there repeats another. On a CPU
    all are the same, bit for bit, and this one is the fastest.
    """
    if weight.is_cpu:
        return weight.index_select(0, actions.flatten()).unflatten(0, actions.shape)
    return weight[actions]


class _ProductsAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, actions: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, actions)
        with torch.enable_grad():
            shares = hidden.new_zeros(actions.shape).requires_grad_()
            summed = embedding_bag(actions, weight.detach(), per_sample_weights=shares, mode="sum")
        return torch.autograd.grad(summed, shares, hidden.detach())[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, actions = ctx.saved_tensors
        to_hidden = to_weight = None
        if ctx.needs_input_grad[0]:
            to_hidden = embedding_bag(actions, weight, per_sample_weights=upstream, mode="sum")
        if ctx.needs_input_grad[1]:
            asked = actions.flatten()
            order = asked.int().argsort(stable=True)  # in half the time of long ones
            counts = asked.bincount(minlength=len(weight))
            to_weight = embedding_bag(
                order // actions.shape[1],
                hidden,
                counts.cumsum(0) - counts,
                per_sample_weights=upstream.flatten()[order],
                mode="sum",
            )
        return to_hidden, to_weight, None
