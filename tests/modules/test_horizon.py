"""What follows an action, and the whole response: advantages by hand, and what they do to an update."""

from collections import Counter
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.horizon import (
    BASELINE_RESPONSES,
    Horizon,
    SequenceKernel,
    batch_advantages,
    kernel_costs,
)
from amd_lightning.objectives.kernels import kernel_advantages, kernel_scores, ngram_kernel
from amd_lightning.policies import Policy
from amd_lightning.rollouts import BackendSampler, token_weights
from amd_lightning.types import Batch, PromptBatch, Responses, Rollout
from tests.helpers import EOS, rollout, t5
from tests.modules.harness import accumulate, module, train

STATES = rollout([3, 5, 2], [[4, 2, 3], [1, 5, 2], [3, 1, 4]], [[True, False, False]] * 3)
MASK = STATES.response_mask
OWN = MASK & ~STATES.off_policy.unsqueeze(-1)
PLAIN = Horizon(0.8, baseline="none", centre=False)


def no_sampler(policy: Policy, prompt: PromptBatch) -> Rollout:
    raise AssertionError("nothing may be sampled")


def batch_of(beta: float, states: Rollout = STATES) -> Batch:
    return Batch(states, token_weights(states, beta, "token"))


def unpacked(values: Tensor) -> Tensor:
    """[N] -> [B, C, T], 0 on padding."""
    spread = torch.zeros(MASK.shape, dtype=values.dtype)
    spread[MASK] = values
    return spread


# -- returns and baselines by hand -----------------------------------------------------------------


def returns_by_hand(cost: Tensor, discount: float, length_normalise: bool = False) -> Tensor:
    """Σ_{t'>t} discount^(t'−t) cost_t' along each of the student's responses. [B, C, T]."""
    found = torch.zeros_like(cost)
    for prompt, response, step in OWN.nonzero().tolist():
        later = range(step + 1, int(MASK[prompt, response].sum()))
        total = sum(discount ** (t - step) * float(cost[prompt, response, t]) for t in later)
        found[prompt, response, step] = total / (max(1, len(later)) if length_normalise else 1)
    return found


def less_others(returns: Tensor, same_prompt: bool) -> Tensor:
    """Each return less the mean of the others' that have a token at that step. [B, C, T]."""
    found = returns.clone()
    places = OWN.nonzero().tolist()
    for prompt, response, step in places:
        others = [
            float(returns[a, b, t])
            for a, b, t in places
            if t == step and (a, b) != (prompt, response) and (a == prompt or not same_prompt)
        ]
        found[prompt, response, step] -= sum(others) / max(1, len(others))
    return found


