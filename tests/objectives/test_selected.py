"""Products with chosen rows: those of the gathered rows, in value and gradient."""

import pytest
import torch
from torch import Tensor

from amd_lightning.objectives.selected import products_at, rows_at
from amd_lightning.objectives.support import GROUP, _largest


def gathered(hidden: Tensor, weight: Tensor, actions: Tensor) -> Tensor:
    return (weight[actions] * hidden.unsqueeze(1)).sum(-1)


@pytest.mark.parametrize("states, asked", [(1, 1), (5, 3), (7, 40), (3, 0), (0, 4)])
def test_values_and_gradients_are_those_of_the_gathered_rows(states: int, asked: int) -> None:
    generator = torch.Generator().manual_seed(states)
    hidden = torch.randn(states, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    actions = torch.randint(0, 11, (states, asked), generator=generator)
    upstream = torch.randn(states, asked, generator=generator, dtype=torch.float64)
    found, expected = products_at(hidden, weight, actions), gathered(hidden, weight, actions)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    of_found = torch.autograd.grad(found, (hidden, weight), upstream)
    of_expected = torch.autograd.grad(expected, (hidden, weight), upstream)
    for one, other in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


ON_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
def test_the_same_actions_give_the_same_bits_twice(device: str) -> None:
    weight = torch.randn(50, 8, requires_grad=True, device=device)
    hidden, actions = torch.randn(640, 8, device=device), torch.randint(0, 50, (640, 60), device=device)
    upstream = torch.randn(640, 60, device=device)

    def gradients() -> tuple[Tensor, ...]:
        bias = rows_at(weight[:, :1], actions).squeeze(-1)
        return torch.autograd.grad(products_at(hidden, weight, actions) + bias, weight, upstream)

    (first,), (second,) = gradients(), gradients()
    assert torch.equal(first, second)


def test_rows_away_from_the_cpu_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(20, 6, requires_grad=True)
    actions, upstream = torch.randint(0, 20, (7, 9)), torch.randn(7, 9, 6)
    here = rows_at(weight, actions)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    there = rows_at(weight, actions)
    assert there.grad_fn is not None
    assert there.grad_fn.name().startswith("IndexBackward")
    assert torch.equal(here, there)
    of_here, of_there = (torch.autograd.grad(rows, weight, upstream)[0] for rows in (here, there))
    assert torch.equal(of_here, of_there)


def test_half_precision_takes_the_plain_way() -> None:
    hidden, weight = torch.randn(4, 8).bfloat16(), torch.randn(9, 8).bfloat16()
    actions = torch.randint(0, 9, (4, 3))
    expected = gathered(hidden.float(), weight.float(), actions)
    torch.testing.assert_close(products_at(hidden, weight, actions).float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("vocabulary", [GROUP * GROUP * 5 + extra for extra in (0, 1, 7, 8, 60)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_largest_are_found_by_their_groups(vocabulary: int, k: int) -> None:
    values = torch.rand(20, vocabulary, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    values[0] = torch.linspace(0, 1, vocabulary)  # the largest side by side, among those left over
    expected = values.topk(k, dim=-1).indices.sort(-1).values
    assert torch.equal(_largest(values, k).sort(-1).values, expected)
