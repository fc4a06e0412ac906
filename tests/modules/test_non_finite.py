"""A loss or gradient that is not finite ends the run before it touches a weight, with a checkpoint left."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amd_lightning.errors import NonFiniteError
from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.modules.base import DistillationModule
from amd_lightning.objectives.support import Support
from amd_lightning.training.tracking import LastCheckpoint
from amd_lightning.types import Tokens
from tests.modules.harness import module, train


def break_student(some: DistillationModule, at: int, how: str) -> None:
    """From update `at` on, make the student's loss infinite, or finite with a gradient that is not."""
    own = some.token_terms

    def broken(*arguments: Any) -> dict[str, Tensor]:
        terms = own(*arguments)
        if some.update + 1 >= at:
            zero = 0.0 * terms["distance"]
            terms["distance"] = terms["distance"] + (zero + torch.inf if how == "loss" else zero.sqrt())
        return terms

    object.__setattr__(some, "token_terms", broken)


def break_critics(some: AdversarialModule, at: int) -> None:
    own = some.critic_loss

    def broken(tokens: Tokens, support: Support) -> Tensor:
        return own(tokens, support) * (torch.nan if some.update + 1 >= at else 1.0)

    object.__setattr__(some, "critic_loss", broken)


@pytest.mark.parametrize(
    "what, said",
    [
        ("loss", "the student loss is inf at update 3"),
        ("gradient", "the gradient of the student loss is nan at update 3"),
        ("critics", "the critic loss is nan at update 3"),
    ],
)
def test_the_run_ends_with_the_last_good_weights_saved(what: str, said: str, tmp_path: Path) -> None:
    some = module("residual", 0.5, updates=5)
    assert isinstance(some, AdversarialModule)
    if what == "critics":
        break_critics(some, at=3)
    else:
        break_student(some, at=3, how=what)
    with pytest.raises(NonFiniteError, match=re.escape(said)):
        train(some, tmp_path, callbacks=[LastCheckpoint(tmp_path / "checkpoints", every=100)])

    assert all(bool(value.isfinite().all()) for value in some.parameters())
    saved = torch.load(tmp_path / "checkpoints" / "failed.ckpt", weights_only=True)
    assert saved["progress"]["update"] == 2
    fresh = module("residual", 0.5)
    fresh.load_state_dict(saved["state_dict"])
    good = train(module("residual", 0.5, updates=2), tmp_path).parameters
    for name, value in fresh.named_parameters():
        if what == "critics" or name.startswith("student."):
            torch.testing.assert_close(value.detach(), good[name], rtol=0, atol=0, msg=name)


def test_the_checkpoint_holds_the_last_update_whatever_the_interval(tmp_path: Path) -> None:
    for every in (2, 100):
        folder = tmp_path / str(every)
        trained = train(module("kl", 0.5, updates=3), tmp_path, callbacks=[LastCheckpoint(folder, every)])
        saved = torch.load(folder / "last.ckpt", weights_only=True)
        assert saved["progress"] == {"update": 3, "tokens_seen": trained.module.tokens_seen}
        assert saved["global_step"] == 3
        for name, value in trained.parameters.items():
            assert torch.equal(saved["state_dict"][name], value)


def test_progress_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    trained = train(module("kl", 0.5, updates=3), tmp_path, callbacks=[LastCheckpoint(tmp_path, 1)])
    fresh = module("kl", 0.5)
    fresh.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))
    assert (fresh.update, fresh.tokens_seen) == (3, trained.module.tokens_seen)
    assert fresh.tokens_seen["off"] > 0
    assert fresh.tokens_seen["on"] > 0
