"""The teacher written down once: the same loss where nothing is lumped, and no teacher where it is known."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amd_lightning import teacher_cache
from amd_lightning.cache import key_of
from amd_lightning.data.examples import TokenisedExample, collate
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.horizon import Horizon
from amd_lightning.objectives.divergences import DIVERGENCES
from amd_lightning.policies import Policy
from amd_lightning.replay import ReplayBuffer
from amd_lightning.rollouts import BackendSampler, collect
from amd_lightning.running import results
from amd_lightning.running.outcome import Outcome
from amd_lightning.teacher_cache import attach, truncation, with_teacher, write_down
from amd_lightning.types import Batch, PromptBatch, Rollout
from tests.helpers import PAD, VOCABULARY, prompts, t5, tiny_run, tokenised
from tests.modules.harness import accumulate, module

ROWS = tokenised(5)
METHODS = [*DIVERGENCES, "closed_form", "sign"]


def teacher() -> Policy:
    return t5(2, d_model=24)


def known(folder: Path, k: int, rows: list[TokenisedExample] = ROWS, temperature: float = 1.0) -> Rollout:
    """The batch of these rows, the teacher written down at its states."""
    folder.mkdir(parents=True, exist_ok=True)
    write_down(folder, teacher(), rows, k=k, temperature=temperature, pad_id=PAD)
    return collate(attach(rows, folder), PAD)


def batch_of(stored: Rollout, beta: float) -> Batch:
    torch.manual_seed(0)
    return collect(stored, t5(1), BackendSampler(6), beta, "token")


def assert_same(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> None:
    for name, value in one.items():
        if name.startswith("student"):
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=2e-6, msg=name)


# -- the arrays ------------------------------------------------------------------------------------


def test_every_row_gets_its_own_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "BATCH", 2)
    write_down(tmp_path, teacher(), ROWS, k=3, temperature=1.0, pad_id=PAD)
    assert np.load(tmp_path / "actions.npy").dtype == np.int32
    assert np.load(tmp_path / "log_probs.npy").dtype == np.float32
    for row in attach(ROWS, tmp_path):
        assert row.top_k is not None
        actions, log_probs = row.top_k
        assert isinstance(actions, np.memmap)
        with torch.no_grad():
            p = teacher().log_probs(teacher().hidden(collate([row], PAD))).exp()
        assert actions.shape == (len(row.response_ids), 3)
        for state in range(len(p)):
            order = p[state].argsort(descending=True)
            assert actions[state].tolist() == order[:3].tolist()
            expected = [*p[state][order[:3]].tolist(), float(p[state][order[3:]].sum())]
            assert np.exp(log_probs[state]).tolist() == pytest.approx(expected, rel=1e-3)


def test_the_temperature_is_the_teachers(tmp_path: Path) -> None:
    hot = known(tmp_path, 4, temperature=3.0).top_k
    assert hot is not None
    with torch.no_grad():
        policy = teacher()
        expected = policy.log_probs(policy.hidden(collate(ROWS, PAD)), 3.0).topk(4).values
    torch.testing.assert_close(hot.log_probs[:, :4], expected)


# -- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [VOCABULARY, VOCABULARY - 1])
def test_with_every_action_it_is_the_live_teacher(method: str, beta: float, k: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"temperatures": (2.0, 0.5), "micro_batch_size": 2, "chunk_tokens": 7}
    batch = batch_of(known(tmp_path, k, temperature=2.0), beta)
    live = batch._replace(rollout=batch.rollout._replace(top_k=None))
    found, expected = (
        accumulate(module(method, beta, teacher=teacher(), **settings), some, diagnose=True)
        for some in (batch, live)
    )
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-4, abs=1e-5)
    assert_same(expected.gradients, found.gradients)


def test_the_horizon_answers_for_the_students_states_as_before(tmp_path: Path) -> None:
    batch = batch_of(known(tmp_path, VOCABULARY), 0.4)
    live = batch._replace(rollout=batch.rollout._replace(top_k=None))
    for returns in ("expected", "sampled"):
        horizon = Horizon(0.9, returns)
        found, expected = (
            accumulate(module("rkl", 0.4, teacher=teacher(), horizon=horizon), some) for some in (batch, live)
        )
        assert_same(expected.gradients, found.gradients)


@pytest.mark.parametrize("responses", [1, 2])
def test_replayed_prompts_behind_the_stored_ones_ask_it_live(responses: int, tmp_path: Path) -> None:
    buffer = ReplayBuffer(5, refresh=0.0)
    torch.manual_seed(0)
    sampler = BackendSampler(6, responses=responses)
    buffer.states(sampler, t5(1), prompts([4, 8, 1, 2, 3], seed=5), 0, 9)

    def replaying(policy: Policy, prompt: PromptBatch) -> Rollout:
        return buffer.states(sampler, policy, prompt, 1, 9)

    batch = collect(known(tmp_path, VOCABULARY), t5(1), replaying, 0.3, "token")
    assert batch.rollout.top_k is not None
    assert len(batch.weight) == len(batch.rollout.top_k.counts) == 10
    live = batch._replace(rollout=batch.rollout._replace(top_k=None))
    found, expected = (
        accumulate(module("js", 0.3, teacher=teacher(), micro_batch_size=4), some) for some in (batch, live)
    )
    assert found.metrics["train/loss"] == pytest.approx(expected.metrics["train/loss"], rel=1e-5)
    assert_same(expected.gradients, found.gradients)


@pytest.mark.parametrize("method", ["kl", "rkl", "js", "tv", "skew_kl", "jeffreys", "closed_form", "sign"])
def test_lumping_gives_a_lower_loss_that_rises_with_k(method: str, tmp_path: Path) -> None:
    losses = []
    for k in (1, 4, 12, VOCABULARY):
        batch = batch_of(known(tmp_path / str(k), k), 1.0)
        found = accumulate(module(method, 1.0, teacher=teacher()), batch)
        losses.append(found.metrics["train/loss"])
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


# -- what the teacher still reads ------------------------------------------------------------------


def reading(some: DistillationModule) -> list[int]:
    """The number of tokens in each of the teacher's forwards from now on."""
    assert some.teacher is not None
    own, read = some.teacher.hidden, []

    def hidden(rollout: Rollout) -> Tensor:
        read.append(int(rollout.response_mask.sum()))
        return own(rollout)

    object.__setattr__(some.teacher, "hidden", hidden)
    return read


