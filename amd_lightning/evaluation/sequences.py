"""How far the student's responses are from the teacher's, as wholes: B prompts, to each of which the student
wrote G responses and the teacher M, all of them drawn at temperature 1.

Distances at a state say nothing of where the errors of many states lead. These gaps do, each by looking at
something else of the responses; none of them alone is the distance of the two policies.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from amd_lightning.objectives.kernels import mmd_squared, ngram_kernel
from amd_lightning.types import Rollout

Draws = Sequence[Sequence[tuple[int, ...]]]
"""[B][C] the ids of each response, EOS included."""

BEFORE = -1
"""Stands before the first token, so that every response has a bigram."""


def sequence_gaps(student: Sequence[Rollout], teacher: Sequence[Rollout]) -> dict[str, float | None]:
    """Gaps between what both wrote to the same prompts; higher is further away, but for exact_match.

    Args:
        student: C = G, the same prompts in the same order as
        teacher: C = M.

    Returns:
        exact_match, exact_match_gap, ngram_gap, length_gap, mmd_squared: see the functions of this file.
        exact_match_gap and mmd_squared compare responses of one policy with each other: None with fewer
        than two of them to a prompt.
    """
    ours, theirs = _draws(student), _draws(teacher)
    several = min(len(ours[0]), len(theirs[0])) > 1
    match = exact_match(ours, theirs)
    return {
        "exact_match": match,
        "exact_match_gap": _self_match(theirs) - match if several else None,
        "ngram_gap": ngram_gap(ours, theirs),
        "length_gap": _mean_length(ours) - _mean_length(theirs),
        "mmd_squared": mean_mmd_squared(student, teacher) if several else None,
    }


def exact_match(student: Draws, teacher: Draws) -> float:
    """Share of the pairs of a student's and a teacher's response to one prompt that are equal, 0..1.

    Its expectation is Σ_y π_p(y) π_q(y), so that the teacher itself does not reach 1, and a student that
    only ever writes the teacher's likeliest response does better. `exact_match_gap` is by how much the
    teacher's own pairs, m ≠ m', agree more often.
    """
    shares = []
    for ours, theirs in zip(student, teacher, strict=True):
        counts = Counter(theirs)
        shares.append(sum(counts[response] for response in ours) / (len(ours) * len(theirs)))
    return _mean(shares)


def ngram_gap(student: Draws, teacher: Draws) -> float:
    """½ Σ_g |share of teacher responses with bigram g − of student responses| / ½ Σ_g (both shares).

    Mean over prompts. 0 where every bigram is present equally often, 1 where no bigram is in common. A
    mean of absolute values: also equal policies differ in a few samples, by what the teacher scores here.
    """
    gaps = []
    for ours, theirs in zip(student, teacher, strict=True):
        our_shares, their_shares = _presence(ours), _presence(theirs)
        grams = our_shares.keys() | their_shares.keys()
        apart = sum(abs(their_shares.get(gram, 0.0) - our_shares.get(gram, 0.0)) for gram in grams)
        gaps.append(apart / (sum(our_shares.values()) + sum(their_shares.values())))
    return _mean(gaps)


def mean_mmd_squared(student: Sequence[Rollout], teacher: Sequence[Rollout]) -> float:
    """Squared maximum mean discrepancy under the n-gram kernel, mean over prompts; it may be below 0.

    Each prompt's is unbiased, so the mean is the estimate with the least noise and 0 where policies agree.
    """
    values = []
    for ours, theirs in zip(student, teacher, strict=True):
        a, b = ((rollout.response_ids, rollout.response_mask) for rollout in (ours, theirs))
        values.append(mmd_squared(ngram_kernel(*a, *a), ngram_kernel(*a, *b), ngram_kernel(*b, *b)))
    return float(torch.cat(values).double().mean())


def worst_case(on_student: Tensor, on_teacher: Tensor) -> float:
    """The largest gap of any reward |R(y)| ≤ 1 on whole responses: Σ_y |π_p(y) − π_q(y)|, 0..2.

    Estimated without bias as 2 E |tanh(½ log π_p(y)/π_q(y))| over y ~ ½(π_p + π_q).

    A poor guide by itself, to be read beside the other gaps. The reward that reaches it may single out
    any set of responses, which no task's reward does: it is near 2 as soon as responses are long, however
    alike they are, and a student may lower it while it gets further away under rewards that mean something.

    Args:
        on_student: log π_p(y)/π_q(y) of the student's responses, as many to every prompt.
        on_teacher: the same of the teacher's.
    """
    halves = [torch.tanh(0.5 * ratios).abs().mean() for ratios in (on_student, on_teacher)]
    return float(halves[0] + halves[1])


def _draws(rollouts: Iterable[Rollout]) -> Draws:
    return [
        [tuple(ids[mask].tolist()) for ids, mask in zip(*responses, strict=True)]
        for rollout in rollouts
        for responses in zip(rollout.response_ids, rollout.response_mask, strict=True)
    ]


def _self_match(draws: Draws) -> float:
    """Share of a prompt's pairs of different draws that are equal, mean over prompts."""
    return _mean(
        [
            sum(count * (count - 1) for count in Counter(responses).values())
            / (len(responses) * (len(responses) - 1))
            for responses in draws
        ]
    )


def _presence(responses: Sequence[tuple[int, ...]]) -> dict[tuple[int, int], float]:
    """Share of the responses that contain a bigram, for each that occurs."""
    counts = Counter(gram for response in responses for gram in set(pairwise((BEFORE, *response))))
    return {gram: count / len(responses) for gram, count in counts.items()}


def _mean_length(draws: Draws) -> float:
    return _mean([len(response) for responses in draws for response in responses])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
