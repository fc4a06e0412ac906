"""What is logged: the documented names, with values that can be checked by hand."""

import re
from pathlib import Path

import pytest
import torch

from amd_lightning.modules import diagnostics
from amd_lightning.modules.diagnostics import TokenMeans, response_metrics, token_values
from amd_lightning.types import Batch, Tokens
from tests.helpers import EOS, rollout
from tests.modules.harness import module, train


def documented() -> set[str]:
    """The names in the docstring's table."""
    return set(re.findall(r"^(\w+/\w+)", diagnostics.__doc__ or "", re.M))


def test_the_logged_names_are_the_documented_ones(tmp_path: Path) -> None:
    logged = {name for row in train(module("residual", 0.5), tmp_path).logged for name in row}
    assert logged == documented() | {"update"}


@pytest.mark.parametrize("method, beta", [("kl", 0.5), ("closed_form", 0.5), ("rkl", 0.0), ("nll", 1.0)])
def test_methods_log_the_same_names_as_far_as_these_have_a_meaning(
    method: str, beta: float, tmp_path: Path
) -> None:
    logged = {name for row in train(module(method, beta), tmp_path).logged for name in row}
    missing = {"critic/loss", "critic/grad_norm"}
    if beta == 1.0:
        missing |= {"train/tv_on", "train/moment_gap_on", "train/response_tokens", "train/eos_share"}
    if beta == 0.0:
        missing |= {"train/tv_off", "train/moment_gap_off"}
    assert logged == documented() - missing | {"update"}


def test_updates_are_logged_first_and_then_at_the_interval(tmp_path: Path) -> None:
    logged = train(module("kl", 1.0, updates=7, log_every=3), tmp_path).logged
    assert [row["update"] for row in logged] == [1, 3, 6]


def test_values_of_a_state_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.75, 0.25]])
    found = token_values(p.log(), q.log(), critic=torch.tensor([[1.0, -3.0]]))
    assert found["moment_gap"].tolist() == pytest.approx([-0.25 * 1 + 0.25 * -3])
    assert found["tv"].tolist() == pytest.approx([0.25])
    assert found["critic_abs"].tolist() == pytest.approx([0.625 * 1 + 0.375 * 3])
    stand_in = token_values(p.log(), q.log())
    assert stand_in["moment_gap"].tolist() == pytest.approx([0.25**2 / 1.25 + 0.25**2 / 0.75])


def test_means_over_each_source_and_over_all() -> None:
    means = TokenMeans()
    for values, off in (([1.0, 2.0], [True, False]), ([3.0], [True])):
        tokens = Tokens(torch.empty(0), torch.empty(0), torch.empty(0), torch.empty(0), torch.tensor(off))
        means.add(tokens, {"tv": torch.tensor(values), "moment_gap": 2 * torch.tensor(values)})
    assert means.mean("tv", ["off"]) == 2.0
    assert means.mean("tv", ["on"]) == 2.0
    assert means.mean("tv") == 2.0
    assert means.mean("critic_abs") is None
    assert means.metrics() == {
        "train/moment_gap_off": 4.0,
        "train/moment_gap_on": 4.0,
        "train/tv_off": 2.0,
        "train/tv_on": 2.0,
        "train/gap_over_tv": 1.0,
    }


def test_lengths_and_endings_are_those_of_the_students_responses() -> None:
    states = rollout([2, 2], [[5, 2], [5, 4]], [[True, False]] * 2)
    states.response_ids[1, 1, 3] = 7  # cut off before its EOS; the padding behind it is EOS
    found = response_metrics(Batch(states, torch.empty(0)), [EOS])
    assert found == {"train/response_tokens": 3.0, "train/eos_share": 0.5}
    assert (
        response_metrics(Batch(states._replace(off_policy=states.off_policy | True), torch.empty(0)), [EOS])
        == {}
    )
