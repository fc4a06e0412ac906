"""The sweeper of `+sweep=optuna`, where Hydra takes plugins from."""

from amd_lightning.sweeps.search import Search

__all__ = ["OptunaSweeper"]


class OptunaSweeper(Search):
    """`hydra/sweeper: amd_lightning_optuna`."""
