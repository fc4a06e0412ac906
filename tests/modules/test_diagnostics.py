"""What is logged: the documented names, with values that can be checked by hand."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from amd_lightning.evaluation.distances import CriticGap, compare
from amd_lightning.modules import diagnostics
from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.modules.diagnostics import TokenMeans, response_metrics, token_values
from amd_lightning.rollouts import token_weights
from amd_lightning.types import Batch, Tokens
from tests.helpers import EOS, rollout
from tests.modules.harness import accumulate, module, train

STATES = rollout([3, 5, 2], [[4, 2], [1, 5], [3, 3]], [[True, False]] * 3)


def documented() -> set[str]:
    """The names in the docstring's table, without those of replay and adaptive beta."""
    names = set(re.findall(r"^(\w+/\w+)", diagnostics.__doc__ or "", re.M))
    return {name for name in names if not name.startswith("rollout/")}


def test_the_logged_names_are_the_documented_ones(tmp_path: Path) -> None:
    logged = {name for row in train(module("residual", 0.5), tmp_path).logged for name in row}
    assert logged == documented() | {"update"}


@pytest.mark.parametrize("method, beta", [("kl", 0.5), ("closed_form", 0.5), ("rkl", 0.0), ("nll", 1.0)])
def test_methods_log_the_same_names_as_far_as_these_have_a_meaning(
    method: str, beta: float, tmp_path: Path
) -> None:
    logged = {name for row in train(module(method, beta), tmp_path).logged for name in row}
    missing = {"critic/loss", "critic/grad_norm", "critic/support_error"}
    if beta == 1.0:
        missing |= {"train/tv_on", "train/moment_gap_on", "train/response_length", "train/eos_share"}
    if beta == 0.0:
        missing |= {"train/tv_off", "train/moment_gap_off"}
    assert logged == documented() - missing | {"update"}


def test_updates_are_logged_first_and_then_at_the_interval(tmp_path: Path) -> None:
    logged = train(module("kl", 1.0, updates=7, log_every=3), tmp_path).logged
    assert [row["update"] for row in logged] == [1, 3, 6]


def test_values_of_a_state_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.75, 0.25]])
    found = token_values(p.log(), q.log(), critic=torch.tensor([[1.0, -3.0]]))
    assert found["log.moment_gap"].tolist() == pytest.approx([-0.25 * 1 + 0.25 * -3])
    assert found["log.tv"].tolist() == pytest.approx([0.25])
    assert found["log.critic_abs"].tolist() == pytest.approx([0.625 * 1 + 0.375 * 3])
    stand_in = token_values(p.log(), q.log())
    assert stand_in["log.moment_gap"].tolist() == pytest.approx([0.25**2 / 1.25 + 0.25**2 / 0.75])


@pytest.mark.parametrize("method", ["kl", "closed_form", "residual", "sign"])
def test_what_is_logged_changes_no_gradient(method: str) -> None:
    batch = Batch(STATES, token_weights(STATES, 0.3, "token"))
    silent, diagnosed = (accumulate(module(method, 0.3), batch, diagnose) for diagnose in (False, True))
    for name, gradient in silent.gradients.items():
        if gradient is not None:
            torch.testing.assert_close(diagnosed.gradients[name], gradient, rtol=0, atol=0)
    assert not [name for name in silent.metrics if name.startswith("train/tv")]
    assert {"train/tv_off", "train/tv_on", "train/gap_over_tv"} <= set(diagnosed.metrics)


@pytest.mark.parametrize("method", ["kl", "closed_form", "sign", "kernel", "residual", "learned"])
@pytest.mark.parametrize("off_policy", [True, False])
def test_held_out_states_meet_the_critic_that_training_states_meet(method: str, off_policy: bool) -> None:
    """On the same states both measure the same gap; without a critic, that of what stands in for one."""
    states = rollout([3, 5, 2], [[4], [1], [3]], [[off_policy]] * 3)
    some = module(method, float(off_policy))
    critic = some.held_out_critic()
    assert critic is not None
    assert some.teacher is not None
    gap = CriticGap(partial(critic, off_policy))
    compare(some.student, some.teacher, [states], watch=gap.add)
    logged = accumulate(some, Batch(states, token_weights(states, float(off_policy), "token")), True).metrics
    assert gap.mean() == pytest.approx(logged[f"train/moment_gap_{'off' if off_policy else 'on'}"], rel=1e-4)
    assert abs(gap.mean()) > 1e-3


@pytest.mark.parametrize("top_k", [None, 3])
@torch.no_grad()
def test_the_supports_error_is_what_its_actions_miss_of_the_gap(top_k: int | None) -> None:
    batch = Batch(STATES, token_weights(STATES, 0.3, "token"))
    some = module("learned", 0.3, top_k=top_k)
    assert isinstance(some, AdversarialModule)
    assert some.teacher is not None
    with torch.enable_grad():
        found = accumulate(some, batch, diagnose=True).metrics["critic/support_error"]
    tokens = some._pack(batch)
    log_p, log_q = (
        some.teacher.log_probs(tokens.teacher_hidden),
        some.student.log_probs(tokens.student_hidden),
    )
    f = some.critics(tokens, log_p, log_q)
    terms = (log_p.exp() - log_q.exp()) * f
    seen = terms
    if top_k is not None:
        chosen = (log_p.exp() + log_q.exp()).topk(top_k).indices
        seen = terms.gather(-1, chosen)  # the tail's f is 0 for a critic that is its head alone
    expected = (terms.sum(-1) - seen.sum(-1)).abs().mean()
    assert found == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    assert (found > 0.01) is (top_k is not None)


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
    assert found == {"train/response_length": 3.0, "train/eos_share": 0.5}
    assert (
        response_metrics(Batch(states._replace(off_policy=states.off_policy | True), torch.empty(0)), [EOS])
        == {}
    )
