"""A ridge whose mixture moves over the run: where it begins, where it ends, and who follows it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amd_lightning.critics import AlphaRamp
from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.objectives.moments import closed_form_critic
from amd_lightning.objectives.support import Support, full_support
from amd_lightning.types import Batch
from tests.helpers import rollout
from tests.modules.harness import module, train

BOTH = rollout([3, 5, 2], [[4, 2], [1, 5], [3, 3]], [[True, False]] * 3)
KINDS = ("closed_form", "residual", "learned")


def losses(trained: Any) -> list[float]:
    return [row["train/loss"] for row in trained.logged]


def test_it_moves_evenly_and_stays_at_its_end() -> None:
    ramp = AlphaRamp(0.1, 0.5, linear=True)
    assert [ramp.at(update, 4) for update in (0, 1, 2, 4, 5)] == pytest.approx([0.1, 0.2, 0.3, 0.5, 0.5])
    assert AlphaRamp(0.5, 0.1, linear=True).at(1, 4) == pytest.approx(0.4)
    ramp = AlphaRamp(0.01, 0.16)
    assert [ramp.at(update, 4) for update in (0, 1, 2, 4, 5)] == pytest.approx([0.01, 0.02, 0.04, 0.16, 0.16])


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_does_not_move_is_none(kind: str, tmp_path: Path) -> None:
    plain = train(module(kind, 0.5, updates=3), tmp_path / "plain")
    still = train(module(kind, 0.5, updates=3, alpha=AlphaRamp(0.5, 0.5, linear=True)), tmp_path / "still")
    assert losses(still) == losses(plain)
    assert [row["critic/alpha"] for row in still.logged] == [0.5, 0.5, 0.5]
    assert not any("critic/alpha" in row for row in plain.logged)


@pytest.mark.parametrize("kind", KINDS)
def test_every_update_has_its_own(kind: str, tmp_path: Path) -> None:
    plain = train(module(kind, 0.5, updates=4), tmp_path / "plain")
    moved = train(module(kind, 0.5, updates=4, alpha=AlphaRamp(0.1, 0.5, linear=True)), tmp_path / "moved")
    assert [row["critic/alpha"] for row in moved.logged] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    # A learned critic has alpha in its own steps alone: the student feels it one update later.
    same = 1 if kind == "learned" else 0
    assert losses(moved)[:same] == losses(plain)[:same]
    assert losses(moved)[same] != losses(plain)[same]


def test_critic_and_support_are_those_of_the_update(tmp_path: Path) -> None:
    some = module("closed_form", 0.5, updates=4, alpha=AlphaRamp(0.1, 0.5, linear=True))
    assert isinstance(some, AdversarialModule)
    some.update = 2
    held_out = some.held_out_critic()
    assert held_out is not None
    seen: list[float] = []

    def support(log_p: Tensor, log_q: Tensor, alpha: float, policies: Any) -> Support:
        seen.append(alpha)
        return full_support(log_p, log_q, alpha, policies)

    log_p, log_q = (torch.randn(5, 7).log_softmax(-1) for _ in "pq")
    chunk: Any = type("Chunk", (), {})()
    chunk.actions, chunk.log_p, chunk.log_q = torch.zeros(5, dtype=torch.long), log_p, log_q
    chunk.student_hidden = chunk.teacher_hidden = torch.zeros(5, 3)
    found = held_out(True, chunk)
    assert torch.equal(found, closed_form_critic(log_p - log_q, 0.3, 2.0))
    learning = module("residual", 0.5, updates=4, alpha=AlphaRamp(0.1, 0.5, linear=True))
    assert isinstance(learning, AdversarialModule)
    learning.update, learning.support = 1, support
    weight = torch.ones(BOTH.response_mask.shape)
    learning._loss(learning._pack(Batch(BOTH, weight)), diagnose=False)
    assert seen
    assert seen == pytest.approx([0.2] * len(seen))
