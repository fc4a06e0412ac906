"""The sizes of a language model, read off its config on the meta device: no weight is made or loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from amd_lightning.errors import ModelError


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on.

    Attributes:
        name: for tables.
        kind: which layers it has, a key of `activations.LAYERS`.
        vocabulary, width, feed_forward: V, D, and the width of the feed-forward layers.
        heads, key_value_heads, head_size: of attention.
        activation: of the feed-forward layers; `gated` where a second projection multiplies it.
        encoder_layers: 0 for a causal model.
        decoder_layers: of a causal model, all of them.
        dropout: whether anything is dropped while training.
        parameters: distinct ones, tied ones counted once.
        encoder_weights: entries of the matrices that every prompt token is multiplied with.
        decoder_weights: the same for every token that the decoder (a causal model) reads, without the head.
        cross_weights: entries of the decoder's matrices that meet the encoder's output.
        largest_unit: parameters of the largest piece that is gathered at once where weights are sharded.
    """

    name: str
    kind: str
    vocabulary: int
    width: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_size: int
    activation: str
    gated: bool
    encoder_layers: int
    decoder_layers: int
    dropout: bool
    parameters: int
    encoder_weights: int
    decoder_weights: int
    cross_weights: int
    largest_unit: int

    @property
    def attention(self) -> int:
        """The width of all heads together."""
        return self.heads * self.head_size

    @property
    def head_weights(self) -> int:
        """Entries of the head, V·D."""
        return self.vocabulary * self.width


@dataclass(frozen=True)
class Adapters:
    """What LoRA adds to a model.

    Attributes:
        parameters: that learn, all else is frozen.
        encoder_inputs, decoder_inputs: summed widths of the adapted layers' inputs, of one token in the whole
            stack.
        dropout: whether their input is dropped while training.
    """

    parameters: int
    encoder_inputs: int
    decoder_inputs: int
    dropout: bool


def _t5(width: int, feed_forward: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {"d_model": width, "d_ff": feed_forward, "num_layers": layers, "num_heads": heads, "d_kv": 64}
    v1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "dropout_rate": 0.1}
    return {"model_type": "t5", "vocab_size": 32128, **sizes, **v1_1}


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "vocab_size": 50257, "n_embd": width, "n_layer": layers, "n_head": heads}


