"""Floating-point operations of an update, part by part.

A matrix of n entries costs 2·n operations a token forward; backward costs the same again for the gradient of
its input and once more for its own (Kaplan et al. 2020, arXiv 2001.08361, §2.1 and table 1; Hoffmann et al.
2022, arXiv 2203.15556, appendix F). Attention costs 4·heads·head size a pair of tokens, all pairs counted.
Norms, softmax and activations are left out: they take time on memory, not on arithmetic.
"""

from amd_lightning.planning.memory import Workload
from amd_lightning.planning.shapes import ModelShape


def forward_flops(
    shape: ModelShape, prompts: int, responses: int, prompt_tokens: int, response_tokens: int
) -> int:
    """One forward pass over b prompts with C responses each, without the head."""
    sequences, pair = prompts * responses, 4 * shape.attention
    if not shape.encoder_layers:
        length = prompt_tokens + response_tokens - 1
        return sequences * (
            2 * shape.decoder_weights * length + shape.decoder_layers * pair * length * length
        )
    encoder = prompts * (
        2 * shape.encoder_weights * prompt_tokens + shape.encoder_layers * pair * prompt_tokens**2
    )
    pairs = response_tokens * (response_tokens + prompt_tokens)
    decoder = 2 * (shape.decoder_weights * response_tokens + shape.cross_weights * prompt_tokens)
    return encoder + sequences * (decoder + shape.decoder_layers * pair * pairs)


def generation_flops(shape: ModelShape, sequences: int, prompt_tokens: int, response_tokens: int) -> int:
    """Responses written token by token with a KV cache: as one forward pass in all, each token seeing what
    stands before it, and the head for every token."""
    length = prompt_tokens + response_tokens
    read = forward_flops(shape, sequences, 1, prompt_tokens, 1)
    seen = response_tokens * (length if shape.encoder_layers else prompt_tokens + response_tokens // 2)
    written = 2 * shape.decoder_weights * response_tokens + shape.decoder_layers * 4 * shape.attention * seen
    return read + sequences * (written + 2 * shape.head_weights * response_tokens)


def flops(work: Workload) -> dict[str, int]:
    """Part -> operations of one update of the whole batch."""
    sizes = (work.batch_size, work.responses, work.prompt_tokens, work.response_tokens)
    tokens = work.batch_size * work.responses * work.response_tokens
    forward = forward_flops(work.student, *sizes)
    # Frozen weights need no gradient of their own; what is computed again costs a forward pass.
    backward = forward * (1 if work.adapters else 2)
    parts = {
        "forward and backward": forward + backward + (forward if work.checkpointing else 0),
        "head": 2 * tokens * work.student.head_weights * (2 if work.adapters else 3),
    }
    if work.on_responses:
        sequences = work.batch_size * work.on_responses
        parts["writing responses"] = generation_flops(
            work.student, sequences, work.prompt_tokens, work.response_tokens
        )
        if work.mixes_teacher and work.teacher:
            parts["writing responses"] += generation_flops(
                work.teacher, sequences, work.prompt_tokens, work.response_tokens
            )
    if work.teacher:
        parts["teacher forward"] = forward_flops(work.teacher, *sizes)
        parts["teacher's head"] = 2 * tokens * work.teacher.head_weights
    if work.critics:
        critics = work.critics
        hidden = critics.parameters - (critics.rank + 1) * work.student.vocabulary  # the first layer's
        everywhere = 2 * tokens * (hidden + critics.rank * work.student.vocabulary)
        step = 3 * 2 * tokens * (hidden + critics.rank * critics.actions)
        parts["critics"] = everywhere + critics.steps * step
    return parts
