"""Compiled forwards: the same features and gradients, the same names, and writing that is left alone."""

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from amd_lightning.policies import Policy
from amd_lightning.training.compilation import compile_forward
from tests.helpers import llama, prompts, rollout, t5

MODELS: dict[str, Callable[[], Policy]] = {"llama": llama, "t5": t5}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_features_and_gradients_are_those_of_the_plain_model(name: str) -> None:
    plain, compiled = MODELS[name](), MODELS[name]()
    compile_forward(compiled, "aot_eager")
    for lengths in ([[4], [2]], [[3], [6]]):
        states = rollout([3, 2], lengths, [[False]] * 2)
        one, other = plain.hidden(states), compiled.hidden(states)
        torch.testing.assert_close(one, other)
        one.square().sum().backward()
        other.square().sum().backward()
    named = zip(plain.named_parameters(), compiled.named_parameters(), strict=True)
    for (one_name, one_weight), (other_name, other_weight) in named:
        assert one_name == other_name
        if one_weight.grad is not None:
            torch.testing.assert_close(one_weight.grad, other_weight.grad)
    assert list(plain.state_dict()) == list(compiled.state_dict())


def test_another_length_is_not_compiled_anew_and_writing_never_is() -> None:
    policy, counter = llama(), CompileCounter()
    compile_forward(policy, counter)  # type: ignore[arg-type]  # a backend is a name or a function
    for length in (4, 5, 7):
        policy.hidden(rollout([3, 2], [[length], [2]], [[False]] * 2))
    compiled = counter.frame_count
    assert compiled > 0
    for length in (9, 11):
        policy.hidden(rollout([4, 3], [[length], [3]], [[False]] * 2))
    policy.respond(prompts([2, 4, 3]), 6)
    assert counter.frame_count == compiled


def test_a_compiled_policy_writes_what_the_plain_one_does() -> None:
    plain, compiled = llama(), llama()
    compile_forward(compiled, "eager")
    one, other = (policy.respond(prompts([2, 4]), 6, sample=False)[0] for policy in (plain, compiled))
    assert torch.equal(one, other)