def _open_llama(width: int, feed_forward: int, layers: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": width,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    }


PUBLISHED: Mapping[str, dict[str, Any]] = {
    # config.json of each repository on the hub; T5 v1.1 also in Shazeer 2020 (arXiv 2002.05202) and the T5
    # repository's released_checkpoints.md; GPT-2 in Radford et al. 2019, table 2; OpenLLaMA 7B as LLaMA 7B
    # (Touvron et al. 2023, arXiv 2302.13971, table 2), 3B in Geng & Liu 2023.
    "google/t5-v1_1-small": _t5(512, 1024, 8, 6),
    "google/t5-v1_1-base": _t5(768, 2048, 12, 12),
    "google/t5-v1_1-large": _t5(1024, 2816, 24, 16),
    "google/t5-v1_1-xl": _t5(2048, 5120, 24, 32),
    "openai-community/gpt2": _gpt2(768, 12, 12),
    "openai-community/gpt2-medium": _gpt2(1024, 24, 16),
    "openai-community/gpt2-large": _gpt2(1280, 36, 20),
    "openai-community/gpt2-xl": _gpt2(1600, 48, 25),
    # The GGUF of the wheel that pypi.py fetches.
    "pypi:smollm2-135m-instruct": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "openlm-research/open_llama_3b": _open_llama(3200, 8640, 26),
    "openlm-research/open_llama_7b": _open_llama(4096, 11008, 32),
}
"""The shapes of the models that conf/pair names, for a plan without the hub."""


def config_of(path: str, revision: str | None = None) -> PreTrainedConfig:
    """The config of a model folder, of a hub id in the local cache, or of a known hub id; nothing is fetched.

    Raises:
        ModelError: none of these, or a folder without a readable config.json.
    """
    folder = Path(path).expanduser()
    is_folder = folder.is_dir() or path.startswith((".", "/", "~"))
    options = {"revision": revision} if revision and not is_folder else {}
    try:
        config = AutoConfig.from_pretrained(
            str(folder) if is_folder else path, local_files_only=True, **options
        )
    except (OSError, ValueError, KeyError) as error:
        if not is_folder and path in PUBLISHED:
            sizes = dict(PUBLISHED[path])
            return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
        hint = (
            "there is no readable config.json" if is_folder else "it is in no local cache and not known here"
        )
        raise ModelError(
            f"the sizes of {path} are unknown: {hint}; give a model folder, or one of {', '.join(PUBLISHED)}"
        ) from error
    return config


def on_meta(config: PreTrainedConfig) -> nn.Module:
    """The model of a config, without memory."""
    loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return loader.from_config(config)


def shape_of(config: PreTrainedConfig, name: str) -> ModelShape:
    """The sizes of a config's model.

    Raises:
        ModelError: layers that no estimate is known for.
    """
    kinds = {"mt5": "t5", "mistral": "llama", "qwen2": "llama"}
    kind = kinds.get(config.model_type, config.model_type)
    if kind not in READERS:
        raise ModelError(f"no estimate is known for models of type {config.model_type}; plan knows {KNOWN}")
    model = on_meta(config)
    weights = {"encoder": 0, "decoder": 0, "cross": 0}
    for where, _, inputs, outputs in matrices(model):
        weights[where] += inputs * outputs
    parameters = sum(parameter.numel() for parameter in model.parameters())
    embeddings = config.vocab_size * config.hidden_size
    if kind == "t5" and not config.scale_decoder_outputs:
        # v1.1: transformers ties the heads of all T5s that it builds, and keeps apart what a checkpoint does.
        parameters += embeddings
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    blocks = [sum(p.numel() for p in block.parameters()) for stack in stacks for block in stack]
    return ModelShape(
        name=name,
        kind=kind,
        vocabulary=config.vocab_size,
        parameters=parameters,
        encoder_weights=weights["encoder"],
        decoder_weights=weights["decoder"],
        cross_weights=weights["cross"],
        largest_unit=max([embeddings, *blocks]),
        **READERS[kind](config),
    )


def adapters_of(
    config: PreTrainedConfig, rank: int, target_modules: Sequence[str], dropout: float
) -> Adapters:
    """What LoRA of this rank adds to the layers whose names end so, `["all-linear"]` for all but the head.

    Raises:
        ModelError: no layer of these names.
    """
    parameters, widths = 0, {"encoder": 0, "decoder": 0, "cross": 0}
    for where, name, inputs, outputs in matrices(on_meta(config)):
        if list(target_modules) == ["all-linear"] or any(
            name == target or name.endswith(f".{target}") for target in target_modules
        ):
            parameters += rank * (inputs + outputs)
            widths[where] += inputs
    if not parameters:
        raise ModelError(f"no layer is named {', '.join(target_modules)} in a {config.model_type}")
    return Adapters(parameters, widths["encoder"] + widths["cross"], widths["decoder"], dropout > 0.0)


CROSS = ("EncDecAttention.k", "EncDecAttention.v", "encoder_attn.k_proj", "encoder_attn.v_proj")


def matrices(model: nn.Module) -> list[tuple[str, str, int, int]]:
    """("encoder", "decoder" or "cross", name, inputs, outputs) of every linear layer but the head."""
    head = model.get_output_embeddings()  # type: ignore[operator]  # of transformers' models
    found = []
    for name, module in model.named_modules():
        if module is head or not isinstance(module, nn.Linear | Conv1D):
            continue
        inputs, outputs = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
        where = "cross" if name.endswith(CROSS) else "encoder" if ".encoder." in f".{name}" else "decoder"
        found.append((where, name, inputs, outputs))
    return found


def _read_t5(config: Any) -> dict[str, Any]:
    return {
        "width": config.d_model,
        "feed_forward": config.d_ff,
        "heads": config.num_heads,
        "key_value_heads": config.num_heads,
        "head_size": config.d_kv,
        "activation": config.dense_act_fn,
        "gated": config.is_gated_act,
        "encoder_layers": config.num_layers,
        "decoder_layers": config.num_decoder_layers,
        "dropout": config.dropout_rate > 0.0,
    }


def _read_bart(config: Any) -> dict[str, Any]:
    return {
        "width": config.d_model,
        "feed_forward": max(config.encoder_ffn_dim, config.decoder_ffn_dim),
        "heads": config.decoder_attention_heads,
        "key_value_heads": config.decoder_attention_heads,
        "head_size": config.d_model // config.decoder_attention_heads,
        "activation": config.activation_function,
        "gated": False,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "dropout": config.dropout > 0.0,
    }


def _read_llama(config: Any) -> dict[str, Any]:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "width": config.hidden_size,
        "feed_forward": config.intermediate_size,
        "heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head_size": size,
        "activation": config.hidden_act,
        "gated": True,
        "encoder_layers": 0,
        "decoder_layers": config.num_hidden_layers,
        "dropout": False,
    }


def _read_gpt2(config: Any) -> dict[str, Any]:
    return {
        "width": config.n_embd,
        "feed_forward": config.n_inner or 4 * config.n_embd,
        "heads": config.n_head,
        "key_value_heads": config.n_head,
        "head_size": config.n_embd // config.n_head,
        "activation": config.activation_function,
        "gated": False,
        "encoder_layers": 0,
        "decoder_layers": config.n_layer,
        "dropout": config.resid_pdrop > 0.0,
    }


def _read_opt(config: Any) -> dict[str, Any]:
    return {
        "width": config.hidden_size,
        "feed_forward": config.ffn_dim,
        "heads": config.num_attention_heads,
        "key_value_heads": config.num_attention_heads,
        "head_size": config.hidden_size // config.num_attention_heads,
        "activation": config.activation_function,
        "gated": False,
        "encoder_layers": 0,
        "decoder_layers": config.num_hidden_layers,
        "dropout": config.dropout > 0.0,
    }


READERS = {"t5": _read_t5, "bart": _read_bart, "llama": _read_llama, "gpt2": _read_gpt2, "opt": _read_opt}
KNOWN = "t5, mt5, bart, llama, mistral, qwen2, gpt2 and opt"
