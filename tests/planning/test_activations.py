"""Activations: the formulas against what autograd keeps."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amd_lightning.planning.activations import activation_bytes
from amd_lightning.planning.shapes import Adapters, shape_of
from tests.planning.test_shapes import FAMILIES, built, tiny

PROMPTS, RESPONSES, PROMPT, RESPONSE = 2, 2, 96, 40


def kept_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes of what autograd saves in a forward pass, parameters apart, each storage once."""
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage  # alive, so that its address is not another's
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def forward(model: Any) -> Any:
    """As `Policy.hidden` runs it: an encoder reads each prompt once, one of them padded."""
    ids = torch.ones(PROMPTS, PROMPT, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    if not model.config.is_encoder_decoder:
        length = PROMPT + RESPONSE - 1
        return model(input_ids=torch.ones(PROMPTS * RESPONSES, length, dtype=torch.long), use_cache=False)
    encoded = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    return model(
        encoder_outputs=(encoded.repeat_interleave(RESPONSES, 0),),
        attention_mask=mask.repeat_interleave(RESPONSES, 0),
        decoder_input_ids=torch.ones(PROMPTS * RESPONSES, RESPONSE, dtype=torch.long),
        use_cache=False,
    )


# Autocast computes powers in float32 on a GPU, as the formula has it for GPT-2's gelu, and not on the CPU.
CASES = [
    (family, precision)
    for family in FAMILIES
    for precision in ("32-true", "bf16-true", "bf16-mixed")
    if (family, precision) != ("gpt2", "bf16-mixed")
]


@pytest.mark.parametrize("family,precision", CASES)
def test_what_is_kept_is_what_autograd_keeps(family: str, precision: str) -> None:
    config = tiny(family)
    model = built(config).train()
    if precision == "bf16-true":
        model.bfloat16()
    mixed = precision == "bf16-mixed"
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if mixed else nullcontext():
        real = kept_bytes(model, lambda: forward(model))
    sizes = (PROMPTS, RESPONSES, PROMPT, RESPONSE, precision)
    estimate = activation_bytes(shape_of(config, family), *sizes, casts_weights=mixed)
    assert estimate.kept == pytest.approx(real, rel=0.05 if precision == "32-true" else 0.13)


def test_a_hand_computed_layer() -> None:
    """Llama in float32: 6 D of norms, 4 D of attention, 4 F, and 3 D at the ends."""
    shape = replace(shape_of(tiny("llama"), "llama"), decoder_layers=1)
    tokens = 3 * (7 + 5 - 1)
    by_hand = 4 * tokens * (6 * 40 + 4 * 40 + 4 * 56 + 3 * 40)
    assert activation_bytes(shape, 3, 1, 7, 5, "32-true") == (by_hand, 0)


def test_checkpointing_keeps_inputs_and_one_layer() -> None:
    shape = shape_of(tiny("llama"), "llama")
    tokens, layer = 11, 4 * (10 * 40 + 4 * 56)
    whole = activation_bytes(shape, 1, 1, 7, 5, "32-true")
    assert whole == (tokens * (3 * layer + 12 * 40), 0)
    found = activation_bytes(shape, 1, 1, 7, 5, "32-true", checkpointing=True)
    assert found == (tokens * (3 * 4 * 40 + 12 * 40), tokens * layer)


def test_frozen_layers_keep_less_and_adapters_their_inputs() -> None:
    shape = shape_of(tiny("llama"), "llama")
    adapters = Adapters(100, 0, decoder_inputs=3 * 80, dropout=True)
    kept = activation_bytes(shape, 1, 1, 7, 5, "32-true", adapters=adapters)
    assert kept.kept == 11 * (3 * 4 * (2 * 40 + 4 * 40 + 3 * 56) + 12 * 40 + 5 * 3 * 80)
