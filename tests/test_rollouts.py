"""Who writes the states of an update, and each token's share of the loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amd_lightning.backends import HfBackend
from amd_lightning.policies import Policy
from amd_lightning.rollouts import BackendSampler, collect, token_weights
from amd_lightning.types import Batch, PromptBatch, Responses, Rollout
from tests.helpers import prompts, rollout, t5

BOTH = rollout([3, 2], [[4, 2], [1, 5]], [[True, False]] * 2)


def no_sampler(policy: Policy, prompt: PromptBatch) -> Rollout:
    raise AssertionError("nothing may be sampled")


def test_token_means_by_hand() -> None:
    weight = token_weights(BOTH, 0.25, "token")
    off, on = 0.25 / 5, 0.75 / 7  # 4 + 1 off-policy tokens, 2 + 5 on-policy ones
    expected = [[[off] * 4 + [0], [on] * 2 + [0] * 3], [[off] + [0] * 4, [on] * 5]]
    torch.testing.assert_close(weight, torch.tensor(expected))


def test_sequence_means_by_hand() -> None:
    weight = token_weights(BOTH, 0.25, "sequence")
    expected = torch.where(BOTH.off_policy.unsqueeze(-1), 0.25 / 2, 0.75 / 2) * BOTH.response_mask
    torch.testing.assert_close(weight, expected)


@given(
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=3, max_size=3), min_size=1, max_size=4),
    writers=st.lists(st.booleans(), min_size=1, max_size=1),
    beta=st.floats(0.0, 1.0),
)
@settings(max_examples=50, deadline=None)
def test_the_weights_of_a_token_mean_sum_to_one(
    lengths: list[list[int]], writers: list[bool], beta: float
) -> None:
    states = rollout([2] * len(lengths), lengths, [[True, False, *writers]] * len(lengths))
    weight = token_weights(states, beta, "token")
    assert float(weight.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(weight[states.off_policy].sum()) == pytest.approx(beta, abs=1e-5)
    assert not weight[~states.response_mask].any()


@pytest.mark.parametrize("normalise", ["token", "sequence"])
def test_a_source_without_a_share_weighs_nothing(normalise: str) -> None:
    for beta, source in ((1.0, ~BOTH.off_policy), (0.0, BOTH.off_policy)):
        assert not token_weights(BOTH, beta, normalise)[source].any()


@pytest.mark.parametrize("normalise", ["token", "sequence"])
def test_micro_batches_share_the_batchs_weights(normalise: str) -> None:
    batch = Batch(BOTH, token_weights(BOTH, 0.3, normalise))
    parts = [micro.weight[micro.rollout.response_mask] for micro in batch.micro_batches(1)]
    torch.testing.assert_close(torch.cat(parts), batch.weight[BOTH.response_mask])


def test_weights_are_float32_whatever_torchs_default() -> None:
    expected = token_weights(BOTH, 0.3, "token")
    torch.set_default_dtype(torch.bfloat16)
    try:
        torch.testing.assert_close(token_weights(BOTH, 0.3, "token"), expected, rtol=0, atol=0)
    finally:
        torch.set_default_dtype(torch.float32)


STORED = rollout([3, 2], [[4], [1]], [[True]] * 2)


def test_nothing_is_sampled_at_beta_1() -> None:
    batch = collect(STORED, t5(), no_sampler, 1.0, "token")
    assert batch.rollout.off_policy.tolist() == [[True], [True]]
    torch.testing.assert_close(batch.rollout.response_ids, STORED.response_ids)


def test_stored_responses_are_left_out_at_beta_0() -> None:
    batch = collect(STORED, t5(), BackendSampler(6), 0.0, "token")
    assert batch.rollout.off_policy.tolist() == [[False], [False]]
    assert float(batch.weight.sum()) == pytest.approx(1.0)


def test_both_sources_answer_the_same_prompts_in_between() -> None:
    policy = t5()
    torch.manual_seed(0)
    batch = collect(STORED, policy, BackendSampler(6), 0.5, "token")
    assert batch.rollout.off_policy.tolist() == [[True, False]] * 2
    assert batch.rollout.prompt is STORED.prompt
    assert batch.rollout.response_mask[:, 0].sum(-1).tolist() == [4, 1]
    torch.manual_seed(0)
    ids, mask = policy.respond(STORED.prompt, 6)
    length = ids.shape[-1]
    torch.testing.assert_close(batch.rollout.response_ids[:, 1, :length], ids)
    torch.testing.assert_close(batch.rollout.response_mask[:, 1, :length], mask)


def test_the_sampler_marks_its_responses_and_keeps_its_limit() -> None:
    written = BackendSampler(3, temperature=2.0)(t5(), prompts([2, 4, 3]))
    assert written.response_ids.shape[:2] == (3, 1)
    assert written.response_ids.shape[-1] <= 3
    assert not written.off_policy.any()
    assert written.response_mask.any(-1).all()


def test_several_responses_to_a_prompt_stand_beside_each_other() -> None:
    policy, some = t5(), prompts([2, 4, 3])
    torch.manual_seed(0)
    written = BackendSampler(5, responses=3)(policy, some)
    assert written.response_ids.shape == (3, 3, written.response_mask.shape[-1])
    assert written.prompt is some
    assert written.off_policy.tolist() == [[False] * 3] * 3
    torch.manual_seed(0)
    ids, mask = policy.respond(PromptBatch(*(part.repeat_interleave(3, dim=0) for part in some)), 5)
    torch.testing.assert_close(written.response_ids.flatten(0, 1), ids, rtol=0, atol=0)
    torch.testing.assert_close(written.response_mask.flatten(0, 1), mask, rtol=0, atol=0)
    assert not torch.equal(written.response_ids[:, 0], written.response_ids[:, 1])


@torch.no_grad()
def test_a_response_answers_the_prompt_that_it_stands_beside() -> None:
    """Greedy ones, so that each can be compared with the answer to its prompt alone."""
    policy, some = t5(sharpness=30.0), prompts([2, 5, 4, 3])
    torch.manual_seed(0)
    written = BackendSampler(6, temperature=1e-3, responses=2)(policy, some)
    best, _ = policy.respond(some, 6, sample=False)
    for copy in range(2):
        torch.testing.assert_close(written.response_ids[:, copy], best, rtol=0, atol=0)
    assert len({tuple(row) for row in best.tolist()}) > 1


@pytest.mark.parametrize("normalise", ["token", "sequence"])
def test_each_source_keeps_its_share_however_many_responses_it_has(normalise: str) -> None:
    torch.manual_seed(0)
    batch = collect(STORED, t5(), BackendSampler(6, responses=3), 0.25, normalise)
    assert batch.rollout.off_policy.tolist() == [[True, False, False, False]] * 2
    per_response = batch.weight.sum(-1)
    if normalise == "token":
        shares = [
            float(batch.weight[of].sum()) for of in (batch.rollout.off_policy, ~batch.rollout.off_policy)
        ]
        assert shares == pytest.approx([0.25, 0.75])
    else:
        lengths = batch.rollout.response_mask.sum(-1)
        expected = torch.where(batch.rollout.off_policy, 0.25 / 2, 0.75 / 6) * lengths
        torch.testing.assert_close(per_response, expected)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_teachers_samples_come_with_the_batch(beta: float) -> None:
    """Also at beta 0, where nothing else of the stored rows is left but the prompts."""
    samples = Responses(torch.full((2, 3, 4), 7), torch.ones(2, 3, 4, dtype=torch.bool))
    batch = collect(STORED._replace(samples=samples), t5(), BackendSampler(6, responses=2), beta, "token")
    assert batch.rollout.samples is samples


# -- teacher-mixed sampling ------------------------------------------------------------------------


def test_a_share_of_nothing_is_the_student_alone() -> None:
    student, teacher, some = t5(1), t5(2, d_model=24), prompts([2, 4, 3])
    written = []
    for sampler in (
        BackendSampler(6),
        BackendSampler(6, backend=HfBackend(teacher, 0.0)),
        BackendSampler(6, backend=HfBackend(teacher)),
    ):
        torch.manual_seed(0)
        written.append(sampler(student, some).response_ids)
    assert all(torch.equal(ids, written[0]) for ids in written)
    torch.manual_seed(0)
    mixed = BackendSampler(6, backend=HfBackend(teacher, 0.5))(student, some)
    assert not torch.equal(mixed.response_ids, written[0])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_tokens_are_drawn_from_the_mixture_at_every_step(share: float) -> None:
    """The teacher always writes 5 and the student 9: who wrote a token can be told from it."""
    teacher, student = (fixed_on(token) for token in (5, 9))
    torch.manual_seed(0)
    sampler = BackendSampler(4, responses=1000, backend=HfBackend(teacher, share))
    ids = sampler(student, prompts([3, 2])).response_ids.flatten(0, 1)
    assert set(ids.unique().tolist()) == {5, 9}
    by_teacher = (ids == 5).float()
    torch.testing.assert_close(by_teacher.mean(0), torch.full((4,), share), rtol=0, atol=0.035)
    # Whoever wrote the token before.
    again = by_teacher[:, 1:][by_teacher[:, :-1].bool()].mean()
    assert again.item() == pytest.approx(share, abs=0.035)


def fixed_on(token: int) -> Policy:
    """A policy that all but always writes one token: its head is nothing but a bias."""
    policy = t5(sharpness=0.0)
    head = policy.model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    with torch.no_grad():
        head.bias[token] = 30.0
    return policy
