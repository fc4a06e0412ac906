"""What an action is held responsible for beside the distance at its state: what follows, and the whole.

Both become a constant that multiplies log π_student(action) in the loss (`Tokens.advantage`): a cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from amd_lightning import ranks
from amd_lightning.objectives.kernels import kernel_advantages, kernel_scores, ngram_kernel
from amd_lightning.objectives.policy_gradient import advantages
from amd_lightning.types import Rollout

BASELINE_RESPONSES = 8
"""From how many responses to a prompt on the kernel's scores get a baseline: with fewer, its own noise is
more than it takes away (of its variance without one: 18 times at two, 1.7 at four, as much at eight;
experiments/exact has the table)."""


@dataclass(frozen=True)
class Horizon:
    """The options of the future term; see `objectives.policy_gradient`.

    Attributes:
        discount: γ, what a cost one step later counts, above 0; 1 is unbiased.
        returns: "expected" sums the distance at later states, "sampled" an estimate of it from the
            actions written there.
        baseline: "none", "time_step" or "leave_one_out".
        centre: subtract the other responses' token mean from the costs, so that an early end is no gain.
        length_normalise: divide by the number of later tokens, as MiniLLM does.
    """

    discount: float
    returns: str = "expected"
    baseline: str = "time_step"
    centre: bool = True
    length_normalise: bool = False


@dataclass(frozen=True)
class SequenceKernel:
    """The sequence-level term: weight · ½ MMD² between the student's and the teacher's responses to a prompt.

    Attributes:
        weight: beside the token-level distance; its scale is that of a token mean, one response's share of
            the term being spread over the batch's tokens.
        ngram: the kernel compares n-grams of 1 to this many tokens.
    """

    weight: float
    ngram: int = 2


def kernel_costs(rollout: Rollout, kernel: SequenceKernel) -> Tensor:
    """Each token's share of the sequence-level term: −weight · advantage of its response. Packed, [N].

    0 on responses that the student did not write, of which every prompt has as many.
    """
    assert rollout.samples is not None
    written = ~rollout.off_policy
    student = int(written[0].sum())
    shape = (len(written), student)
    ids = rollout.response_ids[written].unflatten(0, shape)
    mask = rollout.response_mask[written].unflatten(0, shape)
    sizes = range(1, kernel.ngram + 1)
    gain = kernel_advantages if student >= BASELINE_RESPONSES else kernel_scores
    gains = gain(ngram_kernel(ids, mask, ids, mask, sizes), ngram_kernel(ids, mask, *rollout.samples, sizes))
    costs = torch.zeros(rollout.off_policy.shape, dtype=gains.dtype, device=gains.device)
    costs[written] = -kernel.weight * gains.flatten()
    return costs.unsqueeze(-1).expand_as(rollout.response_mask)[rollout.response_mask]


def batch_advantages(rollouts: Sequence[Rollout], costs: Sequence[Tensor], horizon: Horizon) -> list[Tensor]:
    """Each token's advantage over a whole batch, 0 on responses that the student did not write.

    Baselines and centring look at the responses of all ranks.

    Args:
        rollouts: the batch's micro-batches.
        costs: [N_i] for the packed tokens of each.
    """
    length = max(rollout.response_mask.shape[-1] for rollout in rollouts)
    masks, padded, groups, first = [], [], [], 0
    for rollout, cost in zip(rollouts, costs, strict=True):
        mask = rollout.response_mask
        spread = torch.zeros(mask.shape, dtype=cost.dtype, device=cost.device)
        spread[mask] = cost
        prompts = first + torch.arange(len(mask), device=cost.device)
        first += len(mask)
        written = mask & ~rollout.off_policy.unsqueeze(-1)
        masks.append(pad(written, (0, length - mask.shape[-1])).flatten(0, 1))
        padded.append(pad(spread, (0, length - mask.shape[-1])).flatten(0, 1))
        groups.append(prompts.repeat_interleave(mask.shape[1]))
    all_costs, all_masks, all_groups, own = _of_all_ranks(
        torch.cat(padded), torch.cat(masks), torch.cat(groups), first
    )
    found = advantages(
        all_costs,
        all_masks,
        discount=horizon.discount,
        centre=horizon.centre,
        baseline_kind=horizon.baseline,
        group=all_groups,
        length_normalise=horizon.length_normalise,
    )[own]
    packed = []
    for rollout, part in zip(rollouts, found.split([len(mask) for mask in masks]), strict=True):
        mask = rollout.response_mask
        packed.append(part.unflatten(0, mask.shape[:2])[..., : mask.shape[-1]][mask])
    return packed


def _of_all_ranks(
    costs: Tensor, masks: Tensor, groups: Tensor, prompts: int
) -> tuple[Tensor, Tensor, Tensor, slice]:
    """The rows of every rank, padded to a common length, and which are this rank's.

    Args:
        costs, masks: [S, T].
        groups: [S], from 0; no two ranks have a prompt in common, and this one has so many.
    """
    if ranks.world_size() == 1:
        return costs, masks, groups, slice(None)
    parts = ranks.gathered([(costs.cpu(), masks.cpu(), groups.cpu(), prompts)])
    length = max(mask.shape[1] for _, mask, _, _ in parts)
    rows, others = [], 0
    for cost, mask, group, count in parts:
        room = (0, length - mask.shape[1])
        rows.append((pad(cost, room), pad(mask, room), group + others))
        others += count
    first = sum(len(group) for _, _, group in rows[: ranks.rank()])
    everybody = (torch.cat(columns).to(costs.device) for columns in zip(*rows, strict=True))
    return *everybody, slice(first, first + len(costs))  # type: ignore[return-value]
