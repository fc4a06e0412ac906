"""The tensors that travel together, one NamedTuple a concept, each field with its shape.

Suffixes used everywhere: B prompts, C responses to each prompt, P prompt length, T response length,
N packed response tokens, V vocabulary, D hidden size, R critic rank.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class PromptBatch(NamedTuple):
    """Prompts, padded to a common length."""

    input_ids: Tensor
    """[B, P] long."""
    attention_mask: Tensor
    """[B, P] long, 1 on tokens and 0 on padding."""


class Responses(NamedTuple):
    """Responses to each prompt, padded to a common length."""

    ids: Tensor
    """[B, M, T] long."""
    mask: Tensor
    """[B, M, T] bool, True up to and including the first EOS."""


class TeacherTopK(NamedTuple):
    """The teacher at the M states of a batch's stored responses, as it was written down once."""

    actions: Tensor
    """[M, k] long, its likeliest actions; the states of the first row's response first."""
    log_probs: Tensor
    """[M, k + 1] of these and of all others together; [M, V] where k reaches the vocabulary."""
    counts: Tensor
    """[B] long, how many states each row has; their sum is M."""

    def rows(self, start: int, stop: int) -> "TeacherTopK":
        """The states of the rows from `start` to `stop`."""
        first, last = int(self.counts[:start].sum()), int(self.counts[:stop].sum())
        return TeacherTopK(self.actions[first:last], self.log_probs[first:last], self.counts[start:stop])


class Rollout(NamedTuple):
    """Prompts with one or more responses to each, and who wrote these."""

    prompt: PromptBatch
    response_ids: Tensor
    """[B, C, T] long."""
    response_mask: Tensor
    """[B, C, T] bool, True up to and including the first EOS, False after it."""
    off_policy: Tensor
    """[B, C] bool, True where the teacher or the data wrote the response, False where the student did."""
    samples: Responses | None = None
    """The teacher's samples to each prompt, for sequence-level comparison; nothing is trained on them."""
    top_k: TeacherTopK | None = None
    """The teacher at the states of the off-policy responses; None where it is asked live."""

    def to(self, device: torch.device) -> "Rollout":
        """The same rollout on another device."""
        return Rollout(
            PromptBatch(*(tensor.to(device) for tensor in self.prompt)),
            self.response_ids.to(device),
            self.response_mask.to(device),
            self.off_policy.to(device),
            self.samples and Responses(*(tensor.to(device) for tensor in self.samples)),
            self.top_k and TeacherTopK(*(tensor.to(device) for tensor in self.top_k)),
        )

    def rows(self, start: int, stop: int) -> "Rollout":
        """The prompts from `start` to `stop`, without the columns that are padding in all of them."""
        prompt_mask = self.prompt.attention_mask[start:stop]
        response_mask = self.response_mask[start:stop]
        first, last = _occupied(prompt_mask.bool())
        length = _occupied(response_mask.flatten(0, 1))[1]
        return Rollout(
            PromptBatch(self.prompt.input_ids[start:stop, first:last], prompt_mask[:, first:last]),
            self.response_ids[start:stop, :, :length],
            response_mask[..., :length],
            self.off_policy[start:stop],
            self.samples and Responses(*(tensor[start:stop] for tensor in self.samples)),
            self.top_k and self.top_k.rows(start, stop),
        )


class Batch(NamedTuple):
    """What one update sees: rollouts, and the weight of each of their tokens in the loss."""

    rollout: Rollout
    weight: Tensor
    """[B, C, T] float; 0 outside the response mask. Fixed when the batch is collected."""

    def micro_batches(self, size: int) -> Iterator["Batch"]:
        """Consecutive groups of at most `size` prompts; their weighted sums add up to the batch's."""
        for start in range(0, len(self.weight), size):
            rollout = self.rollout.rows(start, start + size)
            yield Batch(rollout, self.weight[start : start + size, :, : rollout.response_ids.shape[-1]])


class Tokens(NamedTuple):
    """The response tokens of a (micro-)batch, packed: padding removed, one row a state."""

    student_hidden: Tensor
    """[N, D_student], what the student's head turns into logits."""
    teacher_hidden: Tensor
    """[N, D_teacher]; [N, 0] where no teacher takes part."""
    actions: Tensor
    """[N] long, the token that was written at each state."""
    weight: Tensor
    """[N] float, each token's share of the loss."""
    off_policy: Tensor
    """[N] bool, who wrote the response that the state belongs to."""
    advantage: Tensor | None = None
    """[N] what log π_student(action) is multiplied by in the loss, a constant: the cost that follows after
    the action; None where no token has any."""
    top_actions: Tensor | None = None
    """[N, k] long, the teacher's likeliest actions at off-policy states, anything at others; None where the
    teacher is asked live everywhere."""
    top_log_probs: Tensor | None = None
    """[N, k + 1] (or [N, V]) of these and of the rest, see `TeacherTopK`."""

    def at(self, rows: Any) -> "Tokens":
        """Some of the tokens."""
        return Tokens._make(None if part is None else part[rows] for part in self)

    def constant(self) -> "Tokens":
        """The same tokens, their features without a graph."""
        return self._replace(student_hidden=self.student_hidden.detach())


def join_responses(rollouts: Sequence[Rollout]) -> Rollout:
    """One rollout from several to the same prompts: their responses side by side, C = ΣC_i."""
    length = max(rollout.response_ids.shape[-1] for rollout in rollouts)

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(tensor, (0, length - tensor.shape[-1])) for tensor in tensors], dim=1)

    return Rollout(
        rollouts[0].prompt,
        joined([rollout.response_ids for rollout in rollouts]),
        joined([rollout.response_mask for rollout in rollouts]),
        torch.cat([rollout.off_policy for rollout in rollouts], dim=1),
        rollouts[0].samples,
        rollouts[0].top_k,
    )


def stack_prompts(first: Rollout, second: Rollout) -> Rollout:
    """One rollout from two to different prompts: one behind the other, B = B_1 + B_2.

    A row with fewer responses than the other rollout's gets empty ones,
    marked off-policy, whose masks are False throughout. Samples are left out.
    """
    width, (columns, length) = (
        max(first.prompt.input_ids.shape[-1], second.prompt.input_ids.shape[-1]),
        (max(first.response_ids.shape[axis], second.response_ids.shape[axis]) for axis in (1, 2)),
    )

    def prompts(tensor: Tensor) -> Tensor:
        return pad(tensor, (0, width - tensor.shape[-1]))

    def responses(tensor: Tensor) -> Tensor:
        return pad(tensor, (0, length - tensor.shape[-1], 0, columns - tensor.shape[1]))

    both = (first, second)
    top_k = first.top_k
    if top_k is not None:
        top_k = top_k._replace(counts=pad(top_k.counts, (0, len(second.off_policy))))
    return Rollout(
        PromptBatch(
            torch.cat([prompts(rollout.prompt.input_ids) for rollout in both]),
            torch.cat([prompts(rollout.prompt.attention_mask) for rollout in both]),
        ),
        torch.cat([responses(rollout.response_ids) for rollout in both]),
        torch.cat([responses(rollout.response_mask) for rollout in both]),
        torch.cat([pad(one.off_policy, (0, columns - one.off_policy.shape[1]), value=True) for one in both]),
        None,
        top_k,
    )


def _occupied(mask: Tensor) -> tuple[int, int]:
    """The range of columns of `mask` [rows, columns] outside of which every row is False."""
    columns = mask.any(dim=0).nonzero().flatten()
    return (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
