"""Batches in which the teacher was asked beforehand at off-policy states, and is asked live at the others."""

from collections.abc import Callable

import torch
from torch import Tensor

from amd_lightning.policies import Policy
from amd_lightning.types import Rollout, TeacherTopK, Tokens

Terms = dict[str, Tensor]


def live_features(teacher: Policy, rollout: Rollout) -> tuple[Tensor, int]:
    """The teacher's features of the packed tokens, and how many of them it read.

    [N, D]; where it was asked beforehand it reads the responses that the student wrote and no others: 0 at
    the tokens of the rest, [N, 0] where nothing is left to read.
    """
    if rollout.top_k is None:
        found = teacher.hidden(rollout)
        return found, len(found)
    mask = rollout.response_mask
    written = ~rollout.off_policy
    live = written.unsqueeze(-1).expand_as(mask)[mask]
    if not bool(live.any()):
        return torch.zeros(len(live), 0, device=mask.device), 0
    rows, columns = written.any(1), written.any(0)
    found = teacher.hidden(
        rollout._replace(
            prompt=type(rollout.prompt)(*(part[rows] for part in rollout.prompt)),
            response_ids=rollout.response_ids[rows][:, columns],
            response_mask=(mask & written.unsqueeze(-1))[rows][:, columns],
            off_policy=rollout.off_policy[rows][:, columns],
            samples=None,
            top_k=None,
        )
    )
    features = found.new_zeros(len(live), found.shape[-1])
    features[live] = found
    return features, len(found)


def spread(top_k: TeacherTopK, off_policy: Tensor) -> tuple[Tensor, Tensor]:
    """What was written down, at the packed tokens that it belongs to. off_policy [N] -> [N, k], [N, k + 1].

    At others, the first k actions, equally likely with the rest: values that nothing is made of.
    """
    count, (k, events) = len(off_policy), (top_k.actions.shape[-1], top_k.log_probs.shape[-1])
    actions = torch.arange(k, device=off_policy.device).repeat(count, 1)
    actions[off_policy] = top_k.actions
    log_probs = top_k.log_probs.new_zeros(count, events)
    log_probs[off_policy] = top_k.log_probs
    return actions, log_probs


def by_teacher(
    tokens: Tokens,
    log_q: Tensor,
    live: Callable[[Tokens, Tensor], Terms],
    stored: Callable[[Tokens, Tensor], Terms],
) -> Terms:
    """The terms of every token, from `stored` at off-policy states and from `live` at the others.

    Args:
        tokens: n packed tokens.
        log_q: [n, V].
        live, stored: tokens and their log q -> values of each, under the same names.
    """
    known = tokens.off_policy
    if bool(known.all()):
        return stored(tokens, log_q)
    if not bool(known.any()):
        return live(tokens, log_q)
    places = [chosen.nonzero().flatten() for chosen in (known, ~known)]
    parts = [terms(tokens.at(rows), log_q[rows]) for terms, rows in zip((stored, live), places, strict=True)]
    order = torch.cat(places).argsort()
    return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
