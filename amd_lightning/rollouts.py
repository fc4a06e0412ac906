"""Who writes the states: stored responses, the student's own, and each token's share of the loss."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from amd_lightning import ranks
from amd_lightning.backends import Backend, HfBackend
from amd_lightning.policies import Policy
from amd_lightning.types import Batch, PromptBatch, Rollout, join_responses, stack_prompts


class Sampler(Protocol):
    """Writes responses with a policy."""

    def __call__(self, policy: Policy, prompt: PromptBatch) -> Rollout:
        """One or more responses of the policy to each prompt, marked on-policy."""


@dataclass(frozen=True)
class BackendSampler:
    """Samples with a backend, which is given the policy's weights before every writing.

    Attributes:
        max_tokens: longest response, EOS included.
        temperature: of the policy that writes; 1 keeps the states on-policy in the strict sense.
        responses: to each prompt.
        backend: what writes; transformers in place where none is given.
    """

    max_tokens: int
    temperature: float = 1.0
    responses: int = 1
    backend: Backend = field(default_factory=HfBackend)

    @torch.no_grad()
    def __call__(self, policy: Policy, prompt: PromptBatch) -> Rollout:
        repeated = PromptBatch(*(part.repeat_interleave(self.responses, dim=0) for part in prompt))
        self.backend.sync(policy)
        response_ids, mask = self.backend.generate(repeated, self.max_tokens, self.temperature)
        shape = (-1, self.responses)
        off_policy = torch.zeros(len(prompt.input_ids), self.responses, dtype=torch.bool, device=mask.device)
        return Rollout(prompt, response_ids.unflatten(0, shape), mask.unflatten(0, shape), off_policy)


def collect(stored: Rollout, student: Policy, sampler: Sampler, beta: float, normalise: str) -> Batch:
    """The batch of one update: stored states (β > 0) beside the student's own (β < 1), weighed.

    Nothing is generated at β = 1, and stored responses are left out at β = 0.

    Args:
        stored: prompts with the responses of the data or the teacher, C = 1.
        sampler: may answer other prompts, as many (replay): these then stand behind the stored ones.
        beta: the weight of off-policy states, J = β·off + (1 − β)·on.
        normalise: see `token_weights`.
    """
    parts = []
    if beta > 0.0:
        parts.append(stored)
    if beta < 1.0:
        parts.append(sampler(student, stored.prompt))
    if _same_prompts(stored, parts[-1]):
        rollout = join_responses(parts)._replace(samples=stored.samples)  # the sampler knows of none
    else:
        rollout = stack_prompts(stored, parts[-1]) if len(parts) == 2 else parts[0]
    return Batch(rollout, token_weights(rollout, beta, normalise))


def _same_prompts(one: Rollout, other: Rollout) -> bool:
    return one.prompt is other.prompt or (
        one.prompt.input_ids.shape == other.prompt.input_ids.shape
        and torch.equal(one.prompt.input_ids, other.prompt.input_ids)
        and torch.equal(one.prompt.attention_mask, other.prompt.attention_mask)
    )


def token_weights(rollout: Rollout, beta: float, normalise: str) -> Tensor:
    """Each token's weight in J = β·off + (1 − β)·on, the one place where β enters. [B, C, T].

    `normalise` = "token" makes each source a mean over its tokens, "sequence" a mean over its
    responses of the sum over their tokens (Σ_t E, as the game is written). 0 outside the mask; a
    weighted sum over all tokens, however they are cut into micro-batches and over ranks, is the loss: what
    is counted is counted over all ranks.
    """
    # float32 whatever torch's default, which precision=bf16-true lowers: the shares must add up to 1.
    weight = torch.zeros_like(rollout.response_mask, dtype=torch.float32)
    sources = [
        rollout.response_mask & source.unsqueeze(-1) for source in (rollout.off_policy, ~rollout.off_policy)
    ]
    units = [counted.sum() if normalise == "token" else counted.any(-1).sum() for counted in sources]
    shares = (beta, 1.0 - beta)
    for counted, share, count in zip(sources, shares, ranks.total(torch.stack(units)), strict=True):
        weight = torch.where(counted, share / count.clamp(min=1).float(), weight)
    return weight
