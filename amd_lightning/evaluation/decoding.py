"""Responses to held-out prompts, always written the same way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from amd_lightning import ranks
from amd_lightning.data.examples import TokenisedExample, collate
from amd_lightning.policies import Policy
from amd_lightning.types import Rollout


@dataclass(frozen=True)
class Decoding:
    """How responses are written; one for validation and test.

    Attributes:
        max_tokens: longest response, EOS included.
        num_beams: beams of the best response; 1 is greedy.
        length_penalty: of beam search.
        batch_size: prompts decoded together.
        no_repeat_ngram_size: no n-gram of this size is written twice, where text is to be scored; 0: no rule.
    """

    max_tokens: int
    num_beams: int = 1
    length_penalty: float = 1.0
    batch_size: int = 64
    no_repeat_ngram_size: int = 0


def respond_to_all(
    policy: Policy,
    examples: Sequence[TokenisedExample],
    decoding: Decoding,
    *,
    pad_id: int,
    seed: int | None = None,
    scored: bool = True,
) -> list[Rollout]:
    """One response to every prompt, in batches ordered by `batches`; drawn at temperature 1 with a seed,
    else the best that `decoding` finds.

    The caller's random stream is left as it was. Several ranks write a batch each in turn, and each gets all
    that was written; draws then come from a stream a batch.

    Args:
        scored: whether the text is what counts; draws that stand for the policy itself, as states or in a
            comparison of distributions, are made without `no_repeat_ngram_size`.

    Returns:
        Rollouts on the CPU, C = 1, marked on-policy, in the order of `batches(examples, …)`.
    """
    device = next(policy.parameters()).device
    written: list[tuple[int, Rollout]] = []
    order = list(batches(examples, decoding.batch_size))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            torch.manual_seed(seed)
        for place, counts in ranks.turns(len(order)):
            batch = order[place]
            if seed is not None and ranks.world_size() > 1:
                torch.manual_seed(seed * 1_000_003 + place)
            prompt = collate([examples[row] for row in batch], pad_id).to(device).prompt
            response_ids, mask = policy.respond(
                prompt,
                decoding.max_tokens,
                sample=seed is not None,
                num_beams=decoding.num_beams,
                length_penalty=decoding.length_penalty,
                no_repeat_ngram_size=decoding.no_repeat_ngram_size if scored else 0,
            )
            off_policy = torch.zeros(len(batch), 1, dtype=torch.bool, device=device)
            rollout = Rollout(prompt, response_ids.unsqueeze(1), mask.unsqueeze(1), off_policy)
            if counts:
                written.append((place, rollout.to(torch.device("cpu"))))
    return [rollout for _, rollout in sorted(ranks.gathered(written), key=itemgetter(0))]


def batches(examples: Sequence[TokenisedExample], size: int) -> Iterator[list[int]]:
    """Rows in groups of at most `size`, longest prompts first, so that little of a batch is padding."""
    order = sorted(range(len(examples)), key=lambda row: -len(examples[row].prompt_ids))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def response_tokens(rollouts: Sequence[Rollout], order: Sequence[Sequence[int]]) -> list[list[int]]:
    """The ids of every response, EOS included, put back into the order of the examples."""
    found: dict[int, list[int]] = {}
    for rollout, rows in zip(rollouts, order, strict=True):
        for row, ids, mask in zip(rows, rollout.response_ids[:, 0], rollout.response_mask[:, 0], strict=True):
            found[row] = _masked(ids, mask)
    return [found[row] for row in range(len(found))]


def _masked(ids: Tensor, mask: Tensor) -> list[int]:
    return ids[mask].tolist()
