"""Cutting batches and joining responses change no token and no weight."""

import torch

from amd_lightning.types import Batch, join_responses
from tests.helpers import rollout


def a_batch() -> Batch:
    states = rollout([5, 3, 2], [[4, 2], [1, 3], [2, 2]], [[True, False]] * 3)
    weight = torch.rand(states.response_mask.shape, generator=torch.Generator().manual_seed(0))
    return Batch(states, weight * states.response_mask)


def test_micro_batches_hold_every_token_once_with_its_weight() -> None:
    batch = a_batch()
    for size in (1, 2, 3, 9):
        micro_batches = list(batch.micro_batches(size))
        assert [len(micro.weight) for micro in micro_batches] == {1: [1, 1, 1], 2: [2, 1]}.get(size, [3])
        ids = torch.cat([m.rollout.response_ids[m.rollout.response_mask] for m in micro_batches])
        weight = torch.cat([m.weight[m.rollout.response_mask] for m in micro_batches])
        mask = batch.rollout.response_mask
        torch.testing.assert_close(ids, batch.rollout.response_ids[mask], rtol=0, atol=0)
        torch.testing.assert_close(weight, batch.weight[mask], rtol=0, atol=0)


def test_rows_cut_the_columns_that_are_padding_in_all_of_them() -> None:
    cut = a_batch().rollout.rows(1, 3)
    assert cut.prompt.input_ids.shape == cut.prompt.attention_mask.shape == (2, 3)
    assert cut.response_ids.shape == cut.response_mask.shape == (2, 2, 3)
    assert cut.off_policy.tolist() == [[True, False]] * 2


def test_rows_cut_padding_on_the_left_too() -> None:
    whole = rollout([2, 2], [[2], [3]], [[True]] * 2)
    left = torch.nn.functional.pad
    padded = whole._replace(prompt=type(whole.prompt)(*(left(part, (3, 0)) for part in whole.prompt)))
    torch.testing.assert_close(padded.rows(0, 2).prompt.input_ids, whole.prompt.input_ids)


def test_joined_responses_stand_side_by_side() -> None:
    short, long = (
        rollout([2, 3], [[2], [1]], [[True]] * 2),
        rollout([2, 3], [[4], [3]], [[False]] * 2, seed=5),
    )
    joined = join_responses([short, long])
    assert joined.response_ids.shape == (2, 2, 4)
    assert joined.response_mask.sum(-1).tolist() == [[2, 4], [1, 3]]
    assert joined.off_policy.tolist() == [[True, False]] * 2
    torch.testing.assert_close(joined.response_ids[:, 1], long.response_ids[:, 0])
    torch.testing.assert_close(joined.response_ids[:, 0, :2], short.response_ids[:, 0])


def test_to_moves_every_tensor() -> None:
    moved = a_batch().rollout.to(torch.device("meta"))
    tensors = [*moved.prompt, moved.response_ids, moved.response_mask, moved.off_policy]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
