"""Deterministic algorithms: on a GPU where they are asked for, never on a CPU; and what they are for."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from amd_lightning.running import one_run
from amd_lightning.training import torch_settings

SCRIPT = """
import os, sys, torch
from amd_lightning.training.torch_settings import set_up_torch
set_up_torch(threads=3, on_gpu={on_gpu}, deterministic={deterministic})
print(torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
      torch.is_deterministic_algorithms_warn_only_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
      torch.utils.deterministic.fill_uninitialized_memory)
"""


@pytest.mark.parametrize(
    "on_gpu, deterministic, expected",
    [
        (True, True, "3 True True :4096:8 False"),
        (True, False, "3 False False None True"),
        (False, True, "3 False False None True"),
    ],
)
def test_a_process_is_set_up_for_its_device(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool, deterministic: bool, expected: str
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    script = SCRIPT.format(on_gpu=on_gpu, deterministic=deterministic)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    "accelerator, there, expected",
    [("cpu", True, False), ("auto", True, True), ("auto", False, False), ("gpu", True, True)],
)
def test_a_run_is_set_up_for_where_it_trains(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, there: bool, expected: bool
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch_settings, "set_up_torch", lambda **settings: asked.update(settings))
    trainer = SimpleNamespace(accelerator=accelerator, threads=None, deterministic=True)
    one_run._set_up(SimpleNamespace(trainer=trainer))  # type: ignore[arg-type]
    assert asked == {"threads": None, "on_gpu": expected, "deterministic": True}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_training_on_a_gpu_repeats_itself() -> None:
    # Of the relative positions of 128 by 128 tokens the default algorithm sums the gradient in any order.
    torch_settings.set_up_torch(threads=None, on_gpu=True, deterministic=True)
    try:
        assert torch.equal(trained_on_gpu(), trained_on_gpu())
    finally:
        torch.use_deterministic_algorithms(False)


def trained_on_gpu() -> Tensor:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=500, dropout_rate=0.0, **sizes))
    model.to(torch.device("cuda"))  # type: ignore[arg-type]  # its decorator hides the signature
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    asked, response = (torch.randint(0, 500, (16, length)).cuda() for length in (128, 40))
    for _ in range(5):
        optimizer.zero_grad()
        model(input_ids=asked, labels=response).loss.backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
