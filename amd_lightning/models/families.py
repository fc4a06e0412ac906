"""The families of models: what makes a policy of an encoder-decoder and of a causal model.

The only file that knows families, shifts responses or takes padding away, and the one that refuses what is
neither: see `policy_for`.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from amd_lightning.errors import ModelError
from amd_lightning.policies import Policy
from amd_lightning.types import PromptBatch, Rollout
from amd_lightning.writing import NextLogits, roomy_cache

USE = "use a causal model such as Llama, Qwen, GPT-2 or OPT, or an encoder-decoder model such as T5 or BART"


def policy_for(model: PreTrainedModel) -> Policy:
    """The policy of a model's family, after three small forwards that check it.

    Raises:
        ModelError: no language-modelling head, no end token, a model whose tokens see what follows them
            (encoder-only), or one that changes its head's logits (by a cap or a scale).
    """
    name = type(model).__name__
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        head = None
    if head is None:
        raise ModelError(f"{name} has no language-modelling head; {USE}")
    policy: Policy = Seq2SeqPolicy(model) if model.config.is_encoder_decoder else CausalPolicy(model)
    was_training = model.training
    model.eval()
    try:
        _check(policy)
    finally:
        model.train(was_training)
    if getattr(model.config, "eos_token_id", None) in (None, []):
        raise ModelError(f"{name} has no end token; set eos_token_id in its config.json")
    return policy


class Seq2SeqPolicy(Policy):
    """T5 (v1.0, v1.1, Flan), BART: an encoder reads the prompt, a decoder writes the response after a start
    token."""

    def hidden(self, rollout: Rollout) -> Tensor:
        """See `Policy`. Each prompt is encoded once, however many responses it has."""
        copies, length = rollout.response_ids.shape[1:]
        encoded, prompt_mask = self._encoded(rollout.prompt), rollout.prompt.attention_mask
        if copies > 1:
            encoded = encoded.repeat_interleave(copies, dim=0)
            prompt_mask = prompt_mask.repeat_interleave(copies, dim=0)
        shifted = rollout.response_ids.reshape(-1, length)[:, :-1]
        with self._captured_head_input() as captured:
            self.model(
                encoder_outputs=(encoded,),
                attention_mask=prompt_mask,
                decoder_input_ids=self._started(shifted),
                use_cache=False,
            )
        return captured[0][rollout.response_mask.reshape(-1, length)]

    def inputs(self, prompt_ids: Tensor, written_ids: Tensor) -> dict[str, Tensor]:
        """See `Policy`."""
        return {"input_ids": prompt_ids, "decoder_input_ids": self._started(written_ids)}

    def _to_generate(self, prompt: PromptBatch, max_tokens: int) -> tuple[dict[str, Tensor], int]:
        return prompt._asdict(), 1  # the start token

    _takes = ("encoder_outputs", "decoder_input_ids", "past_key_values")

    def _continuation(self, prompt: PromptBatch, max_tokens: int) -> NextLogits:
        encoded = self._encoded(prompt)
        cache = roomy_cache(self.model.config, max_tokens)

        def logits(written_ids: Tensor) -> Tensor:
            ids = self._started(written_ids) if written_ids.shape[1] == 0 else written_ids
            return self._next_logits(
                encoder_outputs=(encoded,),
                attention_mask=prompt.attention_mask,
                decoder_input_ids=ids[:, -1:],
                past_key_values=cache,
            )

        return logits

    def _encoded(self, prompt: PromptBatch) -> Tensor:
        """[B, P, D] what the decoder sees of the prompts."""
        encoded: Any = self.model.get_encoder()(**prompt._asdict())
        hidden: Tensor = encoded.last_hidden_state
        return hidden

    def _started(self, ids: Tensor) -> Tensor:
        """The start token before every row."""
        start = ids.new_full((len(ids), 1), self.model.config.decoder_start_token_id)
        return torch.cat([start, ids], dim=1)


class CausalPolicy(Policy):
    """Llama, SmolLM, Qwen, GPT-2, OPT: the response goes on where its prompt ends, and the features of the
    prompt's last token are those of the response's first state."""

    def hidden(self, rollout: Rollout) -> Tensor:
        """See `Policy`. A prompt is read anew before each of its responses.

        Prompt and response are joined without padding between them, and all padding stands behind them,
        where no token of theirs can see it: positions and attention are those of each row by itself.

        Raises:
            ModelError: an empty prompt, or more tokens than the model has positions.
        """
        prompt_ids, prompt_mask = (
            part.repeat_interleave(rollout.response_ids.shape[1], dim=0) for part in rollout.prompt
        )
        response_mask = rollout.response_mask.flatten(0, 1)
        # A response's last token has nothing to say: the state after it is never asked for.
        ids = torch.cat([prompt_ids, rollout.response_ids.flatten(0, 1)[:, :-1]], dim=1)
        ids, mask = _aligned(ids, torch.cat([prompt_mask.bool(), response_mask[:, 1:]], dim=1), "left")
        first = prompt_mask.sum(dim=1, keepdim=True) - 1
        self._require_room(first + 1, mask.shape[1])
        with self._captured_head_input() as captured:
            self.model(input_ids=ids, use_cache=False)
        position = torch.arange(mask.shape[1], device=mask.device)
        states = (position >= first) & (position < first + response_mask.sum(dim=1, keepdim=True))
        return captured[0][states]

    def inputs(self, prompt_ids: Tensor, written_ids: Tensor) -> dict[str, Tensor]:
        """See `Policy`."""
        return {"input_ids": torch.cat([prompt_ids, written_ids], dim=1)}

    def _to_generate(self, prompt: PromptBatch, max_tokens: int) -> tuple[dict[str, Tensor], int]:
        lengths = prompt.attention_mask.sum(dim=1)
        self._require_room(lengths, int(lengths.max()) + max_tokens - 1)
        ids, mask = _aligned(prompt.input_ids, prompt.attention_mask.bool(), "right")
        return {"input_ids": ids, "attention_mask": mask.long()}, ids.shape[1]

    _takes = ("input_ids", "position_ids", "past_key_values")

    def _continuation(self, prompt: PromptBatch, max_tokens: int) -> NextLogits:
        prompt_ids, mask = _aligned(prompt.input_ids, prompt.attention_mask.bool(), "right")
        width = prompt_ids.shape[1]
        cache = roomy_cache(self.model.config, width + max_tokens)
        seen = pad(mask.long(), (0, max_tokens), value=1)
        positions = (seen.cumsum(dim=1) - 1).clamp(min=0)
        padded = not bool(mask.all())

        def logits(written_ids: Tensor) -> Tensor:
            after = width + written_ids.shape[1]
            new = slice(after - 1, after) if after > width else slice(0, width)
            # Without padding the model knows both by itself, and need not make a mask of them at every step.
            where = {"attention_mask": seen[:, :after], "position_ids": positions[:, new]} if padded else {}
            return self._next_logits(
                input_ids=written_ids[:, -1:] if after > width else prompt_ids,
                past_key_values=cache,
                **where,
            )

        return logits

    def _require_room(self, prompt_lengths: Tensor, tokens: int) -> None:
        """Refuse an empty prompt, and more tokens together than the model has positions."""
        if int(prompt_lengths.min()) == 0:
            raise ModelError("a causal model cannot begin after an empty prompt; give every prompt some text")
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room is not None and tokens > room:
            raise ModelError(
                f"{type(self.model).__name__} has {room:,} positions and prompt and response need {tokens:,}"
                f"; lower data.max_prompt_tokens or data.max_response_tokens"
            )


def _aligned(ids: Tensor, mask: Tensor, side: Literal["left", "right"]) -> tuple[Tensor, Tensor]:
    """Every row's tokens moved to one side in their order, and as many columns as the longest row has.

    Args:
        ids: [B, L].
        mask: [B, L] bool, True on tokens, which may have gaps between them.

    Returns:
        Ids (0 on padding: a tokenizer's pad id may lie outside of the model's vocabulary) and mask.
    """
    width = int(mask.sum(dim=1).max())
    order = (mask != (side == "left")).byte().argsort(dim=1, stable=True)
    columns = slice(None, width) if side == "left" else slice(mask.shape[1] - width, None)
    mask = mask.gather(1, order)[:, columns]
    return ids.gather(1, order)[:, columns].masked_fill(~mask, 0), mask


@torch.no_grad()
def _check(policy: Policy) -> None:
    """Refuse a model that `hidden` and `logits` would misread, on a prompt and a response of two tokens."""
    name, device = type(policy.model).__name__, policy.model.device
    prompt, response = torch.tensor([[0, 1], [1, 0]], device=device).unsqueeze(1)
    everywhere = torch.ones_like(prompt)
    rollout = Rollout(
        PromptBatch(prompt, everywhere),
        response.unsqueeze(1),
        everywhere.unsqueeze(1).bool(),
        everywhere[:, :1].bool(),
    )
    ours = policy.logits(policy.hidden(rollout)).float()
    for step, own in enumerate(ours):
        of_model, changed = _last_logits(policy, prompt, response[:, :step])
        if changed:
            raise ModelError(
                f"{name} changes the logits of its head (a soft cap or a scale), which the objectives would "
                f"not see; {USE}"
            )
        # Half of the digits: a model may compute rows of other lengths in another order.
        tolerance = torch.finfo(policy.model.dtype).eps ** 0.5 * float(of_model.abs().max())
        if not torch.allclose(own, of_model, rtol=0.0, atol=tolerance, equal_nan=True):
            raise ModelError(f"{name} is no causal model: its tokens see what follows them; {USE}")


def _last_logits(policy: Policy, prompt: Tensor, written: Tensor) -> tuple[Tensor, bool]:
    """The model's own logits after what was written [V], and whether it changes what its head gives.

    The second is asked by giving it other logits in place of its head's, of the size that a trained
    model's have: a cap at 30 does not show on a fresh model's.
    """
    given: list[Tensor] = []

    def replace(_: object, __: object, logits: Tensor) -> Tensor:
        probe = torch.linspace(-50.0, 50.0, logits.shape[-1]).to(logits).expand_as(logits)
        given.extend((logits, probe))
        return probe

    handle = policy.model.get_output_embeddings().register_forward_hook(replace)
    try:
        returned = policy.model(**policy.inputs(prompt, written), use_cache=False).logits
    finally:
        handle.remove()
    own, probe = (logits + getattr(policy.model, "final_logits_bias", 0.0) for logits in given)
    changed = not torch.allclose(returned.float(), probe.float(), rtol=1e-3, atol=1e-3)
    return own[0, -1].float(), changed
