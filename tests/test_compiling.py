"""trainer.compile: the same numbers, the same names, and nothing compiled while writing."""

import pytest
import torch
from torch import nn

from amd_lightning.compiling import compile_layers, outermost_lists
from amd_lightning.policies import Policy
from tests.families import llama
from tests.helpers import prompts, rollout, t5


@pytest.mark.parametrize("make", [t5, llama], ids=["t5", "llama"])
def test_compiled_layers_give_the_same_features_gradients_and_responses(make: object) -> None:
    plain, compiled = make(), make()  # type: ignore[operator]
    names = list(compiled.state_dict())
    compile_layers(compiled, backend="aot_eager")
    assert list(compiled.state_dict()) == names
    for lengths in ([3, 5], [4, 2]):
        written = rollout(lengths, [[2], [4]], [[True], [True]])
        features = [policy.hidden(written) for policy in (plain, compiled)]
        torch.testing.assert_close(features[1], features[0])
        for policy, own in zip((plain, compiled), features, strict=True):
            policy.zero_grad()
            own.square().sum().backward()
    for name, weight in plain.named_parameters():
        other = compiled.get_parameter(name)
        torch.testing.assert_close(other.grad, weight.grad)
    ids = []
    for policy in (plain, compiled):
        torch.manual_seed(0)
        ids.append(policy.respond(prompts([3, 5]), 5)[0])
    assert torch.equal(*ids)


def test_the_stacks_are_those_of_layers() -> None:
    def depths(policy: Policy) -> list[int]:
        return [len(stack) for stack in outermost_lists(policy.model)]

    config = t5().model.config
    assert depths(t5()) == [config.num_layers, config.num_decoder_layers]
    assert depths(llama()) == [llama().model.config.num_hidden_layers]
    assert outermost_lists(nn.Linear(2, 2)) == []
