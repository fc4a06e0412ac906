"""Distances between student and teacher on fixed held-out states, for whatever was trained."""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from amd_lightning import ranks
from amd_lightning.objectives.chunked import chunks
from amd_lightning.objectives.divergences import js, kl, rkl, tv
from amd_lightning.objectives.moments import moment_gap
from amd_lightning.policies import Policy
from amd_lightning.types import Rollout

DISTANCES = {"tv": tv, "kl": kl, "rkl": rkl, "js": js}

LOGITS_AT_ONCE = 2**22
"""Of both policies together: heads are applied to as many tokens as have about so many, never to all."""


class Chunk(NamedTuple):
    """n response tokens, packed, and what both policies say of them."""

    response: Tensor
    """[n] long, on the CPU: a token's response, counted through all rollouts, [B, C] row by row."""
    actions: Tensor
    """[n] long, the token that was written."""
    student_hidden: Tensor
    """[n, D_student]."""
    teacher_hidden: Tensor
    """[n, D_teacher]."""
    log_p: Tensor
    """[n, V], the teacher's."""
    log_q: Tensor
    """[n, V], the student's."""


Critic = Callable[[bool, Chunk], Tensor]
"""(whether the states are off-policy, n tokens) -> f at every action [n, V]."""


class Comparison(NamedTuple):
    """What one pass over S responses found, in double precision on the CPU."""

    distances: dict[str, Tensor]
    """"tv", "kl", "rkl", "js": [N] at every response token in packed order."""
    log_ratio: Tensor
    """[S] log π_p(y|x)/π_q(y|x), in nats: how much likelier the teacher finds each whole response."""
    response: Tensor
    """[N] long, see `Chunk`."""

    def per_token(self) -> dict[str, float]:
        """Means over tokens: "tv" in 0..1, the others in nats a token."""
        return {name: float(values.mean()) for name, values in self.distances.items()}

    def per_sequence(self) -> dict[str, float]:
        """Means over responses of the sum over a response's tokens, as the game is written (Σ_t E)."""
        return {name: float(values.sum()) / len(self.log_ratio) for name, values in self.distances.items()}


class CriticGap:
    """The mean moment gap of a critic, gathered from the chunks of a pass over responses.

    Args:
        critic: n tokens -> f at every action [n, V].
    """

    def __init__(self, critic: Callable[[Chunk], Tensor]) -> None:
        self.critic = critic
        self._total, self._count = 0.0, 0

    def add(self, chunk: Chunk) -> None:
        """Take in a chunk."""
        gaps = moment_gap(chunk.log_p.exp(), chunk.log_q.exp(), self.critic(chunk))
        self._total += float(gaps.double().sum())
        self._count += len(gaps)

    def mean(self) -> float:
        """Over the tokens of all ranks."""
        total, count = ranks.totals([self._total, self._count])
        return total / count


@torch.no_grad()
def compare(
    student: Policy,
    teacher: Policy,
    rollouts: Iterable[Rollout],
    *,
    logits_at_once: int = LOGITS_AT_ONCE,
    watch: Callable[[Chunk], None] | None = None,
) -> Comparison:
    """Every distance at every response token, and how likely both policies find each response.

    Args:
        rollouts: the held-out states; data- or teacher-written ones give the off-policy distance,
            ones written by `student` the on-policy distance.
        watch: is shown every chunk on its way, so that one pass serves for more than distances.

    Student and teacher are left in evaluation mode. Several ranks take rollouts in turn, `watch` sees this
    rank's, and what is found is that of all.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in (*DISTANCES, "log_ratio", "response")}
    for chunk in _compared(student, teacher, rollouts, logits_at_once):
        for name, distance in DISTANCES.items():
            found[name].append(distance(chunk.log_p, chunk.log_q).double().cpu())
        log_p, log_q = (one.gather(-1, chunk.actions.unsqueeze(-1)) for one in (chunk.log_p, chunk.log_q))
        found["log_ratio"].append((log_p.double() - log_q.double()).squeeze(-1).cpu())
        found["response"].append(chunk.response)
        if watch is not None:
            watch(chunk)
    whole = _of_all_ranks(found)
    response = whole.pop("response")
    of_tokens = whole.pop("log_ratio")
    log_ratio = of_tokens.new_zeros(int(response[-1]) + 1).index_add(0, response, of_tokens)
    return Comparison(whole, log_ratio, response)


def _of_all_ranks(found: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """What the ranks found, in the order of responses: none is on two of them."""
    whole = {name: torch.cat(parts) for name, parts in found.items() if parts}
    if ranks.world_size() > 1:
        parts = [part for part in ranks.gathered([whole]) if part]
        whole = {name: torch.cat([part[name] for part in parts]) for name in found}
        order = whole["response"].argsort(stable=True)
        whole = {name: values[order] for name, values in whole.items()}
    return whole


def _compared(
    student: Policy, teacher: Policy, rollouts: Iterable[Rollout], logits_at_once: int
) -> Iterator[Chunk]:
    student.eval()
    teacher.eval()
    device = next(student.parameters()).device
    size = max(1, logits_at_once // (2 * teacher.vocabulary_size))
    rollouts = list(rollouts)
    before = [0, *accumulate(rollout.off_policy.numel() for rollout in rollouts)]
    for place, counts in ranks.turns(len(rollouts)):
        rollout = rollouts[place]
        mask = rollout.response_mask
        lengths = mask.sum(-1).flatten().cpu()
        response = before[place] + torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        rollout = rollout.to(device)
        actions = rollout.response_ids[rollout.response_mask]
        student_hidden, teacher_hidden = student.hidden(rollout), teacher.hidden(rollout)
        for rows in chunks(len(actions) if counts else 0, size):
            yield Chunk(
                response[rows],
                actions[rows],
                student_hidden[rows],
                teacher_hidden[rows],
                teacher.log_probs(teacher_hidden[rows]),
                student.log_probs(student_hidden[rows]),
            )