def costs(seed: int = 0) -> Tensor:
    return torch.rand(int(MASK.sum()), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("length_normalise", [False, True])
@pytest.mark.parametrize("baseline", ["none", "time_step", "leave_one_out"])
def test_advantages_of_a_batch(baseline: str, length_normalise: bool, discount: float) -> None:
    horizon = Horizon(discount, baseline=baseline, centre=False, length_normalise=length_normalise)
    (found,) = batch_advantages([STATES], [costs()], horizon)
    expected = returns_by_hand(unpacked(costs()), discount, length_normalise)
    if baseline != "none":
        expected = less_others(expected, same_prompt=baseline == "leave_one_out")
    torch.testing.assert_close(found, expected[MASK])
    assert not unpacked(found)[MASK & ~OWN].any()
    assert unpacked(found)[OWN].abs().max() > 0.1


def test_centring_takes_the_others_token_mean_off_each_cost() -> None:
    (found,) = batch_advantages([STATES], [costs()], Horizon(1.0, baseline="none"))
    cost = unpacked(costs())
    for prompt, response in (~STATES.off_policy).nonzero().tolist():
        others = OWN.clone()
        others[prompt, response] = False
        less = cost - cost[others].mean()
        expected = returns_by_hand(less, 1.0)[prompt, response]
        torch.testing.assert_close(unpacked(found)[prompt, response], expected)


@pytest.mark.parametrize("baseline", ["none", "time_step", "leave_one_out"])
def test_cut_into_micro_batches_they_are_the_batchs(baseline: str) -> None:
    horizon = Horizon(0.8, baseline=baseline)
    (whole,) = batch_advantages([STATES], [costs()], horizon)
    parts = [STATES.rows(row, row + 1) for row in range(3)]
    counts = [int(part.response_mask.sum()) for part in parts]
    found = torch.cat(batch_advantages(parts, costs().split(counts), horizon))
    torch.testing.assert_close(found, whole)
    # Centring needs the others too: alone, a prompt's responses would be judged by another standard.
    alone = [
        batch_advantages([part], [cost], horizon)[0]
        for part, cost in zip(parts, costs().split(counts), strict=True)
    ]
    assert not torch.allclose(torch.cat(alone), whole)


# -- in the loss -----------------------------------------------------------------------------------


def spoken(some: DistillationModule) -> tuple[Tensor, Tensor, Tensor]:
    """log p [N, V], log q [N, V] with a graph, and the actions written [N, 1]."""
    assert some.teacher is not None
    log_p = some.teacher.log_probs(some.teacher.hidden(STATES)).detach()
    log_q = some.student.log_probs(some.student.hidden(STATES))
    return log_p, log_q, STATES.response_ids[MASK].unsqueeze(-1)


def distance(method: str, some: DistillationModule, returns: str = "expected") -> tuple[Tensor, Tensor]:
    """The distance at each state and the cost that stands for it, by hand. [N] each."""
    log_p, log_q, actions = spoken(some)
    p, q = log_p.exp(), log_q.exp()
    if method == "rkl":
        at_states, sampled = (q * (log_q - log_p)).sum(-1), (log_q - log_p).gather(-1, actions).squeeze(-1)
    elif method == "kl":
        at_states, sampled = (p * (log_p - log_q)).sum(-1), torch.zeros(len(p))
    else:
        f = torch.tanh(0.5 * (log_p - log_q)).detach()
        if isinstance(some, AdversarialModule) and method == "learned":
            f = some.critics(some._pack(batch_of(0.3)), log_p, log_q).detach()
        at_states = ((p - q) * f).sum(-1)
        sampled = (p * f).sum(-1) - f.gather(-1, actions).squeeze(-1)
    return at_states, (at_states if returns == "expected" else sampled).detach()


@pytest.mark.parametrize(
    "method, returns",
    [
        *((method, "expected") for method in ("kl", "rkl", "closed_form", "learned")),
        *((method, "sampled") for method in ("rkl", "closed_form", "learned")),
    ],
)
def test_the_gradient_is_the_distances_and_the_written_tokens_times_what_follows(
    method: str, returns: str
) -> None:
    horizon = Horizon(0.8, returns=returns, baseline="time_step", centre=False)
    some = module(method, 0.3, horizon=horizon)
    at_states, cost = distance(method, some, returns)
    advantage = less_others(returns_by_hand(unpacked(cost), 0.8), same_prompt=False)[MASK]
    _, log_q, actions = spoken(some)
    weight = token_weights(STATES, 0.3, "token")[MASK]
    loss = (weight * (at_states + advantage * log_q.gather(-1, actions).squeeze(-1))).sum()
    parameters = dict(some.student.named_parameters())
    expected = torch.autograd.grad(loss, list(parameters.values()))
    found = accumulate(some, batch_of(0.3))
    assert found.metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-4)
    for name, gradient in zip(parameters, expected, strict=True):
        own = found.gradients[f"student.{name}"]
        torch.testing.assert_close(own, gradient, rtol=1e-3, atol=1e-6, msg=name)


