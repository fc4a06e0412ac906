"""Returns, centring, baselines and importance weights on padded batches."""

from math import inf, nan
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from amd_lightning.objectives.policy_gradient import (
    BASELINES,
    advantages,
    baseline,
    mixture_importance,
    returns_after,
)

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10**6)
kinds = st.sampled_from(BASELINES)

COST = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, nan], [32.0, nan, nan]], dtype=torch.float64)
MASK = ~COST.isnan()
GROUP = torch.tensor([0, 0, 1])


def batch(seed: int, responses: int = 5, steps: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Costs, a mask with at least one token a response, and groups. What the padding holds is NaN."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, steps + 1, (responses, 1), generator=generator)
    mask = torch.arange(steps) < lengths
    cost = torch.randn(responses, steps, generator=generator, dtype=torch.float64)
    group = torch.randint(0, 2, (responses,), generator=generator)
    return torch.where(mask, cost, nan), mask, group


def package(cost: Tensor, mask: Tensor, group: Tensor, kind: str, length_normalise: bool = False) -> Tensor:
    return advantages(
        cost,
        mask,
        discount=0.9,
        centre=True,
        baseline_kind=kind,
        group=group,
        length_normalise=length_normalise,
    )


def close(actual: Tensor, expected: Any) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


# --- Values by hand ---


def test_returns_by_hand() -> None:
    close(returns_after(COST, MASK, 1.0), [[6, 4, 0], [16, 0, 0], [0, 0, 0]])
    close(returns_after(COST, MASK, 0.5), [[2, 2, 0], [8, 0, 0], [0, 0, 0]])
    close(returns_after(COST, MASK, 0.0), [[0, 0, 0]] * 3)
    close(returns_after(COST, MASK, 1.0, length_normalise=True), [[3, 4, 0], [16, 0, 0], [0, 0, 0]])


def test_centring_takes_the_others_token_mean_off_every_cost() -> None:
    means = torch.tensor([[56 / 3], [39 / 4], [31 / 5]], dtype=torch.float64)
    options: Any = {"discount": 0.5, "group": GROUP, "baseline_kind": "none"}
    centred = advantages(COST - means, MASK, centre=False, **options)
    close(advantages(COST, MASK, centre=True, **options), centred)


def test_baselines_by_hand() -> None:
    close(baseline(COST, MASK, "none", GROUP), [[0, 0, 0]] * 3)
    close(baseline(COST, MASK, "time_step", GROUP), [[20, 16, 0], [16.5, 2, 0], [4.5, 0, 0]])
    close(baseline(COST, MASK, "leave_one_out", GROUP), [[8, 16, 0], [1, 2, 0], [0, 0, 0]])


def test_advantages_by_hand() -> None:
    options: Any = {"discount": 1.0, "group": GROUP, "baseline_kind": "time_step"}
    plain = advantages(COST, MASK, centre=False, **options)
    close(plain, [[6 - 8, 4 - 0, 0], [16 - 3, 0 - 4, 0], [0 - 11, 0, 0]])
    # Later tokens: 2 1 0 / 1 0 - / 0 - -, less the same baseline: 1.5 1 0 / 0 -1 - / -1.5 - -.
    lengths = torch.tensor([[1.5, 1, 0], [0, -1, 0], [-1.5, 0, 0]], dtype=torch.float64)
    means = torch.tensor([[56 / 3], [39 / 4], [31 / 5]], dtype=torch.float64)
    close(advantages(COST, MASK, centre=True, **options), plain - means * lengths)


# --- For any batch ---


@quick
@given(seed=seeds, discount=st.floats(0.0, 1.0))
def test_returns_are_the_sum_over_later_steps(seed: int, discount: float) -> None:
    cost, mask, _ = batch(seed)
    cost = torch.where(mask, cost, 0.0)
    steps = range(cost.shape[1])
    expected = [
        sum((discount ** (later - t) * cost[:, later] for later in steps if later > t), torch.zeros(5))
        for t in steps
    ]
    close(returns_after(cost, mask, discount), torch.stack(expected, dim=1))


@quick
@given(seed=seeds, kind=kinds, extra=st.integers(1, 3), normalise=st.booleans())
def test_padding_changes_nothing_and_is_never_read(seed: int, kind: str, extra: int, normalise: bool) -> None:
    cost, mask, group = batch(seed)
    expected = package(cost, mask, group, kind, normalise)
    wider = package(pad(cost, (0, extra), value=inf), pad(mask, (0, extra)), group, kind, normalise)
    assert expected.isfinite().all()
    assert not expected[~mask].any()
    close(wider, pad(expected, (0, extra)))
    for result in (returns_after(cost, mask, 1.0), baseline(cost, mask, kind, group)):
        assert result.isfinite().all()
        assert not result[~mask].any()


@quick
@given(seed=seeds, kind=kinds)
def test_the_order_of_responses_does_not_matter(seed: int, kind: str) -> None:
    cost, mask, group = batch(seed)
    order = torch.randperm(len(cost), generator=torch.Generator().manual_seed(seed))
    close(package(cost[order], mask[order], group[order], kind), package(cost, mask, group, kind)[order])


@quick
@given(seed=seeds, kind=kinds, response=st.integers(0, 4))
def test_an_advantage_depends_on_its_own_tokens_only_through_later_costs(
    seed: int, kind: str, response: int
) -> None:
    """The baseline and the centring of a response: what its own costs cannot change."""
    cost, mask, group = batch(seed)
    changed = cost.clone()
    changed[response] += 1.0
    difference = package(changed, mask, group, kind)[response] - package(cost, mask, group, kind)[response]
    close(difference, returns_after(torch.ones_like(cost), mask, 0.9)[response])
    kept = baseline(changed, mask, kind, group)[response]
    close(kept, baseline(cost, mask, kind, group)[response])


@pytest.mark.parametrize("kind", BASELINES)
def test_a_response_alone_has_neither_baseline_nor_centre(kind: str) -> None:
    cost, mask = COST[:1], MASK[:1]
    close(package(cost, mask, GROUP[:1], kind), returns_after(cost, mask, 0.9))


@pytest.mark.parametrize("kind", BASELINES)
def test_responses_of_one_token_have_no_future(kind: str) -> None:
    cost, mask = COST[:, :1], MASK[:, :1]
    close(package(cost, mask, GROUP, kind), torch.zeros(3, 1))
    close(package(COST, MASK & (torch.arange(3) == 0), GROUP, kind), torch.zeros(3, 3))


def test_advantages_are_constants() -> None:
    cost = torch.where(MASK, COST, 0.0).requires_grad_()
    assert not package(cost, MASK, GROUP, "time_step").requires_grad


def test_what_is_refused() -> None:
    for discount in (-0.1, 1.1, nan):
        with pytest.raises(ValueError, match="discount"):
            returns_after(COST, MASK, discount)
    with pytest.raises(ValueError, match="leave_one_out"):
        baseline(COST, MASK, "batch", GROUP)
    for share in (-0.1, 1.0, nan):
        with pytest.raises(ValueError, match="teacher_share"):
            mixture_importance(torch.zeros(1), torch.zeros(1), share)


# --- Importance weights ---


@quick
@given(log_p=st.floats(-200, 0), log_q=st.floats(-200, 0), share=st.floats(0.01, 0.99))
def test_importance_weights_are_the_quotient_and_bounded(log_p: float, log_q: float, share: float) -> None:
    p, q = (torch.tensor([value], dtype=torch.float64) for value in (log_p, log_q))
    weight = mixture_importance(p, q, share)
    torch.testing.assert_close(weight, q.exp() / (share * p.exp() + (1 - share) * q.exp()))
    assert 0 <= weight.item() <= 1 / (1 - share) + 1e-12
    assert mixture_importance(p, q, 0.0).item() == 1.0


def test_importance_weights_of_impossible_tokens() -> None:
    log_p, log_q = torch.tensor([-inf, 0.0, -1.0]), torch.tensor([-1.0, -inf, -1.0])
    close(mixture_importance(log_p, log_q, 0.2), [1.25, 0.0, 1.0])
    close(mixture_importance(log_p, log_q, 0.0), [1.0, 1.0, 1.0])


def test_importance_weights_are_exact_for_one_token_and_biased_after_it() -> None:
    """Two tokens, the second one's policies [4, 4] dependent on the first: every response enumerated."""
    share, generator = 0.5, torch.Generator().manual_seed(5)
    logits = 1.5 * torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    values = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    log_p, log_q = logits.log_softmax(-1)
    weight = mixture_importance(log_p, log_q, share)
    drawn = share * log_p.exp() + (1 - share) * log_q.exp()
    close((drawn[0] * weight[0] * values).sum(1), (log_q[0].exp() * values).sum(1))

    def expectation(weights: Tensor) -> Tensor:
        return (drawn[0].unsqueeze(1) * drawn[1:] * weights * values).sum()

    exact = (log_q[0].exp().unsqueeze(1) * log_q[1:].exp() * values).sum()
    close(expectation(weight[0].unsqueeze(1) * weight[1:]), exact)
    assert (expectation(weight[1:]) - exact).abs() > 0.01
