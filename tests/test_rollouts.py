"""Who writes the states of an update, and each token's share of the loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amd_lightning.policies import Policy
from amd_lightning.rollouts import HfSampler, collect, token_weights
from amd_lightning.types import Batch, PromptBatch, Rollout
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
    batch = collect(STORED, t5(), HfSampler(6), 0.0, "token")
    assert batch.rollout.off_policy.tolist() == [[False], [False]]
    assert float(batch.weight.sum()) == pytest.approx(1.0)


def test_both_sources_answer_the_same_prompts_in_between() -> None:
    policy = t5()
    torch.manual_seed(0)
    batch = collect(STORED, policy, HfSampler(6), 0.5, "token")
    assert batch.rollout.off_policy.tolist() == [[True, False]] * 2
    assert batch.rollout.prompt is STORED.prompt
    assert batch.rollout.response_mask[:, 0].sum(-1).tolist() == [4, 1]
    torch.manual_seed(0)
    ids, mask = policy.respond(STORED.prompt, 6)
    length = ids.shape[-1]
    torch.testing.assert_close(batch.rollout.response_ids[:, 1, :length], ids)
    torch.testing.assert_close(batch.rollout.response_mask[:, 1, :length], mask)


def test_the_sampler_marks_its_responses_and_keeps_its_limit() -> None:
    written = HfSampler(3, temperature=2.0)(t5(), prompts([2, 4, 3]))
    assert written.response_ids.shape[:2] == (3, 1)
    assert written.response_ids.shape[-1] <= 3
    assert not written.off_policy.any()
    assert written.response_mask.any(-1).all()
