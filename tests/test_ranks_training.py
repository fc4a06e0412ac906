"""Two ranks on halves of every batch train what one process trains: a divergence and the game."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from amd_lightning.modules.adaptive import AdaptiveBeta
from amd_lightning.modules.horizon import Horizon, SequenceKernel
from amd_lightning.policies import Policy
from amd_lightning.replay import ReplayBuffer, Reuse
from amd_lightning.rollouts import BackendSampler
from amd_lightning.types import PromptBatch, Rollout, stack_prompts
from tests.families import llama
from tests.helpers import t5
from tests.modules.harness import module, train
from tests.processes import on_ranks


class PlacedSampler:
    """Samples every prompt by itself, from a stream that the prompt alone decides: whoever samples it, the
    student writes the same."""

    def __init__(self, responses: int = 1) -> None:
        self.own = BackendSampler(6, responses=responses)

    def __call__(self, policy: Policy, prompt: PromptBatch) -> Rollout:
        found: Rollout | None = None
        for ids, mask in zip(*prompt, strict=True):
            kept = ids[mask.bool()]
            torch.manual_seed(int((kept * torch.arange(1, len(kept) + 1)).sum()))
            one = self.own(policy, PromptBatch(kept[None], torch.ones_like(kept[None])))
            found = one if found is None else stack_prompts(found, one)
        assert found is not None
        return found


class End(NamedTuple):
    """Of a training."""

    weights: dict[str, Tensor]
    rows: list[dict[str, float]]
    tokens: dict[str, int]


def policies(family: str) -> dict[str, Policy]:
    if family == "t5":
        return {"student": t5(1), "teacher": t5(2, d_model=24)}
    return {"student": llama(1), "teacher": llama(2, hidden_size=24)}


SETTINGS: dict[str, Any] = {
    "plain": dict,
    "sequence": lambda: {"normalise": "sequence"},
    "horizon": lambda: {
        "horizon": Horizon(0.9, baseline="time_step"),
        "sampler": PlacedSampler(2),
        "kernel": SequenceKernel(0.3),
    },
    "replay": lambda: {"replay": ReplayBuffer(8, refresh=0.5, shuffle=True, seed=4), "sft_weight": 0.3},
    "reuse": lambda: {"replay": Reuse(2), "adaptive": AdaptiveBeta(0.5, step=0.2, tolerance=0.0)},
}


def trained(method: str, family: str, setting: str, folder: Path, dtype: torch.dtype, **options: Any) -> End:
    torch.set_default_dtype(dtype)
    settings: dict[str, Any] = {"sampler": PlacedSampler(), **SETTINGS[setting]()}
    settings |= {"updates": 5, "micro_batch_size": 4, "steps": 2}
    settings |= policies(family)
    some = module(method, 0.5, **settings).to(dtype)
    assert some.teacher is not None
    some.teacher.to(dtype)
    samples = 3 if setting == "horizon" else 0
    done = train(some, folder, batch_size=4, samples=samples, **options)
    torch.set_default_dtype(torch.float32)
    return End(done.parameters, done.logged, dict(some.tokens_seen))


def same_rows(rows: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """But for clocks; token weights are in float32."""
    assert len(rows) == len(expected) == 5
    for mine, theirs in zip(rows, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if not name.startswith("time/"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize(
    "method, family, setting",
    [
        ("rkl", "llama", "plain"),
        ("learned", "llama", "plain"),
        ("kl", "t5", "sequence"),
        ("learned", "t5", "plain"),
        ("rkl", "t5", "horizon"),
        ("residual", "llama", "replay"),
        ("js", "t5", "reuse"),
    ],
)
def test_two_ranks_train_what_one_process_trains(
    method: str, family: str, setting: str, tmp_path: Path
) -> None:
    """Parameters, and everything that is logged of an update, within rounding."""
    dtype = torch.float64
    one = trained(method, family, setting, tmp_path / "one", dtype)
    two = on_ranks(2, trained, method, family, setting, tmp_path / "two", dtype, folder=tmp_path / "ranks")
    for name, value in one.weights.items():
        assert torch.equal(two[0].weights[name], two[1].weights[name]), name
        torch.testing.assert_close(two[0].weights[name], value, rtol=0.0, atol=1e-9, msg=name)
    for rank in two:  # what is logged is of the whole batch, whoever is asked
        same_rows(rank.rows, one.rows)
    assert two[0].tokens == one.tokens == two[1].tokens


def sharded(method: str, family: str, folder: Path, dtype: torch.dtype, teacher: bool) -> End:
    return trained(method, family, "plain", folder, dtype, strategy="sharded", sharded_teacher=teacher)


@pytest.mark.parametrize(
    "method, family, teacher",
    [("rkl", "llama", True), ("learned", "llama", False), ("learned", "t5", True)],
)
def test_two_ranks_that_share_the_networks_train_the_same(
    method: str, family: str, teacher: bool, tmp_path: Path
) -> None:
    one = trained(method, family, "plain", tmp_path / "one", torch.float64)
    arguments = (method, family, tmp_path / "two", torch.float64, teacher)
    two = on_ranks(2, sharded, *arguments, folder=tmp_path / "ranks")
    for name, value in one.weights.items():
        torch.testing.assert_close(two[0].weights[name], value, rtol=0.0, atol=1e-9, msg=name)
    same_rows(two[0].rows, one.rows)


def test_networks_are_shared_in_float32_too(tmp_path: Path) -> None:
    """Sums over ranks are another operation there; 1e-5 is some roundings of five Adam steps."""
    one = trained("learned", "t5", "plain", tmp_path / "one", torch.float32)
    arguments = ("learned", "t5", tmp_path / "two", torch.float32, True)
    two = on_ranks(2, sharded, *arguments, folder=tmp_path / "ranks")
    for name, value in one.weights.items():
        torch.testing.assert_close(two[0].weights[name], value, rtol=0.0, atol=1e-5, msg=name)
