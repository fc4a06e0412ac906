"""The loop that writes token by token, against transformers' `generate`."""

from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from amd_lightning import writing
from amd_lightning.policies import Policy
from amd_lightning.writing import RoomyLayer, drawn
from tests.families import FAMILIES
from tests.helpers import PAD, prompts


def responses(policy: Policy, lengths: list[int], **choice: Any) -> torch.Tensor:
    torch.manual_seed(0)
    some = prompts(lengths, pad_id=policy.model.config.pad_token_id or PAD)
    return policy.respond(some, 9, **choice)[0]


@pytest.mark.parametrize("lengths", [[4, 4, 4, 4], [4, 2, 3, 5]], ids=["full", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_tokens_as_generate(
    family: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, teacher = FAMILIES[family](), FAMILIES[family]()
    assert policy.writes_itself
    policy.limit_vocabulary(policy.head_size - 2)
    choices: list[dict[str, Any]] = [{}, {"temperature": 0.7}, {"sample": False}]
    choices.append({"mixed_with": teacher, "mixed_share": 0.4})
    ours = [responses(policy, lengths, **choice) for choice in choices]
    monkeypatch.setattr(type(policy), "writes_itself", False)
    for own, choice in zip(ours, choices, strict=True):
        torch.testing.assert_close(own, responses(policy, lengths, **choice), rtol=0, atol=0)
    assert not torch.equal(ours[0], ours[2][:, : ours[0].shape[1]])


def test_a_model_without_a_plain_cache_writes_with_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = FAMILIES["llama"]()
    monkeypatch.setattr(type(policy.model), "_supports_default_dynamic_cache", classmethod(lambda cls: False))
    assert not policy.writes_itself
    assert responses(policy, [3, 2]).shape[0] == 2


def test_draws_by_the_cumulative_distribution_have_its_frequencies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LARGE", 4)
    torch.manual_seed(0)
    probabilities = torch.tensor([0.0, 0.4, 0.0, 0.1, 0.5, 0.0])
    counts = drawn(probabilities.expand(20_000, -1)).bincount(minlength=6) / 20_000
    torch.testing.assert_close(counts, probabilities, rtol=0, atol=0.015)
    assert counts[[0, 2, 5]].sum() == 0


def test_a_draw_of_almost_1_stays_among_the_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LARGE", 4)
    last = torch.nextafter(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    for number in (torch.zeros_like(last), last):
        monkeypatch.setattr(torch, "rand", lambda *size, number=number, dtype: number.expand(size))
        probabilities = torch.tensor([[0.0, 0.3, 0.3, 0.4, 0.0, 0.0]]) * (1.0 - 1e-6)
        assert int(drawn(probabilities)) == (1 if number == 0.0 else 3)


def test_a_layer_with_room_holds_what_a_growing_one_does() -> None:
    roomy, plain = RoomyLayer(5), DynamicLayer()
    for positions in (3, 1, 1, 1, 4):  # past its room, which then doubles
        states = torch.randn(2, 2, 3, positions, 4)
        for mine, theirs in zip(roomy.update(*states), plain.update(*states), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert roomy.get_mask_sizes(1) == plain.get_mask_sizes(1)