def gradients(method: str, beta: float, states: Rollout = STATES, **settings: Any) -> dict[str, Tensor]:
    found = accumulate(module(method, beta, **settings), batch_of(beta, states)).gradients
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("method", ["rkl", "residual"])
def test_a_horizon_counts_on_student_written_states_alone(method: str) -> None:
    without = gradients(method, 0.3)
    assert apart(gradients(method, 0.3, horizon=PLAIN), without) > 1e-3
    assert apart(gradients(method, 0.3, horizon=Horizon(0.0, baseline="none", centre=False)), without) == 0.0
    at_one = gradients(method, 1.0)
    for everything in ({"horizon": Horizon(1.0)}, {"kernel": SequenceKernel(1.0)}, {"teacher_share": 0.5}):
        assert apart(gradients(method, 1.0, **everything), at_one) == 0.0


def test_at_beta_1_a_horizon_neither_samples_nor_looks_ahead(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sampler": no_sampler, "horizon": Horizon(1.0), "kernel": SequenceKernel(1.0)}
    plain = train(module("residual", 1.0), tmp_path).parameters
    found = train(module("residual", 1.0, **settings), tmp_path).parameters
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_advantages_draw_nothing_at_random() -> None:
    """So that a horizon leaves the random stream of a run where it was."""
    some = module("residual", 0.3, horizon=Horizon(1.0), kernel=SequenceKernel(1.0))
    before = torch.get_rng_state()
    some._advantages([batch_of(0.3, with_samples(STATES))])
    assert torch.equal(torch.get_rng_state(), before)


# -- the sequence-level term -----------------------------------------------------------------------


def with_samples(states: Rollout, count: int = 3, length: int = 4) -> Rollout:
    shape = (len(states.response_ids), count, length)
    ids = torch.randint(3, 9, shape, generator=torch.Generator().manual_seed(3))
    return states._replace(samples=Responses(ids, torch.ones(shape, dtype=torch.bool)))


def similarity(one: list[int], other: list[int], longest: int) -> float:
    """The mean over n of Σ √(share of an n-gram in one · its share in the other)."""
    total = 0.0
    for size in range(1, longest + 1):
        grams = [
            Counter(tuple(([-1] * (size - 1) + ids)[i : i + size]) for i in range(len(ids)))
            for ids in (one, other)
        ]
        total += sum(sqrt(n / len(one) * grams[1][gram] / len(other)) for gram, n in grams[0].items())
    return total / longest


def costs_by_hand(states: Rollout, longest: int) -> Tensor:
    """−(nearness to the samples less that to the other responses). [B, C]."""
    assert states.samples is not None
    found = torch.zeros(states.off_policy.shape)
    for prompt in range(len(found)):
        columns = (~states.off_policy[prompt]).nonzero().flatten().tolist()
        own = [states.response_ids[prompt, c][states.response_mask[prompt, c]].tolist() for c in columns]
        pairs = zip(states.samples.ids[prompt], states.samples.mask[prompt], strict=True)
        theirs = [ids[mask].tolist() for ids, mask in pairs]
        to_teacher = [sum(similarity(y, z, longest) for z in theirs) / len(theirs) for y in own]
        for place, column in enumerate(columns):
            others = [y for y in own if y is not own[place]]
            among = sum(similarity(own[place], y, longest) for y in others) / len(others)
            found[prompt, column] = -(to_teacher[place] - among)
    return found


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_each_token_bears_its_responses_cost(longest: int) -> None:
    states = with_samples(STATES)
    found = unpacked(kernel_costs(states, SequenceKernel(0.7, longest)))
    expected = 0.7 * costs_by_hand(states, longest).unsqueeze(-1) * MASK
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not found[STATES.off_policy].any()
    assert found.abs().max() > 0.05


def test_what_is_like_the_teachers_samples_costs_less_than_nothing() -> None:
    states = rollout([3, 2], [[4, 4, 4]] * 2, [[True, False, False]] * 2)
    states.response_ids[:, 1] = torch.tensor([5, 6, 7, EOS])
    states.response_ids[:, 2] = torch.tensor([20, 21, 22, 23])
    samples = torch.tensor([5, 6, 7, EOS]).expand(2, 4, -1).clone()
    states = states._replace(samples=Responses(samples, torch.ones_like(samples, dtype=torch.bool)))
    found = kernel_costs(states, SequenceKernel(1.0))
    per_response = found.unflatten(0, (2, 3, 4))
    torch.testing.assert_close(per_response[:, 1], torch.full((2, 4), -1.0))
    assert not per_response[:, 2].any()
    assert not per_response[:, 0].any()


@pytest.mark.parametrize("count", [BASELINE_RESPONSES - 1, BASELINE_RESPONSES])
def test_scores_have_a_baseline_where_it_takes_noise_away(count: int) -> None:
    torch.manual_seed(4)
    own, samples = torch.randint(4, 8, (2, count, 3)), torch.randint(4, 8, (2, 4, 3))
    states = rollout([3, 2], [[3] * count] * 2, [[False] * count] * 2)
    states.response_ids[...] = own
    states = states._replace(samples=Responses(samples, torch.ones_like(samples, dtype=torch.bool)))
    everything = torch.ones_like(own, dtype=torch.bool)
    kernels = [
        ngram_kernel(own, everything, other, torch.ones_like(other, dtype=torch.bool), range(1, 3))
        for other in (own, samples)
    ]
    rule = kernel_scores if count < BASELINE_RESPONSES else kernel_advantages
    found = kernel_costs(states, SequenceKernel(1.0)).unflatten(0, (2, count, 3))
    torch.testing.assert_close(found[..., 0], -rule(*kernels))


@pytest.mark.parametrize("method", ["kl", "residual"])
def test_the_term_is_added_to_whatever_the_distance_is(method: str) -> None:
    """Its gradient is linear in its weight: 0 leaves the update as it is."""
    states = with_samples(STATES)
    plain = gradients(method, 0.3, states)
    found = [gradients(method, 0.3, states, kernel=SequenceKernel(weight)) for weight in (0.0, 1.0, 2.0)]
    assert apart(found[0], plain) < 1e-7
    assert apart(found[1], plain) > 1e-3
    for name, value in plain.items():
        torch.testing.assert_close(found[2][name] - value, 2 * (found[1][name] - value), rtol=1e-3, atol=1e-6)
    both = gradients(method, 0.3, states, kernel=SequenceKernel(1.0), horizon=PLAIN)
    ahead = gradients(method, 0.3, states, horizon=PLAIN)
    for name, value in plain.items():
        torch.testing.assert_close(both[name] - ahead[name], found[1][name] - value, rtol=1e-3, atol=1e-6)


def test_its_gradient_is_that_of_the_written_tokens() -> None:
    some = module("kl", 0.3, kernel=SequenceKernel(0.7, ngram=2))
    states = with_samples(STATES)
    _, log_q, actions = spoken(some)
    cost = (0.7 * costs_by_hand(states, 2).unsqueeze(-1) * MASK)[MASK]
    weight = token_weights(STATES, 0.3, "token")[MASK]
    at_states, _ = distance("kl", some)
    loss = (weight * (at_states + cost * log_q.gather(-1, actions).squeeze(-1))).sum()
    loss.backward()
    expected = {name: value.grad.clone() for name, value in some.student.named_parameters()}  # type: ignore[union-attr]
    some.zero_grad()
    found = accumulate(some, batch_of(0.3, states)).gradients
    for name, gradient in expected.items():
        torch.testing.assert_close(found[f"student.{name}"], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_it_runs_on_the_students_own_responses(beta: float, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sampler": BackendSampler(6, responses=3), "kernel": SequenceKernel(5.0)}
    found = train(module("kl", beta, student=t5(1), **settings), tmp_path, samples=2).parameters
    plain = train(
        module("kl", beta, student=t5(1), sampler=settings["sampler"]), tmp_path, samples=2
    ).parameters
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert any(not torch.equal(found[name], value) for name, value in plain.items())
