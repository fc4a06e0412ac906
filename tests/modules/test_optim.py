"""Learning-rate schedules by hand."""

import pytest
import torch

from amd_lightning.modules.optim import Optimisation


def shares(updates: int, **fields: object) -> list[float]:
    optimisation = Optimisation(learning_rate=1.0, **fields)  # type: ignore[arg-type]
    return [optimisation.share(update, updates) for update in range(updates)]


def test_schedules() -> None:
    assert shares(3, schedule="constant") == [1.0, 1.0, 1.0]
    assert shares(4, schedule="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert shares(4, schedule="cosine") == pytest.approx([1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5])


def test_warm_up_rises_to_the_peak_and_then_the_schedule_begins() -> None:
    assert shares(6, schedule="linear", warmup_updates=2) == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25])


def test_the_final_share_is_where_the_decay_ends() -> None:
    optimisation = Optimisation(learning_rate=1.0, schedule="cosine", final_share=0.1)
    assert optimisation.share(0, 10) == 1.0
    assert optimisation.share(5, 10) == pytest.approx(0.55)
    assert optimisation.share(10, 10) == optimisation.share(12, 10) == pytest.approx(0.1)


def test_only_what_learns_is_optimised() -> None:
    frozen, free = torch.nn.Parameter(torch.ones(2), requires_grad=False), torch.nn.Parameter(torch.ones(3))
    optimizer = Optimisation(0.5, betas=(0.5, 0.9), weight_decay=0.1).optimizer([frozen, free])
    (group,) = optimizer.param_groups
    assert group["params"] == [free]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.5, 0.9), 0.1)
