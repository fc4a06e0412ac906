"""Tiny models of every family that policies serve, with random weights from fixed seeds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from amd_lightning.models.families import policy_for
from amd_lightning.policies import Policy
from amd_lightning.types import Rollout
from tests.helpers import EOS, PAD, VOCABULARY, bart, t5

POSITIONS = 48


def llama(seed: int = 0, kind: str = "llama", **fields: Any) -> Policy:
    """A tiny Llama, Qwen2 or Qwen3 with grouped keys, two layers."""
    config, model = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[kind]
    architecture: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": False,
        "pad_token_id": PAD,
        "bos_token_id": 2,
        "eos_token_id": EOS,
    }
    torch.manual_seed(seed)
    return random(model(config(**architecture | fields)), seed)


def gpt2(seed: int = 0, **fields: Any) -> Policy:
    """A tiny GPT-2: no pad token, tied."""
    architecture = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
    names = {"vocab_size": VOCABULARY, "bos_token_id": EOS, "eos_token_id": EOS}
    still = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    return random(GPT2LMHeadModel(GPT2Config(**architecture | names | still | fields)), seed)


def opt(seed: int = 0, **fields: Any) -> Policy:
    """A tiny OPT whose embeddings are narrower than its layers (as those of 350m), tied, BOS its EOS."""
    architecture: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "word_embed_proj_dim": 8,
        "do_layer_norm_before": False,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": POSITIONS,
        "dropout": 0.0,
        "pad_token_id": PAD,
        "bos_token_id": EOS,
        "eos_token_id": EOS,
    }
    return random(OPTForCausalLM(OPTConfig(**architecture | fields)), seed)


@torch.no_grad()
def random(model: PreTrainedModel, seed: int) -> Policy:
    """Weights so large that positions, padding and every layer show in the logits."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy_for(model.eval())


CAUSAL: dict[str, Callable[[], Policy]] = {
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "qwen2": lambda: llama(kind="qwen2"),
    "qwen3": lambda: llama(kind="qwen3"),
    "gpt2": gpt2,
    "gpt2, untied": lambda: gpt2(tie_word_embeddings=False),
    "opt": opt,
    "opt, as 125m": lambda: opt(do_layer_norm_before=True, word_embed_proj_dim=16),
}
ENCODER_DECODER: dict[str, Callable[[], Policy]] = {
    "t5 v1.0, tied and scaled": lambda: t5(tied=True, feed_forward_proj="relu"),
    "t5 v1.1, untied and gated": t5,
    "bart, with a bias on the logits": bart,
}
FAMILIES = CAUSAL | ENCODER_DECODER


def own_logits(policy: Policy, some: Rollout) -> Tensor:
    """The model's own forward over each response by itself, nothing padded: [N, V]."""
    found = []
    for row in range(len(some.response_ids)):
        prompt = some.prompt.input_ids[row][some.prompt.attention_mask[row].bool()]
        for ids, mask in zip(some.response_ids[row], some.response_mask[row], strict=True):
            found.append(logits_of_one(policy.model, prompt, ids[mask]))
    return torch.cat(found)


def logits_of_one(model: Any, prompt: Tensor, response: Tensor) -> Tensor:
    """[T, V] before each token of one response."""
    if model.config.is_encoder_decoder:
        start = torch.tensor([model.config.decoder_start_token_id])
        inputs = torch.cat([start, response[:-1]])
        logits: Tensor = model(input_ids=prompt[None], decoder_input_ids=inputs[None]).logits[0]
        return logits
    logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0]
    return logits[len(prompt) - 1 : -1]
