"""Tiny models, batches and runs that several tests share; everything is drawn from fixed seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from amd_lightning import conf_dir
from amd_lightning.build import build
from amd_lightning.cli import validated
from amd_lightning.data.examples import Example, TokenisedExample
from amd_lightning.models.families import policy_for
from amd_lightning.pipeline import Pipeline
from amd_lightning.policies import Policy
from amd_lightning.running.outcome import Outcome
from amd_lightning.types import PromptBatch, Rollout

PAD, EOS = 0, 1
VOCABULARY = 32


def t5(seed: int = 0, *, tied: bool = False, sharpness: float = 3.0, **fields: Any) -> Policy:
    """A tiny T5 with random weights; `sharpness` scales its head, so that its distribution is not flat.

    Args:
        tied: embeddings and head share their weights, and the head's input is scaled (T5 v1.0).
    """
    torch.manual_seed(seed)
    architecture: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": tied,  # transformers 5 reads this as "scale", and ties in either case
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "decoder_start_token_id": PAD,
    }
    model = T5ForConditionalGeneration(T5Config(**{**architecture, **fields}))
    head = model.get_output_embeddings()
    if not tied:
        head.weight = torch.nn.Parameter(sharpness * torch.randn_like(head.weight) / 4.0)
    return policy_for(model.eval())


def bart(seed: int = 0) -> Policy:
    """A tiny BART whose `final_logits_bias` is not zero; it starts to decode with EOS."""
    torch.manual_seed(seed)
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=32,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=2,
            dropout=0.0,
        )
    )
    model.final_logits_bias.normal_()
    return policy_for(model.eval())


def llama(seed: int = 0) -> Policy:
    """A tiny Llama with random weights, whose head is not tied."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=PAD,
            bos_token_id=None,
            eos_token_id=EOS,
            tie_word_embeddings=False,
        )
    )
    torch.nn.init.normal_(model.lm_head.weight)
    return policy_for(model.eval())


def prompts(lengths: Sequence[int], seed: int = 0, pad_id: int = PAD) -> PromptBatch:
    """Random prompts of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    return PromptBatch(ids * mask + pad_id * (1 - mask), mask)


def rollout(
    prompt_lengths: Sequence[int],
    response_lengths: Sequence[Sequence[int]],
    off_policy: Sequence[Sequence[bool]],
    seed: int = 0,
    eos: int = EOS,
) -> Rollout:
    """Random prompts and responses of `response_lengths` [B][C], each ending in EOS and padded with EOS."""
    generator = torch.Generator().manual_seed(seed + 1)
    lengths = torch.tensor(response_lengths)
    ids = torch.randint(3, VOCABULARY, (*lengths.shape, int(lengths.max())), generator=generator)
    steps = torch.arange(int(lengths.max()))
    ids[steps >= lengths.unsqueeze(-1) - 1] = eos
    return Rollout(
        prompts(prompt_lengths, seed), ids, steps < lengths.unsqueeze(-1), torch.tensor(off_policy)
    )


def tokenised(rows: int, seed: int = 0) -> list[TokenisedExample]:
    """Random tokenised rows: prompts of 2 to 6 tokens, responses of 1 to 5 and EOS."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return [int(token) for token in torch.randint(3, VOCABULARY, (length,), generator=generator)]

    return [
        TokenisedExample(str(row), [*draw(2, 6), EOS], [*draw(1, 5), EOS], Example(str(row), "", "", ("",)))
        for row in range(rows)
    ]


TINY_RUN = (
    "+experiment=samsum",
    "data.train_rows=40",
    "data.valid_rows=8",
    "data.test_rows=8",
    "data.max_prompt_tokens=64",
    "data.max_response_tokens=12",
    "data.long_responses=truncate",
    "pair.tokenizer.vocabulary_size=400",
    "optim.teacher={updates: 4, batch_size: 8, learning_rate: 1e-2, warmup_updates: 1}",
    "optim.student_start={updates: 3, batch_size: 8, learning_rate: 1e-2, warmup_updates: 0}",
    "optim.student={updates: 4, batch_size: 8, learning_rate: 1e-2, warmup_updates: 0}",
    *(
        f"pair.{who}.architecture={{d_model: {width}, d_kv: 8, d_ff: 32, num_heads: 2, num_layers: 1, "
        "num_decoder_layers: 1}"
        for who, width in (("teacher", 32), ("student", 16))
    ),
    "trainer.validate_every=2",
    "trainer.log_every=1",
    "trainer.checkpoint_every=2",
    "trainer.progress=off",
    "logger=csv",
)
"""The demo in seconds: 40 rows, two T5s of width 32 and 16, four updates."""


def tiny_run(folder: Path, cache: Path, *overrides: str) -> Outcome:
    """All stages of a tiny run, its files in `folder`, its artifacts in `cache`."""
    arguments = [*TINY_RUN, f"output_dir={folder}", f"cache.dir={cache}", *overrides]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("config", overrides=arguments)
    OmegaConf.resolve(composed)
    config = validated(composed, arguments, refuse_ignored=False)
    plain: Any = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    folder.mkdir(parents=True, exist_ok=True)
    return Pipeline(build(config, plain)).run()
