"""Head + distance + gradient over chunks of tokens: never a whole [N, V] in memory.

The vocabulary projection and everything that follows it act on each token alone, so a weighted sum over N
tokens is a sum over chunks of them. Each chunk's gradient is taken as soon as its value is there, and its
[n, V] tensors are gone before the next chunk begins: what lives on is the gradient of the features [N, D]
and of the head's parameters. No projection is computed twice (as in fused linear losses: Hsu et al. 2024,
arXiv 2410.10989; Wijmans et al. 2024, arXiv 2411.09009).

Chunks of the vocabulary would bring nothing more: a normalised log-probability needs all of a token's
logits before the first value, so they would have to be projected twice, and one token's fit anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Terms = Callable[[slice, Tensor], dict[str, Tensor]]
"""(rows, log q of these rows [n, V]) -> per-token values: "distance" [n], differentiable in log q, and
whatever else the caller wants of each token [n, ...], which is kept without a graph."""

LOGITS = 2**23
"""How many logits a chunk may have by default, 32 MiB in float32."""
LOGITS_ON_CPU = 2**20
"""The same on a CPU, 4 MiB: what stays in its caches from one operation to the next. At 8k actions 0.96 of an
update's time and 0.82 of its memory with 2^23."""
TOKENS, TOKENS_OF_HUGE = 64, 128
"""How many tokens a chunk has at least, and with more than `HUGE` actions: with fewer, adding up the head's
gradient takes the longest."""
HUGE = 2**16


def weighted_sum(
    terms: Terms,
    hidden: Tensor,
    weight: Tensor,
    head: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor],
    chunk: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ_n weight_n · distance_n, with its gradient, at most `chunk` tokens at a time.

    Args:
        terms: see `Terms`; called once a chunk, rows in ascending order.
        hidden: [N, D] the features that the head is given.
        weight: [N], constants.
        head: features [n, D] -> log-probabilities [n, V].
        parameters: what the head is made of; those that require a gradient get one. A head that shares
            its weights with the embeddings, or that is wrapped by adapters, needs nothing more.
        chunk: tokens, at least 1.

    Returns:
        The sum, a scalar to call `backward` on; and the other values, [N, ...] each. The graph of
        `hidden` is the caller's: nothing here runs a backbone.
    """
    if not torch.is_grad_enabled():  # of which a Function's forward pass knows nothing
        hidden, parameters = hidden.detach(), ()
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    kept: dict[str, Tensor] = {}
    total = _WeightedSum.apply(terms, weight.detach(), head, chunk, kept, hidden, *learning)
    return total, kept


def chunks(count: int, size: int) -> Iterator[slice]:
    """Consecutive rows in groups of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def chunk_size(vocabulary_size: int, *, on_cpu: bool) -> int:
    """How many tokens a chunk has where nobody says so."""
    least = TOKENS if vocabulary_size <= HUGE else TOKENS_OF_HUGE
    return max(least, (LOGITS_ON_CPU if on_cpu else LOGITS) // vocabulary_size)


class _WeightedSum(torch.autograd.Function):
    """The gradient is computed in the forward pass and handed out, scaled, in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        terms: Terms,
        weight: Tensor,
        head: Callable[[Tensor], Tensor],
        chunk: int,
        kept: dict[str, Tensor],
        hidden: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        hidden_wanted = ctx.needs_input_grad[5]
        total = weight.new_zeros(())
        hidden_gradients: list[Tensor] = []
        gradients: list[Tensor | None] = [None] * len(parameters)
        values: dict[str, list[Tensor]] = {}
        for rows in chunks(len(hidden), chunk):
            # A chunk's graph ends at these features and at the head's own parameters.
            features = hidden[rows].detach().requires_grad_(hidden_wanted)
            with torch.set_grad_enabled(wanted):
                found = terms(rows, head(features))
                part = (weight[rows] * found.pop("distance")).sum()
            if part.requires_grad:
                inputs = [features, *parameters] if hidden_wanted else [*parameters]
                parts = list(torch.autograd.grad(part, inputs, allow_unused=True))
                if hidden_wanted:
                    first = parts.pop(0)
                    hidden_gradients.append(torch.zeros_like(features) if first is None else first)
                _add(gradients, parts)
            elif hidden_wanted:
                hidden_gradients.append(torch.zeros_like(features))
            total += part.detach()
            for name, value in found.items():
                values.setdefault(name, []).append(value.detach())
        kept.update(
            {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in values.items()}
        )
        ctx.hidden_gradient = torch.cat(hidden_gradients) if hidden_gradients else None
        ctx.gradients = [
            None if sum_ is None else sum_.to(parameter.dtype)
            for sum_, parameter in zip(gradients, parameters, strict=True)
        ]
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (scale,) = upstream
        given = [ctx.hidden_gradient, *ctx.gradients]
        ctx.hidden_gradient, ctx.gradients = None, []
        # In place, where they are: nobody else holds these, and a head's gradient is as large as the head.
        return None, None, None, None, None, *(None if one is None else one.mul_(scale) for one in given)


def _add(sums: list[Tensor | None], parts: Sequence[Tensor | None]) -> None:
    """Add to sums that are in float32 at least: in bfloat16 the hundredth chunk would be lost to rounding."""
    for place, part in enumerate(parts):
        held = sums[place]
        if part is None:
            continue
        if held is None:
            sums[place] = part.to(torch.promote_types(part.dtype, torch.float32))
        else:
            held.add_(part)
