"""The training stream: one batch is one update, in an order that only the seed decides."""

from collections.abc import Iterator, Sequence
from functools import partial

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Sampler

from amd_lightning.data.examples import TokenisedExample, collate
from amd_lightning.types import Rollout


class UpdateSampler(Sampler[list[int]]):
    """The rows of update 0, 1, 2, …: seeded permutations of all rows, one behind another.

    A batch may run over the end of an epoch into the next, so that no row is ever left out and no
    batch is short. Which rows an update sees is a function of (seed, update) alone, so a run can
    start anywhere.

    Args:
        rows: how many there are.
        batch_size: rows an update.
        updates: how many updates.
        seed: of the order.
        start: the first update.
        share: the part of every batch to give, one rank's; None for all of it.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        updates: int,
        seed: int,
        start: int = 0,
        share: slice | None = None,
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.updates = updates
        self.seed = seed
        self.start = start
        self.share = share or slice(None)

    def __len__(self) -> int:
        return self.updates - self.start

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, np.arange(0)
        for update in range(self.start, self.updates):
            batch = []
            for position in range(update * self.batch_size, (update + 1) * self.batch_size):
                if position // self.rows != epoch:
                    epoch = position // self.rows
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
                batch.append(int(order[position % self.rows]))
            yield batch[self.share]


class DistillationDataModule(L.LightningDataModule):
    """Stored states for training: prompts with the responses of the data or of the teacher.

    Args:
        train: tokenised rows.
        batch_size: prompts an update.
        updates: how many batches the loader gives.
        seed: of the order.
        pad_id: fills prompts and responses up to a common length.
        start: the first update; a run that goes on sees the batches that it would have seen.
        share: the part of every batch to give, see `UpdateSampler`.
    """

    def __init__(
        self,
        train: Sequence[TokenisedExample],
        *,
        batch_size: int,
        updates: int,
        seed: int,
        pad_id: int,
        start: int = 0,
        share: slice | None = None,
    ) -> None:
        super().__init__()
        self.train = train
        self.sampler = UpdateSampler(len(train), batch_size, updates, seed, start, share)
        self.pad_id = pad_id

    def train_dataloader(self) -> DataLoader[Rollout]:
        """One `Rollout` (C = 1, off-policy) an update."""
        return DataLoader(
            self.train,  # type: ignore[arg-type]
            batch_sampler=self.sampler,
            collate_fn=partial(collate, pad_id=self.pad_id),
        )
