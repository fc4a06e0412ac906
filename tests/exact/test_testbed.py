"""The enumeration itself: counted by hand, and checked against the slow way of doing it."""

import pytest
import torch

from .testbed import (
    World,
    action_values,
    expected_return,
    future,
    random_logits,
    response_probabilities,
    visitation,
)

WORLDS = [World(3, 3), World(3, 3, eos=0), World(4, 4), World(4, 4, eos=2), World(2, 5, eos=1)]


def test_a_tiny_world_by_hand() -> None:
    world = World(vocabulary_size=2, horizon=2, eos=0)
    assert world.prefixes == [(), (1,)]
    assert world.responses == [(0,), (1, 0), (1, 1)]
    assert world.child.tolist() == [[2, 1], [2, 2]]  # 2 is the end


def test_visits_and_values_by_hand() -> None:
    world = World(vocabulary_size=2, horizon=2, eos=0)
    policy = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)
    reward = torch.tensor([[1.0, 0.0], [2.0, 4.0]], dtype=torch.float64)
    assert visitation(world, policy).tolist() == [1.0, 0.75]
    assert action_values(world, policy, reward).tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert expected_return(world, policy, reward).item() == 0.25 * 1 + 0.75 * 3
    gap = torch.tensor([9.0, 5.0], dtype=torch.float64)
    assert future(world, policy, gap).tolist() == [[0.0, 5.0], [0.0, 0.0]]


@pytest.mark.parametrize("world", WORLDS)
def test_states_and_responses_agree(world: World) -> None:
    size, horizon = world.vocabulary_size, world.horizon
    branching = size if world.eos is None else size - 1
    assert len(world.prefixes) == sum(branching**t for t in range(horizon))
    policy = random_logits(world, seed=0).softmax(-1)
    probabilities = response_probabilities(world, policy)
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-14)

    visits = torch.zeros(len(world.prefixes), dtype=torch.float64)
    for probability, response in zip(probabilities, world.responses, strict=True):
        for state, _ in world.path(response):
            visits[state] += probability
    torch.testing.assert_close(visitation(world, policy), visits, rtol=0, atol=1e-14)


@pytest.mark.parametrize("world", WORLDS)
def test_a_padded_batch_with_masks_sums_to_the_same(world: World) -> None:
    """Σ_t m_t r(s_t, a_t) over padded responses, with m_t = 1 up to and including the first EOS."""
    policy, reward = random_logits(world, seed=1).softmax(-1), random_logits(world, seed=2)
    probabilities = response_probabilities(world, policy)
    rewards = torch.zeros(len(world.responses), world.horizon, dtype=torch.float64)
    rewards.fill_(1e6)  # what lies behind the mask must not count
    for row, response in enumerate(world.responses):
        for t, (state, action) in enumerate(world.path(response)):
            rewards[row, t] = reward[state, action]
    tokens = torch.full((len(world.responses), world.horizon), -1)
    for row, response in enumerate(world.responses):
        tokens[row, : len(response)] = torch.tensor(response)
    ended_before = ((tokens == world.eos) if world.eos is not None else tokens < 0).cumsum(-1)
    ended_before = torch.nn.functional.pad(ended_before, (1, 0))[:, :-1]
    total = (probabilities.unsqueeze(-1) * rewards * (ended_before == 0)).sum()
    assert total.item() == pytest.approx(expected_return(world, policy, reward).item(), abs=1e-13)


def test_longer_discounts_weigh_later_rewards_less() -> None:
    world = World(2, 3)
    policy, gap = random_logits(world, seed=3).softmax(-1), torch.ones(7, dtype=torch.float64)
    assert future(world, policy, gap, discount=0.0).abs().max().item() == 0.0
    assert future(world, policy, gap, discount=0.5)[0, 0].item() == pytest.approx(0.5 + 0.25)
