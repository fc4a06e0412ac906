"""Maximum likelihood of stored responses beside a distance, and a beta that follows the validation loss."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from amd_lightning.modules.adaptive import AdaptiveBeta
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.likelihood import with_likelihood
from amd_lightning.rollouts import token_weights
from amd_lightning.training.tracking import LastCheckpoint, Validate
from amd_lightning.types import Batch, Tokens
from tests.helpers import rollout
from tests.modules.harness import accumulate, module, train

STATES = rollout([3, 5, 2], [[4, 2], [1, 5], [3, 3]], [[True, False]] * 3)


def gradients(some: DistillationModule, beta: float, normalise: str = "token") -> dict[str, Tensor]:
    found = accumulate(some, Batch(STATES, token_weights(STATES, beta, normalise))).gradients
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("normalise", ["token", "sequence"])
@pytest.mark.parametrize("method, beta", [("kl", 1.0), ("kl", 0.3), ("closed_form", 0.3)])
def test_the_gradient_is_the_convex_sum_of_both(method: str, beta: float, normalise: str) -> None:
    """The likelihood's own is that of nll on the stored responses alone, whatever beta."""
    share = 0.4
    found = gradients(module(method, beta, sft_weight=share, micro_batch_size=2), beta, normalise)
    distance = gradients(module(method, beta), beta, normalise)
    likelihood = gradients(module("nll", 1.0), 1.0, normalise)
    assert found.keys() == distance.keys() == likelihood.keys()
    for name, gradient in found.items():
        expected = (1 - share) * distance[name] + share * likelihood[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=2e-6, msg=name)


def test_a_lower_default_type_rounds_no_weight() -> None:
    """Lightning makes bfloat16 the default in bf16-true, where a bool over 0.3 would be 3.328."""
    log_q, none = torch.randn(6, 5).log_softmax(-1), torch.zeros(6, 0)
    tokens = Tokens(none, none, torch.arange(6) % 5, torch.ones(6), torch.arange(6) < 4)
    expected = with_likelihood(torch.zeros(6), tokens, log_q, share=1.0, beta=0.3, temperature=1.0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        zeros = torch.zeros(6, dtype=torch.float32)
        found = with_likelihood(zeros, tokens, log_q, share=1.0, beta=0.3, temperature=1.0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_the_likelihood_is_at_temperature_1_whatever_the_distances() -> None:
    hot = (2.0, 2.0)
    found = gradients(module("kl", 1.0, sft_weight=0.5, temperatures=hot), 1.0)
    distance = gradients(module("kl", 1.0, temperatures=hot), 1.0)
    likelihood = gradients(module("nll", 1.0), 1.0)
    for name, gradient in found.items():
        expected = 0.5 * (distance[name] + likelihood[name])
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=2e-6, msg=name)


# -- adaptive beta ---------------------------------------------------------------------------------


def betas(losses: Sequence[float], floor: float = 0.0) -> list[float]:
    adaptive = AdaptiveBeta(floor, step=0.1, tolerance=0.1)
    found = []
    for loss in losses:
        adaptive.validated({"kl_off": loss})
        found.append(adaptive.beta)
    return found


def test_beta_falls_when_the_loss_is_worse_than_its_reference() -> None:
    """The reference is the first loss and then that of every rise: neither the last nor the best one."""
    assert betas([1.0, 1.05, 1.11, 1.15, 1.25, 0.5, 1.2, 1.36]) == [1, 1, 0.9, 0.9, 0.8, 0.8, 0.8, 0.7]


def test_beta_ends_at_its_floor() -> None:
    rising = [0.2 * step for step in range(14)]
    assert betas(rising)[-4:] == [0.0] * 4
    assert betas(rising, floor=0.75)[1:5] == [0.9, 0.8, 0.75, 0.75]


class Rising:
    """A student that gets worse by half a nat every time."""

    def __init__(self) -> None:
        self.loss = 0.0

    def __call__(self) -> dict[str, float | None]:
        self.loss += 0.5
        return {"kl_off": self.loss, "accuracy": None}


class Watch(Callback):
    """The beta that every update is made with."""

    def __init__(self) -> None:
        self.betas: list[float] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        self.betas.append(pl_module.states.beta)


def test_a_run_listens_to_its_validations_and_remembers(tmp_path: Path) -> None:
    some = module("kl", 0.0, updates=6, adaptive=AdaptiveBeta(0.0, step=0.4, tolerance=0.1))
    watch = Watch()
    callbacks = [Validate(1, Rising()), watch, LastCheckpoint(tmp_path, 1)]
    trained = train(some, tmp_path, callbacks=callbacks)
    assert watch.betas == pytest.approx([1.0, 1.0, 0.6, 0.2, 0.0, 0.0])
    on_policy = [row.get("train/response_length") for row in trained.logged if "train/loss" in row]
    assert [value is not None for value in on_policy] == [False, False, True, True, True, True]
    logged = [row["rollout/beta"] for row in trained.logged if "train/loss" in row]
    assert logged == pytest.approx(watch.betas)

    fresh = module("kl", 0.0, adaptive=AdaptiveBeta(0.0, step=0.4, tolerance=0.1))
    fresh.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))
    assert fresh.states.adaptive is not None
    assert fresh.states.beta == 0.0
    assert fresh.states.adaptive.reference == pytest.approx(3.0)


def test_without_a_step_no_validation_changes_beta() -> None:
    some = module("kl", 0.3)
    some.validated({"kl_off": 1.0})
    some.validated({"kl_off": 9.0})
    assert some.states.beta == 0.3
