"""Weights of small models that are trained from scratch: attention that starts as trained attention looks.

With its own initialisation a T5 or Llama of a few hundred thousand parameters is slow to learn to copy a name
out of its prompt. Trained Transformers share two properties that can be set by hand
(Trockman & Kolter 2023, arXiv 2305.09828, "Mimetic initialization of self-attention layers"): queries and
keys are alike, so that a token attends to tokens like itself, and the output projection undoes the value
projection, so that what is attended to is copied. A T5's relative biases are our own addition: heads begin
by looking near. So is the size of a Llama's queries and keys.
"""

import torch
from torch import nn
from transformers import LlamaForCausalLM, T5ForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.t5.modeling_t5 import T5Attention

SPAN = 3.0
"""The relative bias of the nearest and, negative, of the furthest positions; our choice."""


@torch.no_grad()
def imitate_trained_attention(model: T5ForConditionalGeneration | LlamaForCausalLM) -> None:
    """Rewrite the attention weights of a fresh model in place; draws from torch's global random stream."""
    for module in model.modules():
        if isinstance(module, LlamaAttention):
            _imitate_in_llama(module)
        if not isinstance(module, T5Attention):
            continue
        nn.init.orthogonal_(module.v.weight)
        module.o.weight.copy_(module.v.weight.T)
        # T5 folds attention's 1/√d_kv into the scale of the queries' weights, so the keys keep their own.
        query = module.q.weight / module.q.weight.std() * module.k.weight.std()
        module.k.weight.copy_(0.5 * (module.k.weight + query))
        if module.has_relative_attention_bias:
            _look_near(module.relative_attention_bias.weight, both_sides=not module.is_decoder)


def _imitate_in_llama(module: LlamaAttention) -> None:
    """For as many key heads as query heads."""
    nn.init.orthogonal_(module.v_proj.weight)
    module.o_proj.weight.copy_(module.v_proj.weight.T)
    # Of unit variance behind the norm's features, where Llama's own are so small that attention is flat.
    for projection in (module.q_proj, module.k_proj):
        nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
    module.k_proj.weight.copy_(0.5 * (module.k_proj.weight + module.q_proj.weight))


def _look_near(bias: torch.Tensor, both_sides: bool) -> None:
    """Biases [buckets, heads]: one head for the previous token (and one for the next), the others for what is
    near, on alternate sides where a token may look both ways. An encoder's first half of the buckets counts
    backwards, its second half forwards."""
    buckets, heads = bias.shape
    span = buckets // 2 if both_sides else buckets
    bias.zero_()
    for head in range(heads):
        start, rank = (head % 2 * span, head // 2) if both_sides else (0, head)
        if rank == 0:
            bias[start + 1, head] = SPAN
        else:
            bias[start : start + span, head] = torch.linspace(SPAN, -SPAN, span)
