"""Responses that serve again: with their own prompts, until they are too old, and after a checkpoint too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amd_lightning.policies import Policy
from amd_lightning.replay import Replay, ReplayBuffer, Reuse
from amd_lightning.rollouts import BackendSampler, collect, token_weights
from amd_lightning.training.tracking import LastCheckpoint
from amd_lightning.types import Batch, PromptBatch, Rollout
from tests.helpers import prompts, rollout, t5
from tests.modules.harness import accumulate, module, train

STUDENT = t5(1)


def left(batch: PromptBatch) -> PromptBatch:
    """The same prompts, padded on the left."""
    lengths = batch.attention_mask.sum(-1).tolist()
    shifted = [row.roll(len(row) - length) for row, length in zip(batch.input_ids, lengths, strict=True)]
    masks = [row.roll(len(row) - length) for row, length in zip(batch.attention_mask, lengths, strict=True)]
    return PromptBatch(torch.stack(shifted), torch.stack(masks))


class Echo:
    """Answers every prompt with itself backwards, and once more without its last token."""

    def __init__(self, responses: int = 1) -> None:
        self.responses = responses
        self.calls = 0

    def __call__(self, policy: Policy, prompt: PromptBatch) -> Rollout:
        self.calls += 1
        count, width = prompt.input_ids.shape
        ids = torch.zeros(count, self.responses, width, dtype=torch.long)
        mask = torch.zeros(count, self.responses, width, dtype=torch.bool)
        for row, (tokens, kept) in enumerate(zip(*prompt, strict=True)):
            for column in range(self.responses):
                answer = answers(tokens[kept.bool()])[column]
                ids[row, column, : len(answer)] = answer
                mask[row, column, : len(answer)] = True
        return Rollout(prompt, ids, mask, torch.zeros(count, self.responses, dtype=torch.bool))


def answers(tokens: Tensor) -> list[Tensor]:
    return [tokens.flip(0), tokens.flip(0)[: max(1, len(tokens) - 1)]]


def assert_own(given: Rollout) -> None:
    """Every response is an answer to the prompt that it stands beside."""
    assert not given.off_policy.any()
    for row, (tokens, kept) in enumerate(zip(*given.prompt, strict=True)):
        expected = answers(tokens[kept.bool()])
        for column in range(given.response_ids.shape[1]):
            found = given.response_ids[row, column][given.response_mask[row, column]]
            assert torch.equal(found, expected[column])


def steps(
    replay: Replay, sampler: Any, updates: int, batch: int = 3, seed: int = 0, left_padded: bool = False
) -> list[Rollout]:
    """What the updates of a run get, each with prompts of its own."""
    found = []
    for update in range(updates):
        lengths = torch.randint(1, 7, (batch,), generator=torch.Generator().manual_seed(seed + update))
        prompt = prompts(lengths.tolist(), seed=1000 * seed + update)
        prompt = left(prompt) if left_padded else prompt
        found.append(replay.states(sampler, STUDENT, prompt, update, updates))
    return found


# -- whose response --------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 1000),
    capacity=st.integers(3, 12),
    refresh=st.floats(0.0, 1.0),
    responses=st.integers(1, 2),
    shuffle=st.booleans(),
    left_padded=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_response_stays_with_its_prompt(
    seed: int, capacity: int, refresh: float, responses: int, shuffle: bool, left_padded: bool
) -> None:
    """On whichever side its padding was."""
    buffer = ReplayBuffer(capacity, refresh=refresh, shuffle=shuffle, seed=seed)
    for given_ in steps(buffer, Echo(responses), 8, seed=seed, left_padded=left_padded):
        assert given_.response_ids.shape[:2] == (3, responses)
        assert_own(given_)
    for row in buffer.rows:
        assert all(torch.equal(a, b) for a, b in zip(row.responses, answers(row.prompt), strict=False))
    again = Reuse(3)
    for given_ in steps(again, Echo(responses), 5, seed=seed, left_padded=left_padded):
        assert_own(given_)


# -- when the student writes -----------------------------------------------------------------------


def test_it_is_filled_first_and_holds_the_youngest() -> None:
    buffer, echo = ReplayBuffer(6, refresh=0.0), Echo()
    steps(buffer, echo, 2)
    assert (echo.calls, len(buffer.rows)) == (2, 6)
    steps(buffer, echo, 5)
    assert echo.calls == 2
    full = ReplayBuffer(6, refresh=1.0)
    steps(full, echo, 5)
    assert [row.written for row in full.rows] == [3, 3, 3, 4, 4, 4]


def test_a_small_share_is_drawn_as_such_whatever_the_default_type() -> None:
    """Lightning makes bfloat16 the default in bf16-true, whose uniform draws are 0 one time in 256."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        buffer, echo = ReplayBuffer(3, refresh=1e-4, seed=0), Echo()
        steps(buffer, echo, 1500)
    finally:
        torch.set_default_dtype(torch.float32)
    assert echo.calls <= 3


