"""What a forward pass keeps for the backward pass, layer by layer.

A layer keeps the inputs of its matrix products (for the weights' gradients) and of what is not linear. The
counts below are of transformers' own layers with fused attention (torch's `scaled_dot_product_attention`), as
in Korthikanti et al. 2023 (arXiv 2205.05198, §4.1), who count Megatron's: 34·D + 5·heads·S bytes a token
there. Tests compare them with what autograd really keeps.
"""

from typing import NamedTuple

from amd_lightning.planning.shapes import Adapters, ModelShape

WIDE = {"32-true": 4, "bf16-mixed": 4, "bf16-true": 2}
"""Bytes of an entry of the residual stream; norms keep it, mixed precision leaves it in float32."""
NARROW = {"32-true": 4, "bf16-mixed": 2, "bf16-true": 2}
"""Bytes of an entry of what matrix products take and give."""


class Layers(NamedTuple):
    """What a kind of layer keeps of one token, beside its feed-forward part."""

    norms: int
    """Norms of an encoder layer (a causal layer); a decoder layer with cross-attention has one more."""
    norm_keeps: dict[str, int]
    """Times D that a norm keeps, its output included, in entries of `WIDE`; by precision."""
    reads: int
    """Matrix products that read a norm's output: mixed precision casts it anew for each."""
    keeps_pairs: str
    """What is kept of every two tokens that attend to one another: a learned bias of each head ("heads"), the
    mask ("mask"), or nothing ("")."""


LAYERS = {
    "t5": Layers(2, {"32-true": 3, "bf16-mixed": 2, "bf16-true": 5}, 4, "heads"),
    "llama": Layers(2, {"32-true": 3, "bf16-mixed": 2, "bf16-true": 4}, 4, ""),
    "gpt2": Layers(2, {"32-true": 2, "bf16-mixed": 1, "bf16-true": 2}, 2, ""),
    "opt": Layers(2, {"32-true": 2, "bf16-mixed": 1, "bf16-true": 2}, 4, ""),
    "bart": Layers(2, {"32-true": 2, "bf16-mixed": 1, "bf16-true": 2}, 4, "mask"),
}

INNER = {
    # (in WIDE where autocast computes powers in float32, in NARROW), times the feed-forward width
    ("gelu_new", True): (4, 3),
    ("gelu_new", False): (3, 2),
    ("silu", True): (0, 4),
    ("gelu", False): (0, 2),
    ("relu", True): (0, 3),
    ("relu", False): (0, 1),
}
"""What a feed-forward layer keeps: the activation's input and intermediate values, and the second product's
input; gated ones (Shazeer 2020) also both factors."""
USUAL = (0, 4)
"""Of an activation that is not in the table."""


class Activations(NamedTuple):
    """Bytes that a forward pass keeps until its backward pass, and that this computes again at a time: a
    layer's, with gradient checkpointing; else 0."""

    kept: int
    again: int