def test_no_teacher_reads_what_is_written_down(tmp_path: Path) -> None:
    stored = known(tmp_path, 4)
    for beta in (1.0, 0.3):
        some = module("kl", beta, teacher=teacher(), micro_batch_size=2)
        read = reading(some)
        batch = batch_of(stored, beta)
        accumulate(some, batch)
        written = int(batch.rollout.response_mask[~batch.rollout.off_policy].sum())
        assert sum(read) == some._teacher_read == written
        assert (read == []) is (beta == 1.0)
    live = module("kl", 1.0, teacher=teacher())
    read = reading(live)
    accumulate(live, batch_of(collate(ROWS, PAD), 1.0))
    assert sum(read) == live._teacher_read == int(stored.response_mask.sum())


# -- what is lost ----------------------------------------------------------------------------------


def test_the_truncation_error_is_what_full_distances_say(tmp_path: Path) -> None:
    write_down(tmp_path, teacher(), ROWS, k=2, temperature=1.0, pad_id=PAD)
    rows = attach(ROWS, tmp_path)
    found = truncation(rows, teacher(), t5(1), temperature=1.0, pad_id=PAD)
    batch = collate(ROWS, PAD)
    with torch.no_grad():
        p, q = (policy.log_probs(policy.hidden(batch)).exp() for policy in (teacher(), t5(1)))
    top = p.topk(2).indices
    pairs = [(p, q)]
    pairs.append(
        tuple(torch.cat([x.gather(-1, top), 1 - x.gather(-1, top).sum(-1, keepdim=True)], -1) for x in (p, q))  # type: ignore[arg-type]
    )
    kl = [float((a * (a / b).log()).sum(-1).mean()) for a, b in pairs]
    tv = [float(0.5 * (a - b).abs().sum(-1).mean()) for a, b in pairs]
    assert found["mass_mean"] == pytest.approx(float(pairs[1][0][:, -1].mean()), rel=1e-4)
    assert found["mass_max"] == pytest.approx(float(pairs[1][0][:, -1].max()), rel=1e-4)
    assert (found["kl"], found["tv"]) == pytest.approx((kl[0], tv[0]), rel=1e-4)
    assert found["kl_lost"] == pytest.approx(kl[0] - kl[1], rel=1e-3)
    assert found["tv_lost"] == pytest.approx(tv[0] - tv[1], rel=1e-3)
    assert 0.0 < found["tv_lost"] < found["mass_mean"]


