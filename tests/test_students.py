"""A student of its teacher's layers: all of them are the teacher, some of them are those and no others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from amd_lightning.errors import ModelError
from amd_lightning.models.families import policy_for
from amd_lightning.models.students import Layers, build_student, from_layers, spread
from tests.helpers import VOCABULARY, prompts, t5

ENDS: dict[str, Any] = {"eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0}
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    **ENDS,
}


def bart() -> PreTrainedModel:
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
        decoder_start_token_id=2,
    )
    model = BartForConditionalGeneration(config)
    model.final_logits_bias.normal_()
    return model


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], tuple[str, ...]]] = {
    "t5": (
        lambda: t5(num_layers=4, num_decoder_layers=4).model,
        ("encoder.block", "decoder.block"),
    ),
    "tied t5": (
        lambda: t5(num_layers=4, num_decoder_layers=4, tied=True).model,
        ("encoder.block", "decoder.block"),
    ),
    "bart": (bart, ("model.encoder.layers", "model.decoder.layers")),
    "llama": (
        lambda: LlamaForCausalLM(
            LlamaConfig(**SMALL, intermediate_size=24, num_key_value_heads=1, tie_word_embeddings=True)
        ),
        ("model.layers",),
    ),
    "qwen": (
        lambda: Qwen2ForCausalLM(
            Qwen2Config(
                **SMALL,
                intermediate_size=24,
                num_key_value_heads=1,
                use_sliding_window=True,
                sliding_window=2,
                max_window_layers=2,
            )
        ),
        ("model.layers",),
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=4, n_head=2, eos_token_id=1, bos_token_id=1)
        ),
        ("transformer.h",),
    ),
    "opt": (
        lambda: OPTForCausalLM(
            OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32)
        ),
        ("model.decoder.layers",),
    ),
}


def teacher(name: str) -> PreTrainedModel:
    torch.manual_seed(3)
    model = MODELS[name][0]().eval()
    for key, parameter in model.named_parameters():  # no two layers are alike, and no norm is 1
        if parameter.dim() == 1 or "relative_attention_bias" in key:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def logits(model: PreTrainedModel) -> Tensor:
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8, 3, 9, 3, 4]])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[0, 7, 9]])
    with torch.no_grad():
        found: Tensor = model(**inputs).logits
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layers", [Layers(count=4), Layers(indices=[0, 1, 2, 3])], ids=["count", "indices"])
def test_all_layers_are_the_teacher(name: str, layers: Layers) -> None:
    model = teacher(name)
    torch.testing.assert_close(logits(from_layers(model, layers)), logits(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_chosen_layers_are_the_teachers_and_everything_else_too(name: str, tmp_path: Path) -> None:
    model = teacher(name)
    student = from_layers(model, Layers(indices=[1, 3]))
    stacks = MODELS[name][1]
    theirs, mine = model.state_dict(), student.state_dict()
    for key, value in mine.items():
        source = key
        for stack in stacks:
            if key.startswith(f"{stack}."):
                place, _, rest = key.removeprefix(f"{stack}.").partition(".")
                layer = 0 if "relative_attention_bias" in rest else [1, 3][int(place)]  # T5's stands in one
                source = f"{stack}.{layer}.{rest}"
        torch.testing.assert_close(value, theirs[source], rtol=0, atol=0)
    assert student.config.num_hidden_layers == 2
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in model.parameters())
    ids, _ = policy_for(student).respond(prompts([3, 2]), 4)
    assert ids.shape == (2, 4)
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), logits(student), rtol=0, atol=1e-6)


def test_student_and_teacher_share_no_memory() -> None:
    model = teacher("llama")
    before = logits(model)
    for parameter in from_layers(model, Layers(count=2)).parameters():
        parameter.data.zero_()
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


def test_per_layer_settings_go_with_their_layers() -> None:
    model = teacher("qwen")
    assert model.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    student = from_layers(model, Layers(indices=[0, 2, 3]))
    assert student.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert model.config.num_hidden_layers == 4


def test_an_encoder_may_keep_more_layers_and_not_fewer() -> None:
    student = from_layers(teacher("bart"), Layers(count=2, encoder_indices=[0, 1, 2, 3]))
    assert (student.config.encoder_layers, student.config.decoder_layers) == (4, 2)
    with pytest.raises(ModelError, match="leaves an encoder with fewer layers than the decoder"):
        from_layers(teacher("t5"), Layers(count=2, encoder_indices=[0]))


def test_the_number_type_is_the_one_asked_for() -> None:
    student = build_student(teacher("llama"), Layers(count=2), "bfloat16")
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "count, depth, expected",
    [
        # Shleifer & Rush 2020, the layers that DistilBART copies of 12.
        (1, 12, [0]),
        (3, 12, [0, 6, 11]),
        (6, 12, [0, 2, 4, 7, 9, 11]),
        (12, 12, list(range(12))),
        (6, 30, [0, 6, 12, 17, 23, 29]),
        (1, 1, [0]),
    ],
)
def test_layers_are_spread_from_the_first_to_the_last(count: int, depth: int, expected: list[int]) -> None:
    assert spread(count, depth) == expected


@pytest.mark.parametrize("layers", [Layers(indices=[0, 4]), Layers(count=5)])
def test_layers_that_the_teacher_lacks_are_refused(layers: Layers) -> None:
    with pytest.raises(ModelError, match=r"and the teacher's stack has 4, counted from 0; take fewer"):
        from_layers(teacher("llama"), layers)


def test_an_encoder_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="LlamaForCausalLM has no encoder; leave"):
        from_layers(teacher("llama"), Layers(count=2, encoder_indices=[0, 1]))
