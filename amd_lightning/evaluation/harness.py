"""One policy, held-out prompts, every metric: the same for teacher, student and baselines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from amd_lightning.data.examples import TokenisedExample, collate
from amd_lightning.evaluation.decoding import Decoding, batches, respond_to_all, response_tokens
from amd_lightning.evaluation.distances import mean_distances
from amd_lightning.evaluation.metrics import Checker, accuracy, rouge_l
from amd_lightning.policies import Policy
from amd_lightning.types import Rollout


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and on which responses.

    Attributes:
        metrics: rouge_l, sampled_rouge_l (0..100); accuracy, sampled_accuracy (0..1, None where the
            task has no checker); tv_off, tv_on (0..1), kl_off, kl_on, rkl_off, rkl_on (nats a token)
            to the teacher, off on the stored responses, on on the policy's own; response_tokens (mean
            length of the sampled responses).
        predictions: one row a response: id, kind (greedy or beam, and sampled), prompt, references, response.
    """

    metrics: dict[str, float | None]
    predictions: list[dict[str, Any]]


def evaluate(
    policy: Policy,
    teacher: Policy,
    examples: Sequence[TokenisedExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    decoding: Decoding,
    checker: Checker | None,
    samples: int,
    seed: int,
) -> Evaluation:
    """Decode and sample every prompt, score the text, and measure the distances to the teacher.

    Args:
        examples: held-out rows.
        checker: decides whether a response is correct; None where the task has no such notion.
        samples: responses drawn at temperature 1 for every prompt.
        seed: of these draws.
    """
    policy.eval()
    pad_id = tokenizer.pad_token_id
    order = list(batches(examples, decoding.batch_size))

    def texts(rollouts: Sequence[Rollout]) -> list[str]:
        ids = response_tokens(rollouts, order)
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    best = texts(respond_to_all(policy, examples, decoding, pad_id=pad_id))
    draws = [
        respond_to_all(policy, examples, decoding, pad_id=pad_id, seed=seed + draw) for draw in range(samples)
    ]
    sampled = [texts(rollouts) for rollouts in draws]
    written = [rollout for rollouts in draws for rollout in rollouts]
    stored = [collate([examples[row] for row in rows], pad_id) for rows in order]

    references = [example.example.references for example in examples]
    all_sampled = [text for draw in sampled for text in draw]
    metrics: dict[str, float | None] = {
        "rouge_l": rouge_l(best, references),
        "sampled_rouge_l": rouge_l(all_sampled, references * samples),
        "accuracy": accuracy(best, references, checker) if checker else None,
        "sampled_accuracy": accuracy(all_sampled, references * samples, checker) if checker else None,
        "response_tokens": sum(int(rollout.response_mask.sum()) for rollout in written) / len(all_sampled),
    }
    for source, rollouts in (("off", stored), ("on", written)):
        for name, value in mean_distances(policy, teacher, rollouts).items():
            metrics[f"{name}_{source}"] = value
    kind = "greedy" if decoding.num_beams == 1 else "beam"
    return Evaluation(metrics, _rows(examples, {kind: [best], "sampled": sampled}))


def _rows(
    examples: Sequence[TokenisedExample], responses: dict[str, list[list[str]]]
) -> list[dict[str, Any]]:
    return [
        {
            "id": example.id,
            "kind": kind,
            "prompt": example.example.prompt,
            "references": list(example.example.references),
            "response": text,
        }
        for kind, draws in responses.items()
        for draw in draws
        for example, text in zip(examples, draw, strict=True)
    ]
