"""Teacher and student as policies: π(a | s) over the vocabulary, with s = (prompt, response so far).

The only file that shifts responses or takes padding away. Everybody else sees N packed response
tokens: their features [N, D], and a head that turns features into logits [N, V].
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from amd_lightning.errors import ModelError
from amd_lightning.types import PromptBatch, Rollout


class Policy(nn.Module):
    """An encoder-decoder language model of transformers.

    Raises:
        ModelError: the model is not an encoder-decoder model with a language-modelling head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        if not model.config.is_encoder_decoder or model.get_output_embeddings() is None:
            raise ModelError(
                f"{type(model).__name__} is not an encoder-decoder language model; use one that "
                "AutoModelForSeq2SeqLM loads, such as T5 or BART"
            )
        self.model = model

    @property
    def hidden_size(self) -> int:
        """D, the size of the features that the head sees."""
        return self.model.get_output_embeddings().in_features

    @property
    def vocabulary_size(self) -> int:
        """V, the number of logits."""
        return self.model.get_output_embeddings().out_features

    @property
    def parameter_count(self) -> int:
        """Distinct parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def hidden(self, rollout: Rollout) -> Tensor:
        """Features of every response token, packed: [N, D] in the order of `response_mask`'s True entries.

        Row n is what the head sees at the state *before* the n-th response token. Each prompt is
        encoded once, however many responses it has.
        """
        copies, length = rollout.response_ids.shape[1:]
        prompt_mask = rollout.prompt.attention_mask
        encoded = self.model.get_encoder()(
            input_ids=rollout.prompt.input_ids, attention_mask=prompt_mask
        ).last_hidden_state
        if copies > 1:
            encoded = encoded.repeat_interleave(copies, dim=0)
            prompt_mask = prompt_mask.repeat_interleave(copies, dim=0)
        with self._captured_head_input() as captured:
            self.model(
                encoder_outputs=(encoded,),
                attention_mask=prompt_mask,
                decoder_input_ids=self._shifted(rollout.response_ids.reshape(-1, length)),
                use_cache=False,
            )
        return captured[0][rollout.response_mask.reshape(-1, length)]

    def logits(self, hidden: Tensor) -> Tensor:
        """The head: [N, D] -> [N, V]."""
        logits = self.model.get_output_embeddings()(hidden)
        bias = getattr(self.model, "final_logits_bias", None)  # BART's
        return logits if bias is None else logits + bias

    @property
    def head_parameters(self) -> list[Tensor]:
        """What `logits` is made of: the head's own parameters, adapters included, tied or not."""
        return list(self.model.get_output_embeddings().parameters())

    @property
    def token_embeddings(self) -> Tensor:
        """[V, D] the rows of the head: how the policy tells tokens apart."""
        return self.model.get_output_embeddings().weight.detach()

    def log_probs(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Normalised log-probabilities [N, V], in float32 or wider whatever the model's precision.

        `temperature` divides the logits, and nothing else.
        """
        logits = self.logits(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)

    @torch.no_grad()
    def respond(
        self,
        prompt: PromptBatch,
        max_tokens: int,
        *,
        sample: bool = True,
        temperature: float = 1.0,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        no_repeat_ngram_size: int = 0,
        mixed_with: "Policy | None" = None,
        mixed_share: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Write one response to each prompt, from the whole distribution (no top-k, no top-p).

        Args:
            prompt: B prompts.
            max_tokens: the response's longest length, EOS included.
            sample: draw from π at `temperature`; otherwise the most likely response (`num_beams`).
            no_repeat_ngram_size: no n-gram of this size is written twice; 0: no such rule.
            mixed_with, mixed_share: draw each token from mixed_share·mixed_with + (1 − mixed_share)·π.

        Returns:
            Ids [B, T] and mask [B, T]: True up to and including the first EOS.
        """
        choice: dict[str, object] = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if sample
            else {"do_sample": False, "num_beams": num_beams, "length_penalty": length_penalty}
        )
        mixing = LogitsProcessorList([_Mixture(mixed_with, prompt, mixed_share)] if mixed_with else [])
        choice["no_repeat_ngram_size"] = no_repeat_ngram_size
        with self._generating(max_new_tokens=max_tokens, **choice):
            generated = self.model.generate(  # type: ignore[operator]  # a mixin that nn.Module hides
                input_ids=prompt.input_ids, attention_mask=prompt.attention_mask, logits_processor=mixing
            )
        response_ids = generated[:, 1:]  # what was decoded starts with the start token
        return response_ids, until_end(response_ids, self.end_ids)

    @property
    def end_ids(self) -> list[int]:
        """The ids that end a response."""
        eos = self.model.config.eos_token_id
        return list(eos) if isinstance(eos, list | tuple) else [eos]

    @contextmanager
    def _generating(self, **choice: object) -> Iterator[None]:
        """Evaluation mode and exactly these generation settings; what the model had comes back afterwards.

        The model's own settings are taken off rather than passed over: `generate` fills every field that
        it is not given from them, so a checkpoint's minimum length or repetition penalty (BART ships
        both) would make samples of another policy than the one that is trained.
        """
        was_training, own_settings = self.model.training, self.model.generation_config
        config = self.model.config
        self.model.generation_config = GenerationConfig(
            decoder_start_token_id=config.decoder_start_token_id,
            bos_token_id=getattr(config, "bos_token_id", None),
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            **choice,
        )
        self.model.eval()
        try:
            yield
        finally:
            self.model.generation_config = own_settings
            self.model.train(was_training)

    def _shifted(self, response_ids: Tensor) -> Tensor:
        """Decoder inputs: the start token, then the response without its last column."""
        start = torch.full_like(response_ids[:, :1], self.model.config.decoder_start_token_id)
        return torch.cat([start, response_ids[:, :-1]], dim=1)

    @contextmanager
    def _captured_head_input(self) -> Iterator[list[Tensor]]:
        """Collect what the model's head is given (after T5's scaling, say) and let it compute nothing.

        The head is never applied to padding: it gets zero rows here, and `logits` applies it to
        packed tokens. Any model whose last step is its head works without code of its own.
        """
        captured: list[Tensor] = []

        def capture(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            captured.append(inputs[0])
            return (inputs[0][:0],)

        handle = self.model.get_output_embeddings().register_forward_pre_hook(capture)
        try:
            yield captured
        finally:
            handle.remove()


class _Mixture(LogitsProcessor):
    """Next-token scores of a mixture with another policy, which keeps a KV cache of its own.

    The student's temperature is applied after it, by `generate`: to the mixture.
    """

    def __init__(self, other: Policy, prompt: PromptBatch, share: float) -> None:
        self.model = other.model
        self.share = share
        self.prompt_mask = prompt.attention_mask
        self.encoded = self.model.get_encoder()(
            input_ids=prompt.input_ids, attention_mask=prompt.attention_mask
        )
        self.cache: Any = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        output = self.model(
            encoder_outputs=self.encoded,
            attention_mask=self.prompt_mask,
            decoder_input_ids=input_ids if self.cache is None else input_ids[:, -1:],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        other = output.logits[:, -1].float().log_softmax(-1) + math.log(self.share)
        return torch.logaddexp(other, scores.log_softmax(-1) + math.log1p(-self.share))


def until_end(response_ids: Tensor, end_ids: list[int]) -> Tensor:
    """The response mask: True up to and including the first end token. [B, T] -> [B, T] bool."""
    ends = torch.isin(response_ids, torch.tensor(end_ids, device=response_ids.device))
    return ends.cumsum(dim=1) - ends.long() == 0