def test_nothing_is_lost_with_every_action(tmp_path: Path) -> None:
    write_down(tmp_path, teacher(), ROWS, k=99, temperature=1.0, pad_id=PAD)
    found = truncation(attach(ROWS, tmp_path), teacher(), t5(1), temperature=1.0, pad_id=PAD)
    assert (found["mass_mean"], found["mass_max"]) == (0.0, 0.0)
    assert (found["kl_lost"], found["tv_lost"]) == pytest.approx((0.0, 0.0), abs=1e-5)


# -- in a run --------------------------------------------------------------------------------------

KD = ("objective=kd", "optim.student.updates=2", "trainer.validate_every=0")


def run(folder: Path, cache: Path, *overrides: str) -> Outcome:
    return tiny_run(folder, cache, *KD, *overrides)


def test_a_second_run_writes_nothing_and_asks_no_teacher(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = run(tmp_path / "1", cache, "rollout.teacher_top_k=8")
    again = run(tmp_path / "2", cache, "rollout.teacher_top_k=8", "seed=1")
    names = ("teacher_top_k", "truncation")
    assert [first.cached[name] for name in names] == [False, False]
    assert [again.cached[name] for name in names] == [True, True]
    assert [outcome.tokens["teacher"] for outcome in (first, again)] == [0, 0]
    assert first.tokens["off"] > 0
    assert again.truncation == first.truncation
    assert 0.0 < first.truncation["mass_mean"] < 1.0
    assert results.assemble(first, {})["teacher_top_k"] == first.truncation
    json.dumps(results.assemble(first, {}))
    other = run(tmp_path / "3", cache, "rollout.teacher_top_k=8", "rollout.off_policy=teacher")
    assert not other.cached["teacher_top_k"]


def test_a_run_that_asks_the_teacher_live_says_so(tmp_path: Path) -> None:
    live = run(tmp_path / "live", tmp_path / "cache")
    assert live.truncation == {}
    assert live.tokens["teacher"] == live.tokens["off"] > 0
    assert "teacher_top_k" not in results.assemble(live, {})


def test_what_decides_about_the_arrays_is_in_their_key(tmp_path: Path) -> None:
    made: dict[str, set[str]] = {"teacher_top_k": set(), "truncation": set()}

    def artifact(kind: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        folder = tmp_path / kind / key_of(inputs)
        if folder.name not in made[kind]:
            folder.mkdir(parents=True)
            make(folder)
            made[kind].add(folder.name)
        return folder

    def asked(k: int = 3, temperature: float = 1.0, **keys: str) -> list[int]:
        keys = {"teacher": "a", "responses": "b", "student_start": "c", **keys}
        with_teacher(artifact, ROWS, teacher(), t5(1), keys=keys, k=k, temperature=temperature, pad_id=PAD)
        return [len(made[kind]) for kind in ("teacher_top_k", "truncation")]

    assert asked() == [1, 1]
    assert asked() == [1, 1]
    assert asked(student_start="d") == [1, 2]
    assert asked(k=4) == [2, 3]
    assert asked(temperature=2.0) == [3, 4]
    assert asked(teacher="d") == [4, 5]
    assert asked(responses="d") == [5, 6]
