"""One pass over responses: what it finds is what a computation without chunks would."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from amd_lightning.data.examples import collate
from amd_lightning.evaluation.distances import DISTANCES, Chunk, CriticGap, compare
from amd_lightning.policies import Policy
from amd_lightning.types import Rollout
from tests.helpers import VOCABULARY, rollout, t5, tokenised

STUDENT, TEACHER = t5(1), t5(0)
EXAMPLES = tokenised(9)
ROLLOUTS = [
    collate(EXAMPLES[:4], 0),
    rollout([3, 5], [[2, 4, 1], [3, 1, 5]], [[False] * 3] * 2),
    collate(EXAMPLES[4:], 0),
]
BY_HAND: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tv": lambda p, q: (p - q).abs().sum(-1) / 2,
    "kl": lambda p, q: (p * (p / q).log()).sum(-1),
    "rkl": lambda p, q: (q * (q / p).log()).sum(-1),
    "js": lambda p, q: (p * (2 * p / (p + q)).log() + q * (2 * q / (p + q)).log()).sum(-1) / 2,
}


def whole(policy: Policy, rollouts: list[Rollout]) -> Tensor:
    """All of [N, V] at once, in double precision."""
    with torch.no_grad():
        return torch.cat([policy.log_probs(policy.hidden(one)) for one in rollouts]).double()


def lengths(rollouts: list[Rollout]) -> list[int]:
    return [int(n) for one in rollouts for n in one.response_mask.sum(-1).flatten()]


@pytest.mark.parametrize("logits_at_once", [1, 2 * 3 * VOCABULARY, 2**22])
def test_distances_and_ratios_are_those_of_a_naive_computation(logits_at_once: int) -> None:
    found = compare(STUDENT, TEACHER, ROLLOUTS, logits_at_once=logits_at_once)
    log_p, log_q = whole(TEACHER, ROLLOUTS), whole(STUDENT, ROLLOUTS)
    assert set(found.distances) == set(DISTANCES) == set(BY_HAND)
    for name, by_hand in BY_HAND.items():
        expected = by_hand(log_p.exp(), log_q.exp())
        torch.testing.assert_close(found.distances[name], expected, rtol=1e-4, atol=1e-6)
        assert found.per_token()[name] == pytest.approx(float(expected.mean()), rel=1e-4)
        responses = [float(part.sum()) for part in expected.split(lengths(ROLLOUTS))]
        assert found.per_sequence()[name] == pytest.approx(sum(responses) / len(responses), rel=1e-4)

    actions = torch.cat([one.response_ids[one.response_mask] for one in ROLLOUTS]).unsqueeze(-1)
    ratio = (log_p - log_q).gather(-1, actions).squeeze(-1)
    expected = torch.stack([part.sum() for part in ratio.split(lengths(ROLLOUTS))])
    torch.testing.assert_close(found.log_ratio, expected, rtol=1e-4, atol=1e-5)


def test_chunks_never_hold_more_than_they_may() -> None:
    seen: list[Chunk] = []
    compare(STUDENT, TEACHER, ROLLOUTS, logits_at_once=2 * 5 * VOCABULARY, watch=seen.append)
    assert max(len(chunk.log_p) for chunk in seen) == 5
    assert {chunk.log_p.numel() == chunk.log_q.numel() == len(chunk.actions) * VOCABULARY for chunk in seen}
    expected = torch.repeat_interleave(torch.tensor(lengths(ROLLOUTS)))
    assert torch.cat([chunk.response for chunk in seen]).tolist() == expected.tolist()
    with torch.no_grad():
        hidden = torch.cat([TEACHER.hidden(one) for one in ROLLOUTS])
    torch.testing.assert_close(torch.cat([chunk.teacher_hidden for chunk in seen]), hidden)


def test_a_critics_gap_is_the_mean_over_all_tokens() -> None:
    def critic(chunk: Chunk) -> Tensor:  # of what it may see: both policies, both features
        return chunk.log_p * chunk.student_hidden[:, :1] + chunk.teacher_hidden[:, :1] * chunk.log_q

    gap = CriticGap(critic)
    compare(STUDENT, TEACHER, ROLLOUTS, logits_at_once=2 * 5 * VOCABULARY, watch=gap.add)
    log_p, log_q = whole(TEACHER, ROLLOUTS), whole(STUDENT, ROLLOUTS)
    with torch.no_grad():
        first = [torch.cat([one.hidden(some) for some in ROLLOUTS])[:, :1] for one in (STUDENT, TEACHER)]
    expected = ((log_p.exp() - log_q.exp()) * (log_p * first[0] + first[1] * log_q)).sum(-1).mean()
    assert gap.mean() == pytest.approx(float(expected), rel=1e-4)


def test_how_rows_are_batched_changes_nothing() -> None:
    together = compare(STUDENT, TEACHER, [collate(EXAMPLES, 0)])
    alone = compare(STUDENT, TEACHER, [collate([example], 0) for example in EXAMPLES])
    for name, values in together.distances.items():
        torch.testing.assert_close(values, alone.distances[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.log_ratio, alone.log_ratio, rtol=1e-4, atol=1e-5)


def test_the_models_are_left_in_evaluation_mode_without_a_graph() -> None:
    student, teacher = t5(1, dropout_rate=0.5).train(), t5(0, dropout_rate=0.5).train()
    one, other = (compare(student.train(), teacher.train(), ROLLOUTS[:1]) for _ in range(2))
    assert one.per_token() == other.per_token()
    assert not student.training
    assert not teacher.training
    assert not one.log_ratio.requires_grad
