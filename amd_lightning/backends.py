"""What writes the student's responses: transformers in place (`hf`), or vLLM's engine (`vllm`).

Both see the same prompts and give the same tensors; only `rollouts` calls them.
"""

import importlib.util
import os
import tempfile
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from amd_lightning.errors import UserError
from amd_lightning.policies import Policy, until_end
from amd_lightning.types import PromptBatch


class Backend(Protocol):
    """Writes responses with the weights that it was last given."""

    def sync(self, policy: Policy) -> None:
        """Take the policy's weights as they are now."""

    def generate(self, prompt: PromptBatch, max_tokens: int, temperature: float) -> tuple[Tensor, Tensor]:
        """One response to each prompt, drawn from the whole distribution at `temperature`.

        Returns:
            Ids [B, T] and mask [B, T]: True up to and including the first end token; T is at most
            `max_tokens`, and no longer than the longest response.
        """


@dataclass
class HfBackend:
    """The policy itself: nothing is copied.

    Attributes:
        mixed_with, mixed_share: with a share above 0 the next token is drawn from mixed_share·mixed_with +
            (1 − mixed_share)·policy at every step (Gu et al. 2024, MiniLLM, §2.2).
    """

    mixed_with: Policy | None = None
    mixed_share: float = 0.0
    _policy: Policy | None = field(default=None, init=False, repr=False, compare=False)

    def sync(self, policy: Policy) -> None:
        """See `Backend`."""
        self._policy = policy

    def generate(self, prompt: PromptBatch, max_tokens: int, temperature: float) -> tuple[Tensor, Tensor]:
        """See `Backend`."""
        assert self._policy is not None, "sync comes first"
        return self._policy.respond(
            prompt,
            max_tokens,
            temperature=temperature,
            mixed_with=self.mixed_with if self.mixed_share else None,
            mixed_share=self.mixed_share,
        )


def require_vllm() -> None:
    """Refuse where vLLM is not installed.

    Raises:
        UserError: `vllm` cannot be imported.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "rollout.backend=vllm needs a package that is not there: pip install 'amd-lightning[vllm]' "
            "(-e '.[vllm]' in a checkout), or set rollout.backend=hf"
        )


@dataclass
class VllmBackend:
    """An engine of vLLM's in this process, beside the student on the same GPU.

    It is started at the first `sync`, from the student's configuration alone: its weights only ever come
    from the student, by name.

    Attributes:
        max_length: longest prompt and response together, what the engine's KV cache is laid out for.
        memory_share: of the GPU's memory that the engine may take.
    """

    max_length: int
    memory_share: float
    _engine: Any = field(default=None, init=False, repr=False, compare=False)
    _policy: Policy | None = field(default=None, init=False, repr=False, compare=False)

    def sync(self, policy: Policy) -> None:
        """See `Backend`.

        Raises:
            UserError: vLLM is missing, or the student is an encoder-decoder.
        """
        self._engine = self._engine or self._started(policy)
        self._policy = policy
        weights = [(name, weight.detach()) for name, weight in policy.model.named_parameters()]
        self._engine.collective_rpc(_load, args=(weights,))
        self._engine.reset_prefix_cache()  # keys and values of the last weights

    def generate(self, prompt: PromptBatch, max_tokens: int, temperature: float) -> tuple[Tensor, Tensor]:
        """See `Backend`. Seeds come from torch's global stream, so that a resumed run goes on in it."""
        from vllm import SamplingParams

        policy = self._policy
        assert policy is not None, "sync comes first"
        limit, limited = policy.vocabulary_size, policy.vocabulary_size < policy.head_size
        seeds: list[int] = torch.randint(2**31, (len(prompt.input_ids),)).tolist()
        settings = [
            SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=1.0,
                top_k=-1,
                seed=seed,
                stop_token_ids=policy.end_ids,
                allowed_token_ids=list(range(limit)) if limited else None,
                detokenize=False,
            )
            for seed in seeds
        ]
        texts = [
            {"prompt_token_ids": ids[mask.bool()].tolist()}
            for ids, mask in zip(prompt.input_ids.cpu(), prompt.attention_mask.cpu(), strict=True)
        ]
        answers = self._engine.generate(texts, settings, use_tqdm=False)
        rows = [torch.tensor(answer.outputs[0].token_ids, dtype=torch.long) for answer in answers]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=policy.pad_id)
        ids = ids.to(prompt.input_ids.device)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        written = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
        return ids, until_end(ids, policy.end_ids) & written

    def _started(self, policy: Policy) -> Any:
        require_vllm()
        if policy.model.config.is_encoder_decoder:
            raise UserError(
                "rollout.backend=vllm writes with causal models only, and this student is an "
                "encoder-decoder; set rollout.backend=hf"
            )
        # Read when the engine starts: its core then runs in this process, and weights are not sent.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        config = deepcopy(policy.model.config)
        config.architectures = [type(policy.model).__name__]
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            return LLM(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                dtype=str(policy.model.dtype).removeprefix("torch."),
                max_model_len=self.max_length,
                gpu_memory_utilization=self.memory_share,
                generation_config="vllm",  # none of a checkpoint's own sampling settings
            )


def _load(worker: Any, weights: list[tuple[str, Tensor]]) -> None:
    """Runs in vLLM's worker; its models know the names of transformers'."""
    worker.model_runner.model.load_weights(weights)
