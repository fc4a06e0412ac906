"""Gaps between whole responses, by hand and by enumeration."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch

from amd_lightning.evaluation.distances import compare
from amd_lightning.evaluation.sequences import (
    exact_match,
    mean_mmd_squared,
    ngram_gap,
    sequence_gaps,
    worst_case,
)
from amd_lightning.objectives.kernels import ngram_kernel
from amd_lightning.types import PromptBatch, Rollout
from tests.helpers import EOS, VOCABULARY, prompts, t5

A, B, C = (5, EOS), (5, 6, EOS), (7, EOS)


def written(*to_prompts: Sequence[tuple[int, ...]]) -> Rollout:
    """Responses [B][C] as a rollout; what is behind a response's end is anything."""
    length = max(len(response) for responses in to_prompts for response in responses)
    ids = torch.full((len(to_prompts), len(to_prompts[0]), length), 9)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, responses in enumerate(to_prompts):
        for column, response in enumerate(responses):
            ids[row, column, : len(response)] = torch.tensor(response)
            mask[row, column, : len(response)] = True
    return Rollout(prompts([2] * len(to_prompts)), ids, mask, torch.zeros(ids.shape[:2], dtype=torch.bool))


def test_exact_match_counts_pairs() -> None:
    assert exact_match([[A, A]], [[A, B, B]]) == pytest.approx(2 / 6)
    assert exact_match([[A, C], [B, B]], [[A, B], [B, B]]) == pytest.approx((1 / 4 + 1) / 2)
    assert exact_match([[A]], [[(5,)]]) == 0.0  # without its EOS it is another response


def test_the_gap_of_exact_match_is_to_the_teachers_own_pairs() -> None:
    # The teacher's three pairs of draws: A = A, A ≠ B, A ≠ B. Of the six with the student two are equal.
    found = sequence_gaps([written([C, A])], [written([A, A, B])])
    assert found["exact_match"] == pytest.approx(2 / 6)
    assert found["exact_match_gap"] == pytest.approx(1 / 3 - 2 / 6)
    assert sequence_gaps([written([A, A])], [written([A, A])])["exact_match_gap"] == 0.0


def test_ngram_gap_by_hand() -> None:
    assert ngram_gap([[A, B]], [[B, A]]) == 0.0
    assert ngram_gap([[A, A]], [[C, C]]) == 1.0
    # A: ^5 5$; B: ^5 56 6$. The student's shares 1, ½, ½, ½; the teacher's ^5 1, 5$ 1.
    assert ngram_gap([[A, B]], [[A, A]]) == pytest.approx((0 + 0.5 + 0.5 + 0.5) / (2.5 + 2.0))
    assert ngram_gap([[A, B], [A, A]], [[A, A], [A, A]]) == pytest.approx(1.5 / 4.5 / 2)
    twice = (5, 6, 5, 6, EOS)  # presence: how often within one response does not count
    assert ngram_gap([[twice]], [[(5, 6, 5, 6, 5, 6, EOS)]]) == 0.0


def test_an_empty_response_has_a_bigram() -> None:
    assert ngram_gap([[(EOS,)]], [[A]]) == 1.0
    assert ngram_gap([[(EOS,)]], [[(EOS,)]]) == 0.0


def test_length_gap_is_signed() -> None:
    assert sequence_gaps([written([A, B])], [written([C, A])])["length_gap"] == pytest.approx(0.5)
    assert sequence_gaps([written([A])], [written([B])])["length_gap"] == pytest.approx(-1.0)


def test_mmd_by_hand() -> None:
    def k(one: tuple[int, ...], other: tuple[int, ...]) -> float:
        a, b = (written([response]) for response in (one, other))
        return float(ngram_kernel(a.response_ids, a.response_mask, b.response_ids, b.response_mask))

    by_hand = [
        k(A, B) - 2 * (k(A, A) + k(A, C) + k(B, A) + k(B, C)) / 4 + k(A, C),
        k(C, C) - 2 * (k(C, B) + k(C, B) + k(C, A) + k(C, A)) / 4 + k(A, B),
    ]
    ours, theirs = written([A, B], [C, C]), written([A, C], [B, A])
    assert mean_mmd_squared([ours], [theirs]) == pytest.approx(sum(by_hand) / 2, rel=1e-5)
    apart = [[written(rows)] for rows in ([A, B], [C, C])], [[written(rows)] for rows in ([A, C], [B, A])]
    in_two = (list(itertools.chain(*side)) for side in apart)
    assert mean_mmd_squared(*in_two) == pytest.approx(sum(by_hand) / 2, rel=1e-5)


