"""A stand-in for the package `vllm`: the calls that the backend makes, answered by transformers on a CPU.

Signatures are those of vLLM's `LLM` (vllm/entrypoints/llm.py): anything that it does not take is refused.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor


@dataclass
class SamplingParams:
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    detokenize: bool = True


class LLM:
    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        load_format: str = "auto",
        dtype: str = "auto",
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        generation_config: str = "auto",
    ) -> None:
        assert (skip_tokenizer_init, load_format, generation_config) == (True, "dummy", "vllm")
        config = transformers.AutoConfig.from_pretrained(model)
        (name,) = config.architectures
        with torch.random.fork_rng():
            torch.manual_seed(999)  # its own weights, until it is given some
            self.model = getattr(transformers, name)(config).to(getattr(torch, dtype)).eval()
        self.max_model_len = max_model_len
        self.settings: list[SamplingParams] = []
        self.prompts: list[list[int]] = []
        self.forgotten = 0

    def load_weights(self, weights: Any) -> None:
        own = dict(self.model.named_parameters())
        for name, weight in weights:
            own.pop(name).data.copy_(weight)
        assert not own, f"never given: {list(own)}"

    def collective_rpc(
        self, method: Any, timeout: float | None = None, args: tuple = (), kwargs: dict | None = None
    ) -> list[Any]:
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        return [method(worker, *args, **(kwargs or {}))]

    def reset_prefix_cache(self) -> None:
        self.forgotten += 1

    def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool = True) -> list[Any]:
        self.settings = list(sampling_params)
        self.prompts = [prompt["prompt_token_ids"] for prompt in prompts]
        pairs = zip(self.prompts, self.settings, strict=True)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=self._one(*pair))]) for pair in pairs]

    @torch.no_grad()
    def _one(self, prompt: list[int], how: SamplingParams) -> tuple[int, ...]:
        assert self.max_model_len is not None
        assert len(prompt) + how.max_tokens <= self.max_model_len
        dice, written = torch.Generator().manual_seed(how.seed or 0), list[int]()
        while len(written) < how.max_tokens:
            logits: Tensor = self.model(torch.tensor([prompt + written])).logits[0, -1].float()
            if how.allowed_token_ids is not None:
                allowed = torch.tensor(how.allowed_token_ids)
                logits = torch.full_like(logits, -torch.inf).index_copy(0, allowed, logits[allowed])
            probabilities = (logits / how.temperature).softmax(-1)
            written.append(int(torch.multinomial(probabilities, 1, generator=dice)))
            if written[-1] in (how.stop_token_ids or ()):
                break
        return tuple(written)