def test_a_replay_draws_different_rows_and_says_how_old_they_are() -> None:
    buffer = ReplayBuffer(6, refresh=0.0)
    found = steps(buffer, Echo(), 10)
    drawn = {tuple(row.tolist()) for given_ in found[2:] for row in given_.response_ids.flatten(0, 1)}
    assert len(drawn) >= 5
    for given_ in found[2:]:
        rows = {tuple(row.tolist()) for row in given_.prompt.input_ids}
        assert len(rows) == 3  # without replacement
    assert buffer.metrics()["rollout/age"] == pytest.approx(9 - 0.5, abs=0.5)
    assert buffer.metrics()["rollout/writings"] == 2
    assert buffer.metrics()["rollout/buffer"] == 6


def test_refresh_is_a_probability_that_may_fall() -> None:
    constant, falling = Echo(), Echo()
    steps(ReplayBuffer(3, refresh=0.4, seed=1), constant, 400)
    steps(ReplayBuffer(3, refresh=1.0, decay=True, seed=1), falling, 400)
    assert constant.calls == pytest.approx(160, abs=30)
    assert falling.calls == pytest.approx(200, abs=30)
    late = Echo()
    buffer = ReplayBuffer(3, refresh=1.0, decay=True, seed=1)
    steps(buffer, late, 1)
    prompt = prompts([2, 3, 4])
    for _ in range(50):
        buffer.states(late, STUDENT, prompt, update=95, updates=100)
    assert late.calls <= 8


def test_a_shuffled_buffer_writes_every_time_and_trains_on_a_draw() -> None:
    buffer, echo = ReplayBuffer(30, refresh=1.0, shuffle=True, seed=2), Echo()
    found = steps(buffer, echo, 10)
    assert echo.calls == 10
    assert buffer.age > 0.5
    for given_ in found:
        assert_own(given_)


def test_one_writing_serves_as_many_updates_as_asked_for() -> None:
    again, echo = Reuse(3), Echo()
    found = steps(again, echo, 7)
    assert echo.calls == 3
    assert again.metrics() == {"rollout/age": 0.0, "rollout/writings": 3.0}
    ids = [given_.response_ids[given_.response_mask].tolist() for given_ in found]
    assert ids[0] == ids[1] == ids[2] != ids[3] == ids[4] == ids[5] != ids[6]


# -- beside stored states --------------------------------------------------------------------------

STORED = rollout([3, 5, 2], [[4], [1], [3]], [[True]] * 3)


def replayed(beta: float, responses: int = 1) -> Batch:
    """An update's batch whose student-written half has other, longer prompts."""
    buffer = ReplayBuffer(3, refresh=0.0)
    buffer.states(Echo(responses), STUDENT, prompts([4, 8, 1], seed=5), 0, 9)

    def sampler(policy: Policy, prompt: PromptBatch) -> Rollout:
        return buffer.states(Echo(), policy, prompt, 1, 9)

    return collect(STORED, STUDENT, sampler, beta, "token")


@pytest.mark.parametrize("responses", [1, 2])
def test_both_halves_keep_their_prompts_and_weights(responses: int) -> None:
    batch = replayed(0.3, responses)
    states = batch.rollout
    assert states.off_policy[:, 0].tolist() == [True] * 3 + [False] * 3
    assert states.prompt.input_ids.shape == (6, 8)
    lengths = states.prompt.attention_mask.sum(-1)
    assert lengths[:3].tolist() == [3, 5, 2]
    assert sorted(lengths[3:].tolist()) == [1, 4, 8]
    assert states.response_mask[:3, 0].sum(-1).tolist() == [4, 1, 3]
    assert not states.response_mask[:3, 1:].any()
    assert float(batch.weight[:3].sum()) == pytest.approx(0.3)
    assert float(batch.weight[3:].sum()) == pytest.approx(0.7)
    assert_own(states.rows(3, 6))
    only = replayed(0.0, responses)
    assert len(only.weight) == 3
    assert_own(only.rollout)


