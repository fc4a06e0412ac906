"""The order of training rows: every row once an epoch, a function of seed and update alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amd_lightning.data.datamodule import DistillationDataModule, UpdateSampler
from tests.helpers import PAD, tokenised

SIZES = {"rows": st.integers(1, 20), "batch_size": st.integers(1, 7), "seed": st.integers(0, 3)}


@given(**SIZES, epochs=st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_every_row_comes_once_an_epoch_and_no_batch_is_short(
    rows: int, batch_size: int, seed: int, epochs: int
) -> None:
    updates = -(-rows * epochs // batch_size)
    batches = list(UpdateSampler(rows, batch_size, updates, seed))
    assert {len(batch) for batch in batches} == {batch_size}
    order = [row for batch in batches for row in batch]
    for epoch in range(epochs):
        assert sorted(order[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(**SIZES, start=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_a_run_can_start_anywhere(rows: int, batch_size: int, seed: int, start: int) -> None:
    whole = list(UpdateSampler(rows, batch_size, 10, seed))
    rest = UpdateSampler(rows, batch_size, 10, seed, start)
    assert list(rest) == list(rest) == whole[start:]
    assert len(rest) == 10 - start


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    (one,), (other,) = (list(UpdateSampler(30, 30, 1, seed)) for seed in (0, 1))
    first, second = UpdateSampler(30, 30, 2, 0)
    assert one != other
    assert first == one
    assert second != one
    assert one != list(range(30))


def test_torchs_random_stream_has_no_say() -> None:
    torch.manual_seed(0)
    one = list(UpdateSampler(9, 2, 4, 0))
    torch.manual_seed(1)
    assert list(UpdateSampler(9, 2, 4, 0)) == one


def test_the_loader_gives_one_off_policy_rollout_an_update() -> None:
    rows = tokenised(5)
    data = DistillationDataModule(rows, batch_size=2, updates=4, seed=0, pad_id=PAD)
    batches = list(data.train_dataloader())
    assert len(batches) == 4
    for chosen, rollout in zip(UpdateSampler(5, 2, 4, 0), batches, strict=True):
        assert rollout.off_policy.tolist() == [[True], [True]]
        for place, row in enumerate(chosen):
            ids = rollout.response_ids[place, 0][rollout.response_mask[place, 0]]
            assert ids.tolist() == rows[row].response_ids
            prompt = rollout.prompt.input_ids[place][rollout.prompt.attention_mask[place].bool()]
            assert prompt.tolist() == rows[row].prompt_ids


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_may_be_larger_than_the_data(rows: int) -> None:
    (batch,) = UpdateSampler(rows, 7, 1, 0)
    assert len(batch) == 7
    assert set(batch) == set(range(rows))


def test_a_loader_resumes_at_the_exact_batch() -> None:
    rows = tokenised(7)

    def loader(start: int) -> list[list[list[int]]]:
        data = DistillationDataModule(rows, batch_size=3, updates=9, seed=4, pad_id=PAD, start=start)
        return [rollout.response_ids.tolist() for rollout in data.train_dataloader()]

    whole = loader(0)
    assert len(whole) == 9
    for start in (1, 4, 8):
        torch.manual_seed(start)
        assert loader(start) == whole[start:]
