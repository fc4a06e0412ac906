"""The probe moment distance: how well a fresh critic of a fixed class tells teacher and student apart.

A training critic measures its own run: what it reports depends on how far it got and on the method that it
served. The probe is the same for every method, and both policies are frozen while it learns:

    f(s, a) = (W2 tanh(W1 h(s)) + b)(a)        h: the teacher's features alone, standardised
    value   = E[Σ_a (p − q) f] − E[Σ_a ½(p + q) f²]

It learns on one half of some held-out prompts and is measured on the other. A critic that is free at every
state reaches ½ Σ_a (p − q)²/(p + q), which is at most the total variation; the probe reaches the part of
that which its class expresses and which holds on prompts that it has not seen. 0 says that it found nothing
systematic; values slightly below 0 are the error of what it learned from a finite half.
"""

from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from amd_lightning import ranks
from amd_lightning.evaluation.distances import Chunk
from amd_lightning.objectives.support import TAIL, Support, top_k_support

RANK = 32
ALPHA, RIDGE = 0.5, 2.0
ACTIONS = 64
"""Most likely actions of a state that the probe sees; it is 0 on the others."""
TOKENS = 4000
"""Of each half, at most."""
PRIOR = 4.0
"""Of W2 and b, in tokens: an action that fewer have to do with says little about f, and f stays near 0."""
ROUND, ROUNDS, GAIN = 20, 3, 0.01
"""It learns until `ROUND` steps gain less than the share `GAIN`, `ROUNDS` times at most."""
W1_UNIT = 0.3
ALL_AT_ONCE = 16
"""One product of matrices for all actions is the cheaper way up to about so many times a state's own."""
SEED = 0

FIT, MEASURE, NEITHER = 0, 1, -1


class States(NamedTuple):
    """What the probe needs of N states."""

    features: Tensor
    """[N, D] of the teacher."""
    support: Support
    """M actions at each, with what both policies say of them."""


def halves(lengths: Tensor, tokens: int = TOKENS) -> Tensor:
    """Which half each response belongs to: `FIT`, `MEASURE`, or `NEITHER` where a half has its `tokens`.

    Args:
        lengths: [S] tokens of the responses, one to each prompt; which ones go where depends on their
            number and their order alone.

    Returns:
        [S] long.
    """
    half = torch.full_like(lengths, NEITHER)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(SEED))
    for side in (FIT, MEASURE):
        responses = order[side::2]
        half[responses] = torch.where(lengths[responses].cumsum(0) <= tokens, side, NEITHER)
    return half


class ProbeStates:
    """Gathers both halves from the chunks of a pass over the responses."""

    def __init__(self, half: Tensor) -> None:
        """`half` [S]: of each response, see `halves`."""
        self.half = half
        self._parts: dict[int, list[tuple[int, States]]] = {FIT: [], MEASURE: []}

    def add(self, chunk: Chunk) -> None:
        """Keep what is needed of a chunk."""
        half = self.half[chunk.response].to(chunk.actions.device)
        for side, parts in self._parts.items():
            rows = (half == side).nonzero().flatten()
            if len(rows):
                policies = (chunk.log_p[rows].float(), chunk.log_q[rows].float())
                support = top_k_support(*policies, ALPHA, ACTIONS)
                states = States(chunk.teacher_hidden[rows].float(), support)
                parts.append((int(chunk.response[0]), states))

    def measure(self) -> tuple[float, float] | None:
        """See `probe`; None where there are too few responses for two halves. Of all ranks together."""
        fit, held_out = (_of_all_ranks(parts) for parts in self._parts.values())
        return probe(_joined(fit), _joined(held_out)) if fit and held_out else None


def probe(fit: States, held_out: States) -> tuple[float, float]:
    """Train the probe on `fit` and measure it on `held_out`. No random stream of the caller is touched.

    Returns:
        The value on `held_out`, the probe moment distance; and that on `fit`, which is higher by as much as
        the probe learned by heart. Neither exceeds the total variation on its half.
    """
    mean, deviation = fit.features.mean(0), fit.features.std(0, correction=0).clamp(min=1e-6)
    fit, held_out = (
        states._replace(features=(states.features - mean) / deviation) for states in (fit, held_out)
    )
    critic = _Probe(fit)
    with torch.enable_grad():
        critic.train()
    with torch.no_grad():
        return (
            float(critic.value(held_out)) / len(held_out.features),
            float(critic.value(fit)) / len(fit.features),
        )