def test_two_sets_of_samples_of_one_policy_are_at_no_distance_on_average() -> None:
    policy = t5(0)
    prompt = PromptBatch(*(field.expand(400, -1) for field in prompts([4])))
    torch.manual_seed(0)

    def draws(count: int) -> list[Rollout]:
        ids, mask = zip(*(policy.respond(prompt, 4) for _ in range(count)), strict=True)
        width = max(one.shape[1] for one in ids)
        padded = [torch.nn.functional.pad(one, (0, width - one.shape[1])) for one in (*ids, *mask)]
        ids_mask = torch.stack(padded[:count], 1), torch.stack(padded[count:], 1)
        return [Rollout(prompt, ids_mask[0], ids_mask[1], torch.zeros(400, count, dtype=torch.bool))]

    found = sequence_gaps(draws(3), draws(4))
    assert found["mmd_squared"] == pytest.approx(0.0, abs=0.02)
    assert found["exact_match_gap"] == pytest.approx(0.0, abs=0.02)
    assert found["length_gap"] == pytest.approx(0.0, abs=0.15)


def test_one_response_is_no_pair() -> None:
    for ours, theirs in (([A], [A, B]), ([A, B], [A])):
        found = sequence_gaps([written(ours)], [written(theirs)])
        assert {name for name, value in found.items() if value is None} == {"exact_match_gap", "mmd_squared"}


# -- the worst case ----------------------------------------------------------------------------------


def test_the_worst_case_in_exact_proportions() -> None:
    # p = (½, ½), q = (¼, ¾): Σ |p − q| = ½.
    teacher = torch.tensor([2.0, 2.0, 2 / 3, 2 / 3]).log()
    student = torch.tensor([2.0, 2 / 3, 2 / 3, 2 / 3]).log()
    assert worst_case(student, teacher) == pytest.approx(0.5)
    assert worst_case(student, teacher.repeat(3)) == pytest.approx(0.5)  # halves, however many are in each
    assert worst_case(torch.zeros(3), torch.zeros(3)) == 0.0
    assert worst_case(torch.tensor([-math.inf]), torch.tensor([math.inf])) == pytest.approx(2.0)


def test_the_worst_case_of_two_models_against_all_of_their_responses() -> None:
    """Responses of at most two tokens, one prompt: EOS, or a token and any other."""
    student, teacher = t5(1, sharpness=1.5), t5(0, sharpness=1.5)
    prompt = prompts([4])
    first = [token for token in range(VOCABULARY) if token != EOS]
    responses = [(EOS,), *itertools.product(first, range(VOCABULARY))]
    everything = written(responses)._replace(prompt=prompt)
    with torch.no_grad():
        log_p, log_q = (
            torch.stack([part.sum() for part in chosen.split(everything.response_mask.sum(-1)[0].tolist())])
            for policy in (teacher, student)
            for chosen in [
                policy.log_probs(policy.hidden(everything))
                .gather(-1, everything.response_ids[everything.response_mask].unsqueeze(-1))
                .squeeze(-1)
            ]
        )
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-4)
    exact = float((log_p.exp() - log_q.exp()).abs().sum())
    torch.testing.assert_close(
        compare(student, teacher, [everything]).log_ratio.float(), log_p - log_q, rtol=1e-4, atol=1e-4
    )

    count = 4000
    copies = PromptBatch(*(field.expand(count, -1) for field in prompt))
    torch.manual_seed(0)
    ratios = []
    for writer in (student, teacher):
        ids, mask = writer.respond(copies, 2)
        off_policy = torch.zeros(count, 1, dtype=torch.bool)
        rollout = Rollout(copies, ids.unsqueeze(1), mask.unsqueeze(1), off_policy)
        ratios.append(compare(student, teacher, [rollout]).log_ratio)
    assert 0.3 < exact < 1.7
    assert worst_case(*ratios) == pytest.approx(exact, abs=0.04)
