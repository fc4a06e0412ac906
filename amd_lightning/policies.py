"""Teacher and student as policies: π(a | s) over the vocabulary, with s = (prompt, response so far).

Everybody sees N packed response tokens: their features [N, D], and a head that turns features into logits
[N, V]. Only `models/families.py` knows of model families, shifts and padding.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from amd_lightning.types import PromptBatch, Rollout
from amd_lightning.writing import NextLogits, write


class Policy(nn.Module, ABC):
    """A language model of transformers; `families.policy_for` makes the one of its family.

    Prompts may be padded on either side and with any id: their masks alone say what is text.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._vocabulary_limit: int | None = None
        self.sharded = False
        """Spread over several ranks (`sharding.py`), which then call it together."""
        self.compiled = False
        """Whether its training forward is (`compilation.py`); it writes as it is all the same."""

    # -- what a family says --------------------------------------------------------------------

    @abstractmethod
    def hidden(self, rollout: Rollout) -> Tensor:
        """Features of every response token, packed: [N, D] in the order of `response_mask`'s True entries.

        Row n is what the head sees at the state *before* the n-th response token.
        """

    @abstractmethod
    def inputs(self, prompt_ids: Tensor, written_ids: Tensor) -> dict[str, Tensor]:
        """What the model's own forward takes where nothing is padded; its last position is the state after
        `written_ids`.

        Args:
            prompt_ids: [B, P].
            written_ids: [B, t], t may be 0.
        """

    @abstractmethod
    def _to_generate(self, prompt: PromptBatch, max_tokens: int) -> tuple[dict[str, Tensor], int]:
        """What `generate` starts from, and the number of columns that stand before the response in what it
        returns."""

    @abstractmethod
    def _continuation(self, prompt: PromptBatch, max_tokens: int) -> NextLogits:
        """The next-token logits behind a prompt, with a KV cache for `max_tokens` steps."""

    _takes: tuple[str, ...]
    """What a model's forward must take for `_continuation`; others write with `generate`."""

    # -- the head ------------------------------------------------------------------------------

    @property
    def hidden_size(self) -> int:
        """D, the size of the features that the head sees."""
        return self.model.get_output_embeddings().in_features

    @property
    def vocabulary_size(self) -> int:
        """V, the number of logits that count: all of the head's, or those below the limit."""
        return self._vocabulary_limit or self.head_size

    @property
    def head_size(self) -> int:
        """The number of logits that the head has."""
        return self.model.get_output_embeddings().out_features

    def limit_vocabulary(self, size: int) -> None:
        """Leave out the ids from `size` on, which no text of the pair's has: they get no logit, so that the
        distribution is the softmax over the others, and are never written."""
        self._vocabulary_limit = size if size < self.head_size else None

    @property
    def parameter_count(self) -> int:
        """Distinct parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def logits(self, hidden: Tensor) -> Tensor:
        """The head: [N, D] -> [N, V]."""
        logits = self.model.get_output_embeddings()(hidden)
        bias = getattr(self.model, "final_logits_bias", None)  # BART's
        logits = logits if bias is None else logits + bias
        return logits if self._vocabulary_limit is None else logits[..., : self._vocabulary_limit]

    @property
    def head_parameters(self) -> list[Tensor]:
        """What `logits` is made of: the head's own parameters, adapters included, tied or not."""
        return list(self.model.get_output_embeddings().parameters())

    @property
    def token_embeddings(self) -> Tensor:
        """[V, D] the rows of the head: how the policy tells tokens apart."""
        return self.model.get_output_embeddings().weight.detach()[: self._vocabulary_limit]

    def log_probs(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Normalised log-probabilities [N, V], in float32 or wider whatever the model's precision.

        `temperature` divides the logits, and nothing else.
        """
        logits = self.logits(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)

    # -- responses -----------------------------------------------------------------------------

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
        inputs, before = self._to_generate(prompt, max_tokens)
        mixture = None
        if mixed_with is not None:
            mixture = _Mixture(mixed_with._continuation(prompt, max_tokens), before, mixed_share)
        if self.writes_itself and no_repeat_ngram_size == 0 and (sample or num_beams == 1):
            with self._generating():
                response_ids = self._write(prompt, max_tokens, sample, temperature, mixture)
            return response_ids, until_end(response_ids, self.end_ids)
        choice: dict[str, object] = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if sample
            else {"do_sample": False, "num_beams": num_beams, "length_penalty": length_penalty}
        )
        choice["no_repeat_ngram_size"] = no_repeat_ngram_size
        with self._generating(max_new_tokens=max_tokens, **choice):
            generated = self.model.generate(  # type: ignore[operator]  # a mixin that nn.Module hides
                **inputs,
                logits_processor=LogitsProcessorList([] if mixture is None else [mixture]),
                **({"synced_gpus": True} if self.sharded else {}),
            )
        response_ids = generated[:, before:]
        return response_ids, until_end(response_ids, self.end_ids)

    @property
    def writes_itself(self) -> bool:
        """Whether the loop of `writing.py` can step the model: it takes a plain cache and positions, and is
        not spread over ranks, which go on until the slowest is through."""
        if self.sharded:
            return False
        takes = inspect.signature(self.model.forward).parameters
        plain: bool = self.model._supports_default_dynamic_cache()  # type: ignore[operator]  # a mixin
        return plain and all(name in takes for name in self._takes)

    def _write(
        self,
        prompt: PromptBatch,
        max_tokens: int,
        sample: bool,
        temperature: float,
        mixture: "_Mixture | None",
    ) -> Tensor:
        """What `generate` would write, without what it does beside the model at every step. [B, T]."""
        following = self._continuation(prompt, max_tokens)
        beyond = self.head_size - self.vocabulary_size

        def scores(written: Tensor) -> Tensor:
            logits = following(written).float()
            if beyond:  # a random number is drawn for every logit of the head
                logits = pad(logits, (0, beyond), value=-math.inf)
            return logits if mixture is None else mixture.of(written, logits)

        return write(
            scores,
            len(prompt.input_ids),
            max_tokens,
            sample=sample,
            temperature=temperature,
            end_ids=self.end_ids,
            pad_id=self.pad_id,
            device=prompt.input_ids.device,
        )

    @property
    def pad_id(self) -> int:
        """What stands behind a response that has ended."""
        pad_id = getattr(self.model.config, "pad_token_id", None)  # GPT-2 has none; masks never come from it
        return self.end_ids[0] if pad_id is None else pad_id

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
            decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
            bos_token_id=getattr(config, "bos_token_id", None),
            eos_token_id=config.eos_token_id,
            pad_token_id=self.pad_id,
            suppress_tokens=list(range(self.vocabulary_size, self.head_size)) or None,
            **choice,
        )
        self.model.eval()
        try:
            eager = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
            with eager, _weights_cast_once(self.model.device.type):
                yield
        finally:
            self.model.generation_config = own_settings
            self.model.train(was_training)

    def _next_logits(self, **inputs: Any) -> Tensor:
        """The logits [B, V] of the last position alone; a cache among the inputs is filled."""
        with self._captured_head_input() as captured:
            self.model(**inputs, use_cache=True)
        return self.logits(captured[0][:, -1])

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


@contextmanager
def _weights_cast_once(device: str) -> Iterator[None]:
    """Where autocast is on (precision=bf16-mixed), keep its casts of the weights while a response is written:
    Lightning's casts each of them anew for every product, so for every token. The same bits, in less time."""
    if not torch.is_autocast_enabled(device):
        yield
        return
    with torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=True):
        yield
    # Their memory is the next forward's, and none of them, made without a graph, is left to it.
    torch.clear_autocast_cache()


class _Mixture(LogitsProcessor):
    """Next-token scores of a mixture with another policy, which keeps a KV cache of its own.

    The student's temperature is applied after it, by `generate`: to the mixture.
    """

    def __init__(self, other: NextLogits, before: int, share: float) -> None:
        self.other = other
        self.before = before
        self.share = share

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.of(input_ids[:, self.before :], scores)

    def of(self, written: Tensor, scores: Tensor) -> Tensor:
        """The mixture after what was written. [B, t], [B, V] -> [B, V]."""
        logits = self.other(written)
        other = logits.float().log_softmax(-1) + math.log(self.share)
        # Ids that are left out on either side have no probability, in the mixture neither.
        other = pad(other, (0, scores.shape[-1] - other.shape[-1]), value=-math.inf)
        return torch.logaddexp(other, scores.log_softmax(-1) + math.log1p(-self.share))


def until_end(response_ids: Tensor, end_ids: list[int]) -> Tensor:
    """The response mask: True up to and including the first end token. [B, T] -> [B, T] bool."""
    ends = torch.isin(response_ids, torch.tensor(end_ids, device=response_ids.device))
    return ends.cumsum(dim=1) - ends.long() == 0
