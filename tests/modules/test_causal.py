"""Every method trains a pair of causal models, and however an update is cut, it is the same one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from amd_lightning.backends import HfBackend
from amd_lightning.modules.horizon import Horizon, SequenceKernel
from amd_lightning.rollouts import BackendSampler
from tests.families import gpt2, llama
from tests.modules.harness import Trained, module, train

METHODS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "amm": ("residual", 0.5, {}),
    "amm on-policy, horizon": ("residual", 0.0, {"horizon": Horizon(1.0)}),
    "closed form": ("closed_form", 1.0, {}),
    "kd": ("kl", 1.0, {}),
    "gkd": ("js", 0.5, {}),
    "minillm": ("rkl", 0.0, {"horizon": Horizon(0.9, returns="sampled")}),
    "mixed sampling": ("kl", 0.3, {"teacher_share": 0.3}),
    "sequence kernel": ("kl", 0.5, {"kernel": SequenceKernel(0.2)}),
    "sft": ("nll", 1.0, {}),
}


def trained(name: str, folder: Path, **cuts: Any) -> Trained:
    """Two updates in float64, so that AdamW's division by small gradients does not magnify rounding."""
    method, beta, settings = METHODS[name]
    student, teacher = llama(1).double(), llama(2, hidden_size=24).double()
    share = settings.get("teacher_share", 0.0)
    sampler = BackendSampler(6, responses=2, backend=HfBackend(teacher, share))
    some = module(
        method, beta, student=student, teacher=teacher, updates=2, sampler=sampler, **settings, **cuts
    ).double()
    return train(some, folder, samples=2 if "kernel" in settings else 0)


@pytest.mark.parametrize("name", METHODS)
def test_a_causal_pair_is_trained_the_same_however_it_is_cut(name: str, tmp_path: Path) -> None:
    whole = trained(name, tmp_path, micro_batch_size=4)
    cut = trained(name, tmp_path, micro_batch_size=1, chunk_tokens=3)
    start = dict(llama(1).double().named_parameters())
    moved = {key: (whole.parameters[f"student.{key}"] - value).abs().max() for key, value in start.items()}
    assert min(moved.values()) > 1e-3  # every parameter, the head among them
    assert all(row["train/loss"] == row["train/loss"] for row in whole.logged)
    for key, value in whole.parameters.items():
        torch.testing.assert_close(cut.parameters[key], value, rtol=0, atol=1e-8, msg=key)


def test_the_teacher_may_be_of_another_causal_family(tmp_path: Path) -> None:
    some = module("residual", 0.5, student=gpt2(1), teacher=llama(2), teacher_share=0.0, updates=2)
    logged = train(some, tmp_path).logged
    assert [row["update"] for row in logged] == [1, 2]
    assert logged[-1]["train/loss"] != logged[0]["train/loss"]
