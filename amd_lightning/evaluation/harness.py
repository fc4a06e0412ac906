"""One policy, held-out prompts, every metric: the same for teacher, student and baselines."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from amd_lightning.data.examples import TokenisedExample, collate
from amd_lightning.evaluation.decoding import Decoding, batches, respond_to_all, response_tokens
from amd_lightning.evaluation.distances import Chunk, Comparison, Critic, CriticGap, compare
from amd_lightning.evaluation.metrics import Scorer, example_scores
from amd_lightning.evaluation.probe import NEITHER, ProbeStates, halves
from amd_lightning.evaluation.sequences import sequence_gaps, worst_case
from amd_lightning.policies import Policy
from amd_lightning.types import Rollout, join_responses

Metrics = dict[str, float | None]

BINS = 50
"""Of `Evaluation.spreads`: the same for every run, so that runs can be compared."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and on which responses.

    Attributes:
        metrics: the task's text metrics, such as rouge_l, bleu (0..100), accuracy (0..1), each of the best
            response, and of the sampled ones as the mean over draws: sampled_rouge_l, sampled_bleu,
            sampled_accuracy; None where the task has no such notion;
            response_tokens (mean length of the sampled responses);

            to the teacher, off on the stored responses, on on the policy's own: tv_off, tv_on (0..1),
            kl_off, kl_on, rkl_off, rkl_on, js_off, js_on (nats a token), each also as the mean over
            responses of the sum over tokens (tv_sequence_off, ...); probe_off, probe_on, the probe
            moment distance (about 0..tv), with probe_train_off, probe_train_on on what it learned from;

            to the teacher's samples of whole responses: exact_match (0..1), exact_match_gap, ngram_gap
            (0..1), length_gap (tokens), mmd_squared, worst_case (0..2);

            of a training critic, where one is given: moment_gap_off, moment_gap_on, the means over tokens,
            and gap_over_tv_off, gap_over_tv_on, these over 2TV there.

            The probe and the gaps of whole responses are None where there are no teacher samples or too
            few responses. The teacher's own say how far two sets of samples of one policy are apart.
        predictions: one row a response: id, kind (greedy or beam, and sampled), prompt, context (if there
            is one), references, response, scores (by metric; the mean over a kind's rows is the metric;
            corpus BLEU has none).
        spreads: "tv_off", "tv_on": how many of the tokens whose mean is that metric have a total variation
            in each of `BINS` equal parts of 0..1; twice that is the gap of the best critic bounded by 1.
    """

    metrics: Metrics
    predictions: list[dict[str, Any]]
    spreads: dict[str, list[int]] = field(default_factory=dict)


def evaluate(
    policy: Policy,
    teacher: Policy,
    examples: Sequence[TokenisedExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    decoding: Decoding,
    scorers: Mapping[str, Scorer],
    samples: int,
    seed: int,
    teacher_samples: Sequence[Sequence[list[int]]] | None,
    critic: Critic | None = None,
) -> Evaluation:
    """Decode and sample every prompt, score the text, and measure the distances to the teacher.

    Args:
        examples: held-out rows.
        scorers: text metrics by name.
        samples: responses drawn at temperature 1 for every prompt.
        seed: of these draws.
        teacher_samples: the teacher's draws at temperature 1, from another seed: the ids of one response
            to every example. None leaves out the probe and the gaps of whole responses.
        critic: what `policy` was trained against.
    """
    policy.eval()
    pad_id = tokenizer.pad_token_id
    order = list(batches(examples, decoding.batch_size))

    def stored(responses: Sequence[list[int]]) -> list[Rollout]:
        rows = [example._replace(response_ids=ids) for example, ids in zip(examples, responses, strict=True)]
        return [collate([rows[row] for row in batch], pad_id) for batch in order]

    best, written = _write(policy, examples, tokenizer, decoding, samples, seed)
    sampled, draws = [texts for texts, _ in written], [rollouts for _, rollouts in written]
    if decoding.no_repeat_ngram_size:  # those are not the policy's own draws
        draws = [
            respond_to_all(policy, examples, decoding, pad_id=pad_id, seed=seed + draw, scored=False)
            for draw in range(samples)
        ]
    off, on = stored([example.response_ids for example in examples]), _side_by_side(draws)
    theirs = None
    if teacher_samples is not None:
        theirs = _side_by_side([stored(responses) for responses in teacher_samples])
    tokens = sum(int(rollout.response_mask.sum()) for rollout in on)
    states = {"off": off, "on": on}
    distances, spreads = _distances(policy, teacher, states, theirs, decoding.batch_size, critic)
    metrics: Metrics = {
        **_text_metrics(best, sampled, examples, scorers),
        "response_tokens": tokens / (samples * len(examples)),
        **distances,
    }
    kind = "greedy" if decoding.num_beams == 1 else "beam"
    return Evaluation(metrics, _rows(examples, {kind: [best], "sampled": sampled}, scorers), spreads)


def evaluate_text(
    policy: Policy,
    examples: Sequence[TokenisedExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    decoding: Decoding,
    scorers: Mapping[str, Scorer],
    samples: int,
    seed: int,
) -> Evaluation:
    """The text metrics of `evaluate` alone, for further test sets."""
    policy.eval()
    best, draws = _write(policy, examples, tokenizer, decoding, samples, seed)
    sampled = [texts for texts, _ in draws]
    kind = "greedy" if decoding.num_beams == 1 else "beam"
    return Evaluation(
        _text_metrics(best, sampled, examples, scorers),
        _rows(examples, {kind: [best], "sampled": sampled}, scorers),
    )


def _write(
    policy: Policy,
    examples: Sequence[TokenisedExample],
    tokenizer: PreTrainedTokenizerBase,
    decoding: Decoding,
    samples: int,
    seed: int,
) -> tuple[list[str], list[tuple[list[str], list[Rollout]]]]:
    """The best response to every prompt, and each draw's with its rollouts."""
    order = list(batches(examples, decoding.batch_size))

    def respond(seed: int | None) -> tuple[list[str], list[Rollout]]:
        rollouts = respond_to_all(policy, examples, decoding, pad_id=tokenizer.pad_token_id, seed=seed)
        ids = response_tokens(rollouts, order)
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)], rollouts

    return respond(None)[0], [respond(seed + draw) for draw in range(samples)]


