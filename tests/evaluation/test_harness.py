"""Decoding and distances on held-out prompts: fixed by the seed, in the order of the rows, for any policy."""

from typing import Any

import pytest
import torch

from amd_lightning.data.embedded import is_correct, samsum_rows
from amd_lightning.data.examples import Limits, PromptTemplate, TokenisedExample, collate, tokenise
from amd_lightning.data.samsum import to_example
from amd_lightning.data.tokenizer import train_tokenizer
from amd_lightning.evaluation.decoding import Decoding, batches, respond_to_all, response_tokens
from amd_lightning.evaluation.distances import mean_distances
from amd_lightning.evaluation.harness import Evaluation, evaluate
from amd_lightning.policies import Policy
from tests.helpers import t5

ROWS = [to_example(row) for row in samsum_rows("test", 7, 0)]
TOKENIZER = train_tokenizer([example.prompt for example in ROWS], 280)
EXAMPLES, _ = tokenise(ROWS, TOKENIZER, PromptTemplate(""), Limits(60, 8, "truncate", "truncate"), "test")
EXAMPLES = [  # prompts of very different lengths, so that decoding changes their order
    example._replace(prompt_ids=[*example.prompt_ids[: 5 + 8 * (row % 4)], 1])
    for row, example in enumerate(EXAMPLES)
]
DECODING = Decoding(max_tokens=6, batch_size=3)


def policy(seed: int, **fields: Any) -> Policy:
    return t5(seed, vocab_size=len(TOKENIZER), **fields)


def run(student: Policy, teacher: Policy, *, samples: int = 1, seed: int = 0, **options: Any) -> Evaluation:
    arguments: dict[str, Any] = {"decoding": DECODING, "checker": is_correct, **options}
    return evaluate(student, teacher, EXAMPLES, TOKENIZER, samples=samples, seed=seed, **arguments)


def test_a_teacher_is_at_no_distance_from_itself() -> None:
    metrics = run(policy(0), policy(0)).metrics
    for name in ("tv_off", "tv_on", "kl_off", "kl_on", "rkl_off", "rkl_on"):
        assert metrics[name] == pytest.approx(0.0, abs=1e-6)
    assert {name: value for name, value in run(policy(1), policy(0)).metrics.items() if "tv" in name} != {}
    assert min(run(policy(1), policy(0)).metrics[name] or 0.0 for name in ("tv_on", "kl_off")) > 0.05


def test_the_same_seed_gives_the_same_and_the_stream_stays_where_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = run(policy(1), policy(0), seed=3)
    torch.manual_seed(5)
    student, teacher = policy(1), policy(0)
    torch.manual_seed(5)
    other = run(student, teacher, seed=3)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    assert one == other
    assert run(policy(1), policy(0), seed=4).predictions != one.predictions


def test_rows_come_in_the_order_of_the_examples() -> None:
    predictions = run(policy(1), policy(0), samples=2).predictions
    ids = [example.id for example in EXAMPLES]
    assert [row["id"] for row in predictions] == ids * 3
    assert [row["kind"] for row in predictions] == ["greedy"] * 7 + ["sampled"] * 14
    for row, example in zip(predictions, EXAMPLES * 3, strict=True):
        assert row["prompt"] == example.example.prompt
        assert row["references"] == list(example.example.references)


def greedy(student: Policy, example: TokenisedExample) -> str:
    """A row answered alone."""
    prompt = collate([example], 0).prompt
    ids, mask = student.respond(prompt, DECODING.max_tokens, sample=False)
    return str(TOKENIZER.decode(ids[0][mask[0]], skip_special_tokens=True)).strip()


def test_a_response_belongs_to_its_prompt() -> None:
    student = policy(1)
    best = [row["response"] for row in run(student, policy(0)).predictions if row["kind"] == "greedy"]
    assert best == [greedy(student, example) for example in EXAMPLES]
    assert len(set(best)) > 3


def test_batches_hold_every_row_once_longest_first() -> None:
    order = list(batches(EXAMPLES, 3))
    lengths = [len(EXAMPLES[row].prompt_ids) for rows in order for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(row for rows in order for row in rows) == list(range(7))
    assert [len(rows) for rows in order] == [3, 3, 1]


def test_tokens_end_with_the_first_eos() -> None:
    written = respond_to_all(policy(2, sharpness=1.0), EXAMPLES, Decoding(40), pad_id=0, seed=0)
    for ids in response_tokens(written, list(batches(EXAMPLES, 64))):
        assert 1 not in ids[:-1]
        assert len(ids) == 40 or ids[-1] == 1


def test_more_samples_are_more_draws() -> None:
    one, three = (run(policy(1), policy(0), samples=samples, seed=0) for samples in (1, 3))
    assert three.predictions[:14] == one.predictions
    assert len(three.predictions) == 7 + 21
    draws = [row["response"] for row in three.predictions[7:]]
    assert len(set(draws)) > 7
    assert three.metrics["rouge_l"] == one.metrics["rouge_l"]
    assert three.metrics["kl_off"] == one.metrics["kl_off"]
    assert three.metrics["kl_on"] != one.metrics["kl_on"]


def test_beams_are_called_by_their_name() -> None:
    found = run(policy(1), policy(0), decoding=Decoding(6, num_beams=3))
    assert {row["kind"] for row in found.predictions} == {"beam", "sampled"}


def test_without_a_checker_there_is_no_accuracy() -> None:
    metrics = run(policy(1), policy(0), checker=None).metrics
    assert metrics["accuracy"] is None
    assert metrics["sampled_accuracy"] is None


def test_the_documented_metrics_are_all_there() -> None:
    names = {"rouge_l", "sampled_rouge_l", "accuracy", "sampled_accuracy", "response_tokens"}
    names |= {f"{name}_{source}" for name in ("tv", "kl", "rkl") for source in ("off", "on")}
    assert set(run(policy(1), policy(0)).metrics) == names
    assert all(name.split("_")[0] in (Evaluation.__doc__ or "") for name in names)


def test_distances_are_means_over_tokens_not_over_rows() -> None:
    student, teacher = policy(1), policy(0)
    together = mean_distances(student, teacher, [collate(EXAMPLES, 0)])
    alone = [mean_distances(student, teacher, [collate([example], 0)]) for example in EXAMPLES]
    lengths = [len(example.response_ids) for example in EXAMPLES]
    for name, value in together.items():
        weighted = sum(length * one[name] for length, one in zip(lengths, alone, strict=True)) / sum(lengths)
        assert value == pytest.approx(weighted, rel=1e-4)


def test_distances_by_hand() -> None:
    student, teacher = policy(1), policy(0)
    rollout = collate(EXAMPLES[:1], 0)
    with torch.no_grad():
        p, q = (one.log_probs(one.hidden(rollout)).exp() for one in (teacher, student))
    found = mean_distances(student, teacher, [rollout])
    assert found["tv"] == pytest.approx(float((p - q).abs().sum(-1).mean()) / 2, rel=1e-4)
    assert found["kl"] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    assert found["rkl"] == pytest.approx(float((q * (q / p).log()).sum(-1).mean()), rel=1e-4)


def test_dropout_is_off() -> None:
    student, teacher = policy(1, dropout_rate=0.5).train(), policy(0, dropout_rate=0.5).train()
    assert run(student, teacher) == run(student.train(), teacher.train())