@pytest.mark.parametrize("method", ["kl", "residual"])
def test_the_gradient_is_the_sum_of_both_halves(method: str) -> None:
    whole = replayed(0.3, responses=2)
    halves = [Batch(whole.rollout.rows(*rows), whole.weight[slice(*rows)]) for rows in ((0, 3), (3, 6))]
    halves[0] = Batch(halves[0].rollout, halves[0].weight[..., : halves[0].rollout.response_ids.shape[-1]])
    found = [
        accumulate(module(method, 0.3, micro_batch_size=size), batch)
        for batch, size in ((whole, 6), (halves[0], 6), (halves[1], 6), (whole, 4))
    ]
    losses = [one.metrics["train/loss"] for one in found]
    assert losses[0] == pytest.approx(losses[1] + losses[2], rel=1e-5)
    assert losses[3] == pytest.approx(losses[0], rel=1e-5)
    for name, value in found[0].gradients.items():
        if name.startswith("student") and value is not None:
            first, second = found[1].gradients[name], found[2].gradients[name]
            assert first is not None
            assert second is not None
            torch.testing.assert_close(value, first + second, rtol=1e-4, atol=1e-6)


# -- in a run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", [None, ReplayBuffer(100, refresh=0.0), ReplayBuffer(4), Reuse(1)])
def test_a_buffer_that_never_replays_changes_no_bit(replay: Replay | None, tmp_path: Path) -> None:
    plain = train(module("kl", 0.5, updates=3), tmp_path / "plain")
    with_ = train(module("kl", 0.5, updates=3, replay=replay), tmp_path / "with")
    for name, value in plain.parameters.items():
        assert torch.equal(value, with_.parameters[name])
    assert plain.module.tokens_seen == with_.module.tokens_seen


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_run_replays_and_tells(beta: float, tmp_path: Path) -> None:
    buffer = ReplayBuffer(8, refresh=0.3, seed=3)
    trained = train(module("rkl", beta, updates=8, replay=buffer), tmp_path)
    writings = [row["rollout/writings"] for row in trained.logged]
    assert writings[:2] == [1, 2]
    assert 2 < writings[-1] < 8 or writings[-1] == 2
    ages = [row["rollout/age"] for row in trained.logged]
    assert ages[:2] == [0.0, 0.0]
    assert max(ages) > 0.0
    assert all(age <= update for update, age in enumerate(ages))


def test_a_buffer_comes_back_bit_for_bit(tmp_path: Path) -> None:
    first = ReplayBuffer(6, refresh=0.5, shuffle=False, seed=4)
    steps(first, Echo(2), 6)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = ReplayBuffer(6, refresh=0.5, seed=99)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.metrics() == first.metrics()
    following = [steps(buffer, Echo(2), 12, seed=7) for buffer in (first, second)]
    for one, other in zip(*following, strict=True):
        for mine, theirs in ((one.response_ids, other.response_ids), (one.prompt[0], other.prompt[0])):
            assert torch.equal(mine, theirs)
    assert first.metrics() == second.metrics()
    again, fresh = Reuse(3), Reuse(3)
    steps(again, Echo(), 5)
    fresh.load_state_dict(again.state_dict())
    assert fresh.metrics() == again.metrics()
    assert torch.equal(*(steps(one, Echo(), 1, seed=8)[0].response_ids for one in (again, fresh)))


def test_a_checkpoint_holds_the_buffer(tmp_path: Path) -> None:
    trained = train(
        module("kl", 0.5, updates=4, replay=ReplayBuffer(8, refresh=0.5, seed=1)),
        tmp_path,
        callbacks=[LastCheckpoint(tmp_path, 1)],
    )
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    fresh = module("kl", 0.5, replay=ReplayBuffer(8, refresh=0.5, seed=77))
    fresh.on_load_checkpoint(saved)
    own, restored = trained.module.states.replay, fresh.states.replay
    assert isinstance(own, ReplayBuffer)
    assert isinstance(restored, ReplayBuffer)
    assert len(restored.rows) == 8
    assert torch.equal(own.generator.get_state(), restored.generator.get_state())
    for mine, theirs in zip(own.rows, restored.rows, strict=True):
        assert mine.written == theirs.written
        assert torch.equal(mine.prompt, theirs.prompt)
        assert all(torch.equal(a, b) for a, b in zip(mine.responses, theirs.responses, strict=True))


def test_the_students_own_sampler_answers_the_prompts_of_the_batch() -> None:
    """Equal prompts in another object are the same prompts: their responses stand side by side."""
    copy = PromptBatch(*(part.clone() for part in STORED.prompt))

    def sampler(policy: Policy, prompt: PromptBatch) -> Rollout:
        return BackendSampler(4)(policy, copy)

    batch = collect(STORED, STUDENT, sampler, 0.5, "token")
    assert batch.rollout.off_policy.tolist() == [[True, False]] * 3
    torch.testing.assert_close(batch.weight, token_weights(batch.rollout, 0.5, "token"))
