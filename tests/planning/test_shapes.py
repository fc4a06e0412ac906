"""Shapes: what is read off a config is what the model has."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
    T5Config,
)

from amd_lightning.errors import ModelError
from amd_lightning.planning.shapes import PUBLISHED, adapters_of, config_of, matrices, on_meta, shape_of


def tiny(name: str) -> PreTrainedConfig:
    """A config of each family that the plan knows, nothing dropped."""
    sizes: dict[str, Any] = {"vocab_size": 70, "num_hidden_layers": 3, "num_attention_heads": 5}
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    match name:
        case "t5" | "t5_gated":
            kind = "gated-gelu" if name == "t5_gated" else "relu"
            return T5Config(
                vocab_size=70, d_model=40, d_kv=12, d_ff=56, num_layers=3, num_heads=3, dropout_rate=0.0,
                feed_forward_proj=kind,
            )  # fmt: skip
        case "bart":
            layers: dict[str, Any] = {"encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 5}
            return BartConfig(
                vocab_size=70, d_model=40, encoder_ffn_dim=56, decoder_ffn_dim=56, decoder_attention_heads=5,
                dropout=0.0, max_position_embeddings=256, **layers,
            )  # fmt: skip
        case "llama":
            return LlamaConfig(hidden_size=40, intermediate_size=56, **sizes, **ends)
        case "qwen2":
            return Qwen2Config(hidden_size=40, intermediate_size=56, num_key_value_heads=1, **sizes, **ends)
        case "gpt2":
            free: dict[str, Any] = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
            return GPT2Config(vocab_size=70, n_embd=40, n_layer=3, n_head=5, **free, **ends)
        case "opt":
            return OPTConfig(
                hidden_size=40, ffn_dim=56, word_embed_proj_dim=40, dropout=0.0, max_position_embeddings=256,
                **sizes, **ends,
            )  # fmt: skip
    raise AssertionError(name)


FAMILIES = ["t5", "t5_gated", "bart", "llama", "qwen2", "gpt2", "opt"]


def built(config: PreTrainedConfig) -> nn.Module:
    loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return loader.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_real_model(family: str) -> None:
    config = tiny(family)
    shape, model = shape_of(config, family), built(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    assert shape.head_weights == head.weight.numel()
    in_products = shape.encoder_weights + shape.decoder_weights + shape.cross_weights
    assert in_products == sum(inputs * outputs for _, _, inputs, outputs in matrices(model))


def test_weights_belong_to_what_reads_them() -> None:
    shape = shape_of(tiny("t5"), "t5")  # D 40, heads·size 36, F 56
    attention, feed_forward = 4 * 40 * 36, 2 * 40 * 56
    assert shape.encoder_weights == 3 * (attention + feed_forward)
    assert shape.cross_weights == 3 * 2 * 40 * 36
    assert shape.decoder_weights == 3 * (2 * attention + feed_forward) - shape.cross_weights
    assert shape_of(tiny("gpt2"), "gpt2").decoder_weights == 3 * 12 * 40 * 40


def test_nothing_is_made_in_memory() -> None:
    assert {parameter.device.type for parameter in on_meta(tiny("llama")).parameters()} == {"meta"}


# The papers' and repositories' own numbers, in billions.
GOLDEN = {
    "openlm-research/open_llama_7b": 6.74,
    "openlm-research/open_llama_3b": 3.43,
    "openai-community/gpt2": 0.124,
    "openai-community/gpt2-medium": 0.355,
    "openai-community/gpt2-large": 0.774,
    "openai-community/gpt2-xl": 1.56,
    "google/t5-v1_1-small": 0.077,
    "google/t5-v1_1-base": 0.248,
    "google/t5-v1_1-large": 0.783,
    "google/t5-v1_1-xl": 2.85,
    "pypi:smollm2-135m-instruct": 0.1345,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_models_have_their_published_size(name: str) -> None:
    assert shape_of(config_of(name), name).parameters == pytest.approx(GOLDEN[name] * 1e9, rel=0.01)


def test_adapters_are_pefts() -> None:
    from peft import LoraConfig, get_peft_model

    for family, targets in (("llama", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"]), ("t5", ["all-linear"])):
        config = tiny(family)
        asked: Any = "all-linear" if targets == ["all-linear"] else targets
        model: Any = get_peft_model(built(config), LoraConfig(r=4, target_modules=asked))
        found = adapters_of(config, 4, targets, dropout=0.1)
        assert found.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad), family
    assert adapters_of(tiny("llama"), 4, ["q_proj", "v_proj"], 0.0).decoder_inputs == 3 * 2 * 40
    with pytest.raises(ModelError, match="no layer is named nowhere"):
        adapters_of(tiny("llama"), 4, ["nowhere"], 0.0)


def test_a_folder_is_read(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    assert shape_of(config_of(str(tmp_path)), "mine").width == 40


def test_unknown_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no readable config"):
        config_of(str(tmp_path))
    with pytest.raises(ModelError, match="known here; give a model folder"):
        config_of("nobody/has-this")
    with pytest.raises(ModelError, match="no estimate is known for models of type bert"):
        shape_of(BertConfig(), "bert")
