"""Models and tokenizers: built from a config, loaded from a folder or the hub, saved for anybody to load."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from amd_lightning.cache import directory_digest
from amd_lightning.data.sources import DEMO, hub_reachable
from amd_lightning.errors import HubUnreachableError, ModelError
from amd_lightning.families import policy_for
from amd_lightning.initialisation import imitate_trained_attention
from amd_lightning.policies import Policy

log = logging.getLogger(__name__)
Loaded = TypeVar("Loaded")


def build_t5(
    architecture: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, vocabulary_size: int
) -> Policy:
    """A T5 with fresh weights, drawn from torch's global random stream.

    Args:
        architecture: fields of `T5Config`.
        tokenizer: gives the special tokens.
        vocabulary_size: V, at least the tokenizer's; a student takes the teacher's.
    """
    config = T5Config(
        vocab_size=vocabulary_size,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{"decoder_start_token_id": tokenizer.pad_token_id, **architecture},
    )
    model = T5ForConditionalGeneration(config)
    imitate_trained_attention(model)
    return policy_for(model)


def load_policy(path: str, *, revision: str | None = None, dtype: str = "float32") -> Policy:
    """A model folder or hub id as a policy. Safetensors alone; no code of the repository's is run.

    Raises:
        ModelError: nothing loadable there, or no model that `policy_for` takes.
        HubUnreachableError: a hub id that is not cached, and no hub.
    """

    def load(source: str, **options: Any) -> Policy:
        seq2seq = AutoConfig.from_pretrained(source, **options).is_encoder_decoder
        loader = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
        model = loader.from_pretrained(source, dtype=getattr(torch, dtype), use_safetensors=True, **options)
        return policy_for(model)

    return _from_folder_or_hub(load, path, revision, "model")


def load_tokenizer(path: str, *, revision: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder or hub id; raises as `load_policy` does."""
    tokenizer = _from_folder_or_hub(AutoTokenizer.from_pretrained, path, revision, "tokenizer")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"the tokenizer {path} has no fast version (tokenizer.json); convert it with transformers"
        )
    if tokenizer.pad_token_id is None:  # GPT-2's; masks come from lengths, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def fingerprint(path: str, revision: str | None) -> dict[str, str]:
    """What identifies a model or tokenizer in cache keys: a folder's contents, or a hub id's commit."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return {"folder": directory_digest(folder)}
    config = _from_folder_or_hub(AutoConfig.from_pretrained, path, revision, "model")
    return {"hub": path, "commit": str(config._commit_hash)}


def save_policy(policy: Policy, tokenizer: PreTrainedTokenizerFast, folder: Path, max_tokens: int) -> None:
    """Weights (safetensors), configs and tokenizer, as `from_pretrained` loads them without this project."""
    model = policy.model
    model.generation_config = GenerationConfig(
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        eos_token_id=model.config.eos_token_id,
        pad_token_id=getattr(model.config, "pad_token_id", None),
        max_new_tokens=max_tokens,
    )
    with _without_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def require_same_vocabulary(
    teacher: Policy,
    student: Policy,
    teacher_tokenizer: PreTrainedTokenizerFast,
    student_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Refuse a pair whose next-token distributions cannot be compared.

    Raises:
        ModelError: different tokenizers, or different numbers of logits.
    """
    mine, theirs = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if mine != theirs:
        differing = len(mine.items() ^ theirs.items())
        raise ModelError(
            f"teacher and student have different vocabularies ({len(theirs):,} and {len(mine):,} tokens, "
            f"{differing:,} entries differ): white-box distillation compares their distributions token by "
            "token; choose a student of the teacher's family"
        )
    if teacher.vocabulary_size != student.vocabulary_size:
        raise ModelError(
            f"teacher and student have {teacher.vocabulary_size:,} and {student.vocabulary_size:,} logits "
            "for the same tokenizer; choose a student whose embedding has the teacher's size"
        )


def _from_folder_or_hub(load: Callable[..., Loaded], path: str, revision: str | None, what: str) -> Loaded:
    """Load from a folder, from the hub's cached copy, or from the hub, in this order."""
    folder = Path(path).expanduser()
    if folder.exists() or path.startswith((".", "/", "~")):
        if not folder.is_dir():
            raise ModelError(
                f"there is no model folder {path}; give one that save_pretrained wrote, or a hub id"
            )
        with _without_bars():
            return _described(lambda: load(str(folder), local_files_only=True), path, what)
    options = {"revision": revision} if revision else {}
    try:
        with _without_bars():
            return load(path, local_files_only=True, **options)
    except (OSError, ValueError):
        log.info("%s %s is not in the local cache: asking the hub", what, path)
    if not hub_reachable():
        raise HubUnreachableError(
            f"the hub cannot be reached for {what} {path}: give a model folder (pair.teacher.path=DIR "
            f"pair.student.path=DIR), or {DEMO}"
        )
    return _described(lambda: load(path, **options), path, what)


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of transformers while local files are read or written; downloads keep theirs."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _described(load: Callable[[], Loaded], path: str, what: str) -> Loaded:
    try:
        return load()
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"the {what} {path} cannot be loaded: {reason}") from error
