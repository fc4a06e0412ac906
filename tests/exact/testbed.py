"""A world small enough to be exact: every response enumerated, every expectation a finite sum.

A *state* is the prompt (there is only one) and the tokens written so far; an *action* is the next
token. A response ends with the first EOS, which belongs to it, or at the horizon; nothing after that
is a state. A *policy* is a table of next-token probabilities [S, V], one row a state. With that,

    d(s)      the probability that a policy's response passes through s        `visitation`
    J(π)      Σ_s d(s) Σ_a π(a|s) r(s, a), the expected sum of rewards          `expected_return`
    Q(s, a)   reward now plus what the policy collects after it                 `action_values`
    g(s)      Σ_a (p − q)(a) f(s, a), the moment gap of critic f at s           `gap_at_states`
    L(d, f)   Σ_s d(s) g(s): L_off on the teacher's visits, L_on on the student's

Everything is float64, differentiable, and written as the sums above: nothing here calls the package,
so that tests can compare it with the package. S = number of states, V = vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

DTYPE = torch.float64


@dataclass(frozen=True)
class World:
    """All states and responses over a vocabulary, up to a horizon."""

    vocabulary_size: int = 4
    horizon: int = 4
    eos: int | None = None
    """The token that ends a response, None where only the horizon does."""

    @cached_property
    def prefixes(self) -> list[tuple[int, ...]]:
        """The tokens written so far, for each state: shortest first, so index 0 is the empty prefix."""
        tokens = range(self.vocabulary_size)
        return [
            prefix
            for length in range(self.horizon)
            for prefix in product(tokens, repeat=length)
            if self.eos not in prefix
        ]

    @cached_property
    def responses(self) -> list[tuple[int, ...]]:
        """Every complete response: the first EOS is its last token, or it has `horizon` tokens."""
        return [
            (*prefix, action)
            for prefix in self.prefixes
            for action in range(self.vocabulary_size)
            if action == self.eos or len(prefix) == self.horizon - 1
        ]

    @cached_property
    def child(self) -> Tensor:
        """[S, V] the state that an action leads to; S itself, one past the last, means the end."""
        index = {prefix: state for state, prefix in enumerate(self.prefixes)}
        rows = [
            [index.get((*prefix, action), len(index)) for action in range(self.vocabulary_size)]
            for prefix in self.prefixes
        ]
        return torch.tensor(rows)

    @cached_property
    def levels(self) -> list[Tensor]:
        """The states of each time step t = 0 .. T−1: those with t tokens written."""
        lengths = self.time
        return [(lengths == t).nonzero().flatten() for t in range(self.horizon)]

    @cached_property
    def time(self) -> Tensor:
        """[S] how many tokens are written already."""
        return torch.tensor([len(prefix) for prefix in self.prefixes])

    def path(self, response: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        """The (state, action) pairs of a response, its EOS included."""
        state = 0
        for action in response:
            yield state, action
            state = int(self.child[state, action])


def random_logits(world: World, seed: int, scale: float = 1.5) -> Tensor:
    """[S, V] the logits of a policy without structure."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(world.prefixes), world.vocabulary_size)
    return scale * torch.randn(shape, generator=generator, dtype=DTYPE)


def low_rank_features(world: World, seed: int, rank: int) -> Tensor:
    """[S, rank] fixed features: a student with logits `features @ weight` has rank·V parameters.

    With rank < V − 1 it cannot represent a teacher without structure, however long it trains.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(world.prefixes), rank, generator=generator, dtype=DTYPE)


def visitation(world: World, policy: Tensor) -> Tensor:
    """d [S]: d(empty) = 1, d(s + a) = d(s) π(a|s). Sums to the expected length of a response."""
    reached = [policy.new_ones(1)]
    for t in range(1, world.horizon):
        step = reached[t - 1].unsqueeze(-1) * policy[world.levels[t - 1]]
        reached.append(step[world.child[world.levels[t - 1]] < len(world.prefixes)])
    # The children of one level, row by row, are the next level in order: a last level has none.
    return torch.cat(reached)


def response_probabilities(world: World, policy: Tensor) -> Tensor:
    """[R] the probability of each complete response: the slow way, one product of tokens each."""
    return torch.stack(
        [
            torch.stack([policy[state, action] for state, action in world.path(response)]).prod()
            for response in world.responses
        ]
    )


def action_values(world: World, policy: Tensor, reward: Tensor, discount: float = 1.0) -> Tensor:
    """Q [S, V]: r(s, a) + discount · Σ_a' π(a'|s') Q(s', a'), and nothing after the end."""
    value = reward.new_zeros(len(world.prefixes) + 1)
    for level in reversed(world.levels):
        action_value = reward[level] + discount * value[world.child[level]]
        value = value.index_put((level,), (policy[level] * action_value).sum(-1))
    return reward + discount * value[world.child]


def future(world: World, policy: Tensor, per_state: Tensor, discount: float = 1.0) -> Tensor:
    """[S, V] E Σ_{t'>t} discount^(t'−t) per_state(s_t') after taking a at s: step t itself is not in it."""
    reward = per_state.unsqueeze(-1).expand(-1, world.vocabulary_size)
    return action_values(world, policy, reward, discount) - reward


def expected_return(world: World, policy: Tensor, reward: Tensor) -> Tensor:
    """J(π) = Σ_s d(s) Σ_a π(a|s) r(s, a), a number."""
    return (visitation(world, policy) * (policy * reward).sum(-1)).sum()


def gap_at_states(p: Tensor, q: Tensor, critic: Tensor) -> Tensor:
    """g [S] = Σ_a (p − q)(a) f(s, a)."""
    return torch.einsum("sa,sa->s", p, critic) - torch.einsum("sa,sa->s", q, critic)


def game_value(visits: Tensor, p: Tensor, q: Tensor, critic: Tensor) -> Tensor:
    """L = Σ_s d(s) g(s): L_off with the teacher's visits, L_on with the student's."""
    return (visits * gap_at_states(p, q, critic)).sum()


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """[S] ½ Σ_a |p − q|."""
    return (p - q).abs().sum(-1) / 2


def worst_reward(world: World, p: Tensor, q: Tensor) -> Tensor:
    """[S, V] the reward within ±1 on which teacher and student differ most: sign(d_p·p − d_q·q)."""
    return (_occupancy(world, p) - _occupancy(world, q)).sign()


def worst_case_gap(world: World, p: Tensor, q: Tensor) -> Tensor:
    """sup over |r| ≤ 1 of J(teacher) − J(student) = Σ_{s,a} |d_p(s, a) − d_q(s, a)|."""
    return (_occupancy(world, p) - _occupancy(world, q)).abs().sum()


def _occupancy(world: World, policy: Tensor) -> Tensor:
    """[S, V] the probability of being at s and taking a."""
    return visitation(world, policy).unsqueeze(-1) * policy