class _Probe:
    """W1 drawn from a fixed seed, W2 and b zero at the start. Only actions that `fit` holds have a row of W2.

    So that L-BFGS gets there in few steps, W2 and b are learned in units of about their posterior deviation,
    1/√(prior + tokens that an action has to do with), and W1 in smaller ones than W2.
    """

    def __init__(self, fit: States) -> None:
        actions = _actions(fit.support)
        self.known = actions[actions != TAIL].unique()
        self.fit, self.places = fit, self._places(fit.support)
        index, present = self.places
        # Summed on the CPU: a GPU adds as its threads come, and the probe would not measure the same twice.
        shares, places = ((fit.support.mixture * present).flatten().cpu(), index.flatten().cpu())
        tokens = shares.new_zeros(len(self.known)).index_add(0, places, shares).to(index.device)
        self.unit = (PRIOR + RIDGE * tokens).rsqrt()
        size = fit.features.shape[-1]
        # float32 whatever torch's default, which precision=bf16-true lowers.
        draw = torch.empty(RANK, size + 1, dtype=torch.float32)
        draw.uniform_(-(size**-0.5), size**-0.5, generator=torch.Generator().manual_seed(SEED))
        self.w1 = draw.to(fit.features.device).requires_grad_()
        self.w2 = fit.features.new_zeros(len(self.known), RANK + 1).requires_grad_()

    def _places(self, support: Support) -> tuple[Tensor, Tensor]:
        """Where the support's actions stand among the known ones, and whether they do. [N, M] each."""
        actions = _actions(support)
        index = torch.searchsorted(self.known, actions).clamp(max=len(self.known) - 1)
        return index, self.known[index] == actions

    def value(self, states: States) -> Tensor:
        """Σ over the states of gap − ridge · penalty, a scalar."""
        w1, w2 = W1_UNIT * self.w1, self.w2 * self.unit.unsqueeze(-1)
        z = torch.tanh(states.features @ w1[:, :-1].T + w1[:, -1])
        index, present = self.places if states is self.fit else self._places(states.support)
        if len(self.known) <= ALL_AT_ONCE * index.shape[-1]:
            f = torch.addmm(w2[:, -1], z, w2[:, :-1].T).gather(-1, index)
        else:
            rows = w2[index]
            f = torch.einsum("nmr,nr->nm", rows[..., :-1], z) + rows[..., -1]
        f = f * present
        return (states.support.gap(f) - RIDGE * states.support.penalty(f)).sum()

    def train(self) -> None:
        """Ascend the value on `fit` less the prior."""
        optimizer = torch.optim.LBFGS(
            [self.w1, self.w2], max_iter=ROUND, line_search_fn="strong_wolfe", tolerance_change=0.0
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            prior = 0.5 * PRIOR * (self.w2 * self.unit.unsqueeze(-1)).square().sum()
            found = prior - self.value(self.fit)
            found.backward()
            return found

        before = 0.0
        for _ in range(ROUNDS):
            optimizer.step(loss)
            after = -float(loss().detach())
            if after < before * (1.0 + GAIN):
                return
            before = after


def _actions(support: Support) -> Tensor:
    """[N, M] long, also where every action stands at its own index."""
    if support.actions is not None:
        return support.actions
    count = support.difference.shape[-1]
    every = torch.arange(count, device=support.difference.device)
    return every.expand_as(support.difference).contiguous()


def _of_all_ranks(parts: list[tuple[int, States]]) -> list[States]:
    """Every rank's states, in the order of responses."""
    if ranks.world_size() > 1:
        device = parts[0][1].features.device if parts else torch.device("cpu")
        everybody = ranks.gathered([(place, _to(states, torch.device("cpu"))) for place, states in parts])
        parts = [(place, _to(states, device)) for place, states in sorted(everybody, key=itemgetter(0))]
    return [states for _, states in parts]


def _to(states: States, device: torch.device) -> States:
    support = Support._make(None if part is None else part.to(device) for part in states.support)
    return States(states.features.to(device), support)


def _joined(parts: Sequence[States]) -> States:
    supports = [part.support for part in parts]
    actions = [support.actions for support in supports if support.actions is not None]
    return States(
        torch.cat([part.features for part in parts]),
        Support(
            torch.cat(actions) if actions else None,
            torch.cat([support.difference for support in supports]),
            torch.cat([support.mixture for support in supports]),
            torch.cat([support.log_ratio for support in supports]),
        ),
    )
