"""Decoding and measuring held-out prompts: fixed by the seed, in the order of the rows, for any policy."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from amd_lightning.data.embedded import is_correct, samsum_rows
from amd_lightning.data.examples import Limits, PromptTemplate, TokenisedExample, collate, tokenise
from amd_lightning.data.samsum import to_example
from amd_lightning.data.tokenizer import train_tokenizer
from amd_lightning.evaluation.decoding import Decoding, batches, respond_to_all, response_tokens
from amd_lightning.evaluation.distances import DISTANCES, Chunk
from amd_lightning.evaluation.harness import Evaluation, evaluate, evaluate_text
from amd_lightning.evaluation.metrics import bleu, scorers
from amd_lightning.policies import Policy
from tests.helpers import t5

ROWS = [to_example(row) for row in samsum_rows("test", 7, 0)]
TOKENIZER = train_tokenizer([example.prompt for example in ROWS], 280)
EXAMPLES, _ = tokenise(
    ROWS, TOKENIZER, PromptTemplate("{prompt}"), Limits(60, 8, "truncate", "truncate"), "test"
)
EXAMPLES = [  # prompts of very different lengths, so that decoding changes their order
    example._replace(prompt_ids=[*example.prompt_ids[: 5 + 8 * (row % 4)], 1])
    for row, example in enumerate(EXAMPLES)
]
SCORERS = scorers(("rouge_l", "accuracy"), is_correct)
DECODING = Decoding(max_tokens=6, batch_size=3)
WHOLE = {"exact_match", "exact_match_gap", "ngram_gap", "length_gap", "mmd_squared", "worst_case"}
PROBES = {"probe_off", "probe_on", "probe_train_off", "probe_train_on"}


def policy(seed: int, **fields: Any) -> Policy:
    return t5(seed, vocab_size=len(TOKENIZER), **fields)


def teacher_samples(teacher: Policy, samples: int, seed: int = 100) -> list[list[list[int]]]:
    order = list(batches(EXAMPLES, DECODING.batch_size))
    draws = [
        respond_to_all(teacher, EXAMPLES, DECODING, pad_id=0, seed=seed + draw) for draw in range(samples)
    ]
    return [response_tokens(draw, order) for draw in draws]


def run(student: Policy, teacher: Policy, *, samples: int = 1, seed: int = 0, **options: Any) -> Evaluation:
    arguments: dict[str, Any] = {"decoding": DECODING, "scorers": SCORERS, "teacher_samples": None}
    arguments |= options
    return evaluate(student, teacher, EXAMPLES, TOKENIZER, samples=samples, seed=seed, **arguments)


def test_a_teacher_is_at_no_distance_from_itself() -> None:
    metrics = run(policy(0), policy(0)).metrics
    for name in (f"{name}_{source}" for name in DISTANCES for source in ("off", "on")):
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
    metrics = run(policy(1), policy(0), scorers=scorers(("rouge_l", "accuracy"), None)).metrics
    assert metrics["accuracy"] is None
    assert metrics["sampled_accuracy"] is None


def test_the_documented_metrics_are_all_there() -> None:
    names = {"rouge_l", "sampled_rouge_l", "accuracy", "sampled_accuracy", "response_tokens", *WHOLE}
    names |= {
        f"{name}_{source}"
        for distance in DISTANCES
        for name in (distance, f"{distance}_sequence")
        for source in ("off", "on")
    }
    names |= PROBES
    assert set(run(policy(1), policy(0)).metrics) == names
    documented = Evaluation.__doc__ or ""
    assert all(name in documented for name in names if "sequence" not in name)
    found = run(policy(1), policy(0), samples=2, teacher_samples=teacher_samples(policy(0), 2)).metrics
    assert set(found) == names
    assert None not in found.values()


def test_without_the_teachers_samples_the_costly_part_is_left_out() -> None:
    teacher = policy(0)
    full = run(policy(1), teacher, samples=2, teacher_samples=teacher_samples(teacher, 2)).metrics
    cheap = run(policy(1), teacher, samples=2).metrics
    assert {name for name, value in cheap.items() if value is None} == {*WHOLE, *PROBES}
    assert {name: value for name, value in full.items() if cheap[name] is not None} == {
        name: value for name, value in cheap.items() if value is not None
    }


@pytest.mark.parametrize("ours, theirs", [(1, 3), (3, 1)])
def test_one_sample_is_no_pair(ours: int, theirs: int) -> None:
    teacher = policy(0)
    metrics = run(policy(1), teacher, samples=ours, teacher_samples=teacher_samples(teacher, theirs)).metrics
    assert {name for name, value in metrics.items() if value is None} == {"exact_match_gap", "mmd_squared"}


def test_how_prompts_are_batched_changes_nothing() -> None:
    student, teacher = policy(1), policy(0)
    samples = teacher_samples(teacher, 3)

    def measured(batch_size: int) -> dict[str, float | None]:
        # Off-policy states and the teacher's samples are the same; the student's own draws are not.
        decoding = Decoding(6, batch_size=batch_size)
        metrics = run(student, teacher, samples=2, decoding=decoding, teacher_samples=samples).metrics
        return {name: value for name, value in metrics.items() if name.endswith("_off")}

    one, other = measured(1), measured(7)
    assert {name: pytest.approx(value, rel=1e-3, abs=1e-6) for name, value in one.items()} == other


def test_all_draws_to_a_prompt_are_compared_with_the_teachers() -> None:
    """By hand from the responses: batches, draws and prompts are not mixed up."""
    student, teacher = policy(1, sharpness=12.0), policy(1, sharpness=11.0)
    theirs = teacher_samples(teacher, 3)
    found = run(student, teacher, samples=2, seed=0, teacher_samples=theirs).metrics
    ours = teacher_samples(student, 2, seed=0)
    matches = [our[row] == their[row] for row in range(len(EXAMPLES)) for our in ours for their in theirs]
    assert 0.0 < (found["exact_match"] or 0.0) < 1.0
    assert found["exact_match"] == pytest.approx(sum(matches) / len(matches))
    lengths = [sum(len(ids) for draw in draws for ids in draw) / len(draws) for draws in (ours, theirs)]
    assert found["length_gap"] == pytest.approx((lengths[0] - lengths[1]) / len(EXAMPLES))


def test_the_teachers_own_gaps_are_those_of_two_sets_of_samples() -> None:
    teacher = policy(0)
    found = run(teacher, teacher, samples=3, teacher_samples=teacher_samples(teacher, 3)).metrics
    assert found["worst_case"] == pytest.approx(0.0, abs=1e-5)
    assert found["probe_off"] == found["probe_on"] == 0.0
    assert found["ngram_gap"] is not None
    assert found["ngram_gap"] > 0.1  # the floor that a student cannot be expected to fall below
    other = run(policy(1), teacher, samples=3, teacher_samples=teacher_samples(teacher, 3)).metrics
    for name in ("ngram_gap", "mmd_squared", "worst_case"):
        assert (other[name] or 0.0) > (found[name] or 0.0)


def test_a_training_critic_is_measured_on_the_states_of_its_source() -> None:
    student, teacher = policy(1), policy(0)

    def critic(off_policy: bool, chunk: Chunk) -> torch.Tensor:
        sign = (chunk.log_p - chunk.log_q).sign()  # the best within ±1 on one side, half of its reverse
        return sign if off_policy else -0.5 * sign

    plain, found = run(student, teacher).metrics, run(student, teacher, critic=critic).metrics
    assert found["gap_over_tv_off"] == pytest.approx(1.0, rel=1e-4)
    assert found["gap_over_tv_on"] == pytest.approx(-0.5, rel=1e-4)
    assert found["moment_gap_on"] == pytest.approx(-(found["tv_on"] or 0.0), rel=1e-4)
    assert {name: found[name] for name in plain} == plain
    assert set(found) - set(plain) == {
        f"{name}_{side}" for name in ("moment_gap", "gap_over_tv") for side in ("off", "on")
    }
    assert run(teacher, teacher, critic=critic).metrics["gap_over_tv_off"] is None


def test_one_prompt_has_no_second_half_for_the_probe() -> None:
    teacher = policy(0)
    found = evaluate(
        policy(1),
        teacher,
        EXAMPLES[:1],
        TOKENIZER,
        decoding=DECODING,
        scorers=scorers(("rouge_l", "accuracy"), None),
        samples=2,
        seed=0,
        teacher_samples=[draw[:1] for draw in teacher_samples(teacher, 2)],
    ).metrics
    assert {found[name] for name in PROBES} == {None}
    assert found["mmd_squared"] is not None


def test_text_alone_is_scored_as_in_the_whole() -> None:
    student, teacher = policy(1), policy(0)
    whole = run(student, teacher, samples=2)
    text = evaluate_text(student, EXAMPLES, TOKENIZER, decoding=DECODING, scorers=SCORERS, samples=2, seed=0)
    assert text.predictions == whole.predictions
    assert set(text.metrics) == {"rouge_l", "sampled_rouge_l", "accuracy", "sampled_accuracy"}
    assert text.metrics == {name: whole.metrics[name] for name in text.metrics}


def test_a_score_of_samples_is_the_mean_over_draws() -> None:
    """A corpus score is not the mean over responses, so draws are not thrown together."""
    found = run(policy(1), policy(0), samples=3, scorers=scorers(("bleu",), None))
    draws = [row["response"] for row in found.predictions[7:]]
    golds = [example.example.references for example in EXAMPLES]
    each = [bleu(draws[start : start + 7], golds) for start in (0, 7, 14)]
    assert found.metrics["sampled_bleu"] == pytest.approx(sum(each) / 3)


def test_a_rule_of_decoding_changes_the_text_and_not_the_distances() -> None:
    student, teacher = policy(1, sharpness=8.0), policy(0)
    plain, ruled = (
        run(student, teacher, samples=2, decoding=Decoding(12, batch_size=3, no_repeat_ngram_size=size))
        for size in (0, 1)
    )
    repeats = [
        len(words) - len(set(words)) for words in (row["response"].split() for row in plain.predictions)
    ]
    assert sum(repeats) > 0
    assert [row["response"] for row in ruled.predictions] != [row["response"] for row in plain.predictions]
    assert {name: ruled.metrics[name] for name in ("tv_on", "kl_on", "tv_off")} == {
        name: plain.metrics[name] for name in ("tv_on", "kl_on", "tv_off")
    }


def test_dropout_is_off() -> None:
    student, teacher = policy(1, dropout_rate=0.5).train(), policy(0, dropout_rate=0.5).train()
    assert run(student, teacher) == run(student.train(), teacher.train())


def test_the_mean_of_the_rows_scores_is_the_metric() -> None:
    right = [example._replace(example=ROWS[3]) for example in EXAMPLES]  # one reference: something may match
    graded = dict(
        scorers(("rouge_l", "bleu", "accuracy", "unparsed"), None, parse=lambda text: text[:1] or None)
    )
    graded["accuracy"] = lambda texts, golds: sum(len(text) % 2 for text in texts) / len(texts)
    found = evaluate_text(policy(1), right, TOKENIZER, decoding=DECODING, scorers=graded, samples=2, seed=0)
    for kind, prefix in (("greedy", ""), ("sampled", "sampled_")):
        rows = [row["scores"] for row in found.predictions if row["kind"] == kind]
        assert all(set(row) == {"rouge_l", "accuracy", "unparsed"} for row in rows), (
            "corpus BLEU has no share"
        )
        for name in rows[0]:
            mean = sum(row[name] for row in rows) / len(rows)
            assert mean == pytest.approx(found.metrics[prefix + name], rel=1e-9)
    assert 0.0 < (found.metrics["sampled_accuracy"] or 0.0) < 1.0
    unchecked = run(policy(1), policy(0), scorers=scorers(("rouge_l", "accuracy"), None)).predictions
    assert set(unchecked[0]["scores"]) == {"rouge_l"}
    assert "context" not in unchecked[0]


def test_a_row_has_the_context_of_its_prompt() -> None:
    about = [example._replace(example=replace(ROWS[0], context="about it")) for example in EXAMPLES[:1]]
    found = evaluate_text(policy(1), about, TOKENIZER, decoding=DECODING, scorers={}, samples=1, seed=0)
    assert [row["context"] for row in found.predictions] == ["about it"] * 2
