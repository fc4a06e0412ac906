"""Cutting batches and joining responses change no token and no weight."""

import torch

from amd_lightning.types import Batch, Responses, Rollout, Tokens, join_responses
from tests.helpers import rollout


def a_batch() -> Batch:
    states = rollout([5, 3, 2], [[4, 2], [1, 3], [2, 2]], [[True, False]] * 3)
    weight = torch.rand(states.response_mask.shape, generator=torch.Generator().manual_seed(0))
    return Batch(states, weight * states.response_mask)


def with_samples(some: Rollout, count: int = 2, length: int = 5) -> Rollout:
    """Samples whose tokens say which prompt and which sample they are of."""
    prompts = len(some.response_ids)
    ids = (10 * torch.arange(prompts).unsqueeze(1) + torch.arange(count)).unsqueeze(-1).repeat(1, 1, length)
    return some._replace(samples=Responses(ids, torch.ones_like(ids, dtype=torch.bool)))


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
    moved = with_samples(a_batch().rollout).to(torch.device("meta"))
    assert moved.samples is not None
    tensors = [*moved.prompt, moved.response_ids, moved.response_mask, moved.off_policy, *moved.samples]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert a_batch().rollout.to(torch.device("meta")).samples is None


def test_samples_go_where_their_prompts_go() -> None:
    whole = with_samples(a_batch().rollout)
    assert whole.samples is not None
    batch = Batch(whole, a_batch().weight)
    assert [micro.rollout.samples.ids[:, :, 0].tolist() for micro in batch.micro_batches(2)] == [  # type: ignore[union-attr]
        [[0, 1], [10, 11]],
        [[20, 21]],
    ]
    own = rollout([5, 3, 2], [[2], [4], [1]], [[False]] * 3)
    assert join_responses([whole, own]).samples is whole.samples
    assert all(micro.rollout.samples is None for micro in a_batch().micro_batches(2))


def test_some_of_the_tokens() -> None:
    whole = Tokens(
        torch.rand(4, 2), torch.rand(4, 3), torch.arange(4), torch.rand(4), torch.tensor([True, False] * 2)
    )
    chosen = torch.tensor([3, 1])
    assert whole.at(slice(1, 3)).advantage is None
    for part, all_of_it in zip(whole.at(chosen)[:5], whole[:5], strict=True):
        torch.testing.assert_close(part, all_of_it[chosen], rtol=0, atol=0)
    judged = whole._replace(advantage=torch.tensor([0.0, 1.0, 2.0, 3.0]))
    found = judged.at(chosen).advantage
    assert found is not None
    assert found.tolist() == [3.0, 1.0]