def _text_metrics(
    best: list[str],
    sampled: list[list[str]],
    examples: Sequence[TokenisedExample],
    scorers: Mapping[str, Scorer],
) -> Metrics:
    """What a reader would say; `sampled` one list a draw."""
    golds = [example.example.references for example in examples]
    found: Metrics = {}
    for name, score in scorers.items():
        of_draws = [score(draw, golds) for draw in sampled]
        known = [value for value in of_draws if value is not None]
        found[name] = score(best, golds)
        found[f"sampled_{name}"] = sum(known) / len(known) if known else None
    return found


GAPS = ("exact_match", "exact_match_gap", "ngram_gap", "length_gap", "mmd_squared", "worst_case")


def _distances(
    policy: Policy,
    teacher: Policy,
    states: dict[str, list[Rollout]],
    teacher_written: list[Rollout] | None,
    size: int,
    critic: Critic | None,
) -> tuple[Metrics, dict[str, list[int]]]:
    """What is measured between the policies, and `Evaluation.spreads`; `states` "off" and "on", about `size`
    responses a pass."""
    per_token: Metrics = {}
    per_sequence: Metrics = {}
    probes: Metrics = {}
    critics: Metrics = {}
    found: dict[str, Comparison] = {}
    for source, rollouts in states.items():
        probe = ProbeStates(_first_draws(rollouts))
        watching = [] if teacher_written is None else [probe.add]
        gap = None if critic is None else CriticGap(partial(critic, source == "off"))
        watching += [] if gap is None else [gap.add]
        found[source] = compare(policy, teacher, _in_groups(rollouts, size), watch=partial(_all, watching))
        per_token |= {f"{name}_{source}": value for name, value in found[source].per_token().items()}
        for name, value in found[source].per_sequence().items():
            per_sequence[f"{name}_sequence_{source}"] = value
        probes[f"probe_{source}"], probes[f"probe_train_{source}"] = probe.measure() or (None, None)
        if gap is not None:
            value, twice_tv = gap.mean(), 2.0 * found[source].per_token()["tv"]
            critics[f"moment_gap_{source}"] = value
            critics[f"gap_over_tv_{source}"] = value / twice_tv if twice_tv else None
    gaps: Metrics = dict.fromkeys(GAPS)
    if teacher_written is not None:
        on_teacher = compare(policy, teacher, _in_groups(teacher_written, size))
        gaps |= sequence_gaps(states["on"], teacher_written)
        gaps["worst_case"] = worst_case(found["on"].log_ratio, on_teacher.log_ratio)
    spreads = {
        f"tv_{source}": torch.histc(one.distances["tv"], BINS, 0.0, 1.0).long().tolist()
        for source, one in found.items()
    }
    return {**per_token, **per_sequence, **probes, **critics, **gaps}, spreads


def _all(watching: Sequence[Callable[[Chunk], None]], chunk: Chunk) -> None:
    for watch in watching:
        watch(chunk)


def _first_draws(rollouts: Sequence[Rollout]) -> torch.Tensor:
    """The probe's half of every response, [B, C] row by row: off and on alike it takes a prompt's first."""
    lengths = torch.cat([rollout.response_mask.sum(-1) for rollout in rollouts])
    half = torch.full_like(lengths, NEITHER)
    half[:, 0] = halves(lengths[:, 0])
    return half.flatten()


def _side_by_side(draws: Sequence[Sequence[Rollout]]) -> list[Rollout]:
    """Draws to the same batches of prompts as one rollout a batch, C = the number of draws."""
    return [join_responses(batch) for batch in zip(*draws, strict=True)]


def _in_groups(rollouts: Sequence[Rollout], size: int) -> Iterator[Rollout]:
    """The same rollouts, at most `size` responses in each as far as prompts stay whole."""
    for rollout in rollouts:
        prompts, copies = rollout.off_policy.shape
        step = max(1, size // copies)
        for start in range(0, prompts, step):
            yield rollout.rows(start, start + step)


def _rows(
    examples: Sequence[TokenisedExample],
    responses: dict[str, list[list[str]]],
    scorers: Mapping[str, Scorer],
) -> list[dict[str, Any]]:
    return [
        {
            "id": example.id,
            "kind": kind,
            "prompt": example.example.prompt,
            **({"context": example.example.context} if example.example.context else {}),
            "references": list(example.example.references),
            "response": text,
            "scores": example_scores(scorers, text, example.example.references),
        }
        for kind, draws in responses.items()
        for draw in draws
        for example, text in zip(examples, draw, strict=True)
    ]
