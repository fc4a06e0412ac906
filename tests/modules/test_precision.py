"""Training in bfloat16: the losses of float32 but for rounding, and gradients that arrive everywhere."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from amd_lightning.modules.base import DistillationModule
from amd_lightning.policies import Policy
from tests.families import llama
from tests.helpers import prompts, t5
from tests.modules.harness import Trained, module, train

METHODS = [("kl", 1.0), ("js", 0.5), ("residual", 0.5), ("closed_form", 0.0)]


def pair(family: str) -> tuple[Policy, Policy]:
    return (t5(1), t5(2, d_model=24)) if family == "t5" else (llama(1), llama(2, hidden_size=24))


def trained(family: str, method: str, beta: float, precision: str, folder: Path) -> Trained:
    student, teacher = pair(family)
    some: DistillationModule = module(method, beta, student=student, teacher=teacher, updates=2)
    default = torch.get_default_dtype()
    try:
        return train(some, folder, precision=precision)
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("method", ["kl", "js", "residual", "closed_form"])
def test_the_first_loss_is_that_of_float32(family: str, method: str, precision: str, tmp_path: Path) -> None:
    """On stored states, of which every precision has the same."""
    losses = [
        trained(family, method, 1.0, one, tmp_path / one).logged[0]["train/loss"]
        for one in ("32-true", precision)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05, abs=2e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("method, beta", METHODS)
def test_every_parameter_of_the_student_learns(
    family: str, method: str, beta: float, precision: str, tmp_path: Path
) -> None:
    """Also where the student has written just before, under no_grad and with the same weights."""
    plain, low = (trained(family, method, beta, one, tmp_path / one).steps for one in ("32-true", precision))
    of_student = next(step for step in low if step.who == "student").gradients
    expected = next(step for step in plain if step.who == "student").gradients
    for name, gradient in of_student.items():
        if name.startswith("student.") and expected[name] is not None:
            assert gradient is not None, name
            assert torch.isfinite(gradient).all(), name
            assert gradient.abs().sum() > 0 or expected[name].abs().sum() == 0, name  # type: ignore[union-attr]


class Casts(TorchDispatchMode):
    """Counts how often each of some tensors is copied into bfloat16."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.watched = {tensor.data_ptr() for tensor in tensors}
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.bfloat16:
            self.count[args[0].data_ptr()] += args[0].data_ptr() in self.watched
        return func(*args, **kwargs)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_weights_are_cast_once_for_a_response_and_not_for_every_token(family: str) -> None:
    policy, some = pair(family)[0], prompts([3, 3])
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with Casts([weight for weight in policy.parameters() if weight.ndim == 2]) as casts:
            torch.manual_seed(0)
            written = policy.respond(some, 6)[0]
        assert written.shape[1] > 1
        assert set(casts.count.values()) - {0} == {1}