def activation_bytes(
    shape: ModelShape,
    prompts: int,
    responses: int,
    prompt_tokens: int,
    response_tokens: int,
    precision: str,
    *,
    checkpointing: bool = False,
    adapters: Adapters | None = None,
    casts_weights: bool = False,
) -> Activations:
    """What the forward pass of a policy keeps until its backward pass.

    Args:
        shape: of the policy.
        prompts, responses: b prompts with C responses each; an encoder reads a prompt once, a causal model
            once for each response.
        prompt_tokens, response_tokens: P and T, the longest of each.
        precision: "32-true", "bf16-mixed" or "bf16-true".
        checkpointing: keep each layer's input alone.
        adapters: where LoRA learns and all else is frozen.
        casts_weights: whether float32 weights are cast for every product and the casts kept: autocast.

    """
    sequences, wide = prompts * responses, WIDE[precision]
    if shape.encoder_layers:
        prompt, response = prompts * prompt_tokens, sequences * response_tokens
        frozen = adapters is not None
        encoder = _layer(shape, prompt, prompts * prompt_tokens**2, precision, frozen)
        masked = LAYERS[shape.kind].keeps_pairs == "mask"  # of prompts alone; a decoder's is understood
        pairs = 0 if masked else sequences * response_tokens**2
        decoder = _layer(shape, response, pairs, precision, frozen)
        decoder += _cross_attention(shape, sequences, prompt_tokens, response_tokens, precision, frozen)
        once = 3 * wide * shape.width * (prompt * (2 if responses > 1 else 1) + response)
        layers = shape.encoder_layers * encoder + shape.decoder_layers * decoder
        inputs = wide * shape.width * (shape.encoder_layers * prompt + shape.decoder_layers * response)
        largest = max(encoder, decoder)
    else:
        prompt, response = 0, sequences * (prompt_tokens + response_tokens - 1)
        largest = _layer(shape, response, 0, precision, adapters is not None)
        once = 3 * wide * shape.width * response
        layers = shape.decoder_layers * largest
        inputs = wide * shape.width * shape.decoder_layers * response
    if adapters is not None:
        each = NARROW[precision] + (1 if adapters.dropout else 0)
        kept = each * (prompt * adapters.encoder_inputs + response * adapters.decoder_inputs)
        layers += kept
        largest += kept // max(shape.encoder_layers, shape.decoder_layers)
    weights = shape.encoder_weights + shape.decoder_weights + shape.cross_weights if casts_weights else 0
    if checkpointing:
        depth = max(shape.encoder_layers, shape.decoder_layers)
        of_a_layer = 2 * weights // (depth * (2 if shape.encoder_layers else 1))
        return Activations(once + inputs, largest + of_a_layer)
    return Activations(once + layers + 2 * weights, 0)


def _layer(shape: ModelShape, tokens: int, scores: int, precision: str, frozen: bool) -> int:
    """Bytes that a layer without cross-attention keeps.

    Args:
        tokens: that it reads.
        scores: pairs of tokens that attend to one another.
        frozen: no gradient of its weights is wanted: inputs of frozen products are not kept.
    """
    wide, narrow, layers = WIDE[precision], NARROW[precision], LAYERS[shape.kind]
    norms = layers.norms * (1 if frozen else layers.norm_keeps[precision]) * shape.width * wide
    reads = layers.reads + (1 if shape.gated else 0)
    casts = reads * shape.width * narrow if precision == "bf16-mixed" and not frozen else 0
    heads = (2 * shape.attention + 2 * shape.key_value_heads * shape.head_size) * narrow
    in_wide, in_narrow = INNER.get((shape.activation, shape.gated), USUAL)
    inner = (in_wide * wide + (in_narrow - (1 if frozen else 0)) * narrow) * shape.feed_forward
    return tokens * (norms + casts + heads + inner + _dropped(shape)) + scores * _of_a_pair(shape, 4)


def _cross_attention(
    shape: ModelShape, sequences: int, prompt_tokens: int, response_tokens: int, precision: str, frozen: bool
) -> int:
    """Bytes that the cross-attention of a decoder layer adds: a norm, queries and output, keys and values of
    the prompt, and the mask or bias of every pair."""
    wide, narrow, layers = WIDE[precision], NARROW[precision], LAYERS[shape.kind]
    norm = (1 if frozen else layers.norm_keeps[precision]) * shape.width * wide
    casts = shape.width * narrow if precision == "bf16-mixed" and not frozen else 0
    of_response = norm + casts + 2 * shape.attention * narrow
    of_prompt = 2 * shape.attention * narrow + 2 * casts
    pairs = prompt_tokens * response_tokens * _of_a_pair(shape, narrow)
    return sequences * (response_tokens * of_response + prompt_tokens * of_prompt + pairs)


def _of_a_pair(shape: ModelShape, size: int) -> int:
    """Bytes kept of two tokens that attend to one another, `size` bytes an entry."""
    return {"heads": shape.heads * size, "mask": size, "": 0}[LAYERS[shape.kind].keeps_pairs]


def _dropped(shape: ModelShape) -> int:
    """Bytes of a token's dropout masks, one a value: after attention and after the feed-forward layer, in T5
    also inside it."""
    if not shape.dropout:
        return 0
    return 2 * shape.width + (shape.feed_forward if shape.kind == "t5" else 0)
