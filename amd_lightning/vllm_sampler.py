"""`rollout.backend=vllm`: responses written by vLLM (Kwon et al. 2023, arXiv 2309.06180) in this process.

The engine holds a copy of the student on the same device and takes its weights anew before it writes, so that
states stay on-policy. It is an extra, `vllm`, for causal students on one GPU.
"""

import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from amd_lightning.errors import ModelError, UserError
from amd_lightning.policies import Policy, until_end
from amd_lightning.types import PromptBatch, Rollout

log = logging.getLogger(__name__)

SEEDS = 2**31
"""vLLM's random streams are its own: each response has a seed below this, drawn from torch's stream, so that
a run can be repeated and resumed."""


def require_vllm() -> None:
    """Refuse before anything is loaded where vLLM is not installed.

    Raises:
        UserError: it is not.
    """
    if find_spec("vllm") is None:
        raise UserError(
            "rollout.backend=vllm needs vLLM: pip install 'amd_lightning[vllm]', or set rollout.backend=hf"
        )


@dataclass
class VllmSampler:
    """Samples with vLLM. A `rollouts.Sampler`.

    Attributes:
        max_tokens: longest response, EOS included.
        prompt_tokens: longest prompt.
        temperature: of the policy that writes.
        responses: to each prompt.
        memory_share: of the GPU's memory, for the engine's weights and its KV cache.
    """

    max_tokens: int
    prompt_tokens: int
    temperature: float = 1.0
    responses: int = 1
    memory_share: float = 0.3
    _engine: Any = field(default=None, repr=False)

    def __call__(self, policy: Policy, prompt: PromptBatch) -> Rollout:
        if self._engine is None:
            self._engine = self._start(policy)
        self._synchronise(policy)
        device, rows = prompt.input_ids.device, len(prompt.input_ids)
        prompts = [
            {"prompt_token_ids": ids[mask.bool()].tolist()}
            for ids, mask in zip(prompt.input_ids, prompt.attention_mask, strict=True)
            for _ in range(self.responses)
        ]
        answers = self._engine.generate(prompts, self._settings(policy, len(prompts)), use_tqdm=False)
        written = [list(answer.outputs[0].token_ids) for answer in answers]
        ids = padded(written, policy.end_ids[0]).to(device)
        shape = (rows, self.responses, ids.shape[-1])
        off_policy = torch.zeros(rows, self.responses, dtype=torch.bool, device=device)
        mask = until_end(ids, policy.end_ids) & lengths_mask(written, ids.shape[-1]).to(device)
        return Rollout(prompt, ids.view(shape), mask.view(shape), off_policy)

    def _start(self, policy: Policy) -> Any:
        """An engine with the student's architecture; its weights are replaced before the first response."""
        if policy.model.config.is_encoder_decoder:
            raise ModelError("rollout.backend=vllm writes with causal students alone; set rollout.backend=hf")
        require_vllm()
        # The engine's core in this process: weights reach it without a copy through a socket.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        log.info("rollouts: starting vLLM (once)")
        with tempfile.TemporaryDirectory(prefix="vllm_student_") as folder:
            policy.model.save_pretrained(folder)
            return LLM(
                model=folder,
                skip_tokenizer_init=True,
                dtype=str(policy.model.dtype).removeprefix("torch."),
                gpu_memory_utilization=self.memory_share,
                max_model_len=self.prompt_tokens + self.max_tokens,
            )

    def _synchronise(self, policy: Policy) -> None:
        weights = [(name, weight.detach()) for name, weight in policy.model.named_parameters()]
        self._engine.collective_rpc(take_weights, args=(weights,))
        self._engine.reset_prefix_cache()  # keys and values of the weights before

    def _settings(self, policy: Policy, number: int) -> list[Any]:
        """One a response: the whole distribution, no top-k, no top-p, no penalty."""
        from vllm import SamplingParams

        limited = policy.vocabulary_size < policy.head_size
        seeds = torch.randint(SEEDS, (number,)).tolist()
        return [
            SamplingParams(
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                stop_token_ids=policy.end_ids,
                allowed_token_ids=list(range(policy.vocabulary_size)) if limited else None,
                detokenize=False,
                seed=seed,
            )
            for seed in seeds
        ]


def take_weights(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """What a worker of vLLM does with the student's weights, under transformers' names."""
    worker.model_runner.model.load_weights(weights)


def padded(written: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Responses of different lengths as [B, T]."""
    longest = max(map(len, written))
    return torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in written], dtype=torch.long)


def lengths_mask(written: Sequence[Sequence[int]], longest: int) -> Tensor:
    """True where a response has a token: one that was cut off ends without an end token. [B, T]."""
    lengths = torch.tensor([len(row) for row in written])
    return torch.arange(longest) < lengths.unsqueeze(-1)
