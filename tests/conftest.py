"""What every test gets: one thread, no network, no display, no tracking server."""

import os
from pathlib import Path

# Set before anything imports the libraries that read them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
)

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The directory of real data that AMD_LIGHTNING_DATA names; the test is skipped where it names none."""
    value = os.environ.get("AMD_LIGHTNING_DATA")
    if value is None:
        pytest.skip("AMD_LIGHTNING_DATA is not set: no real data here")
    root = Path(value)
    assert root.is_dir(), f"AMD_LIGHTNING_DATA={value} is not a directory"
    return root
