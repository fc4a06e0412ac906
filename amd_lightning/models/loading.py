"""Models and tokenizers: built from a config, loaded from a folder or the hub, saved for anybody to load."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils.hub import cached_file

from amd_lightning import ranks
from amd_lightning.cache import directory_digest
from amd_lightning.errors import ModelError
from amd_lightning.models import adapters
from amd_lightning.models.families import policy_for
from amd_lightning.models.initialisation import imitate_trained_attention
from amd_lightning.models.locating import (
    adapter_folder,
    from_folder_or_hub,
    require_tokenizer_file,
    without_bars,
)
from amd_lightning.policies import Policy


def build_model(
    architecture: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, vocabulary_size: int
) -> Policy:
    """A model of `architecture["family"]` with fresh weights; see `build_t5` and `build_llama`."""
    build = {"t5": build_t5, "llama": build_llama}[architecture["family"]]
    fields = {name: value for name, value in architecture.items() if name != "family"}
    return build(fields, tokenizer, vocabulary_size)


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


def build_llama(
    architecture: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, vocabulary_size: int
) -> Policy:
    """A Llama with fresh weights, embeddings and head tied as in a T5; arguments as those of `build_t5`.

    Args:
        architecture: d_model, d_kv, d_ff, num_decoder_layers, num_heads, dropout_rate, as a T5 names them.
    """
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=architecture["d_model"],
        head_dim=architecture["d_kv"],
        intermediate_size=architecture["d_ff"],
        num_hidden_layers=architecture["num_decoder_layers"],
        num_attention_heads=architecture["num_heads"],
        attention_dropout=architecture["dropout_rate"],
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    imitate_trained_attention(model)
    return policy_for(model)


def load_policy(
    path: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    quantization: str | None = None,
) -> Policy:
    """A model folder or hub id as a policy; adapters of peft's are merged into the base that they name.

    Args:
        path, revision: the folder, or the hub id and its branch, tag or commit.
        dtype: of the weights.
        attn_implementation: "eager", "sdpa" or "flash_attention_2"; None for transformers' choice.
        trust_remote_code: run the code that comes with the model.
        allow_pickle: take weights that are not safetensors.
        quantization: "8bit" or "4bit" for a policy that is not trained; None for none.

    Raises:
        ModelError: nothing loadable there, or no model that `policy_for` takes.
        HubUnreachableError: a hub id that is not cached, and no hub.
    """
    given: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    weights: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "use_safetensors": None if allow_pickle else True,
    }
    if attn_implementation is not None:
        weights["attn_implementation"] = attn_implementation
    if quantization is not None:
        weights |= quantized(quantization, dtype)

    def load(source: str, **options: Any) -> Policy:
        if (folder := adapter_folder(source, **options)) is not None:
            return on_its_base(folder)
        seq2seq = AutoConfig.from_pretrained(source, **given, **options).is_encoder_decoder
        loader = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
        return policy_for(loader.from_pretrained(source, **weights, **given, **options))

    def on_its_base(folder: Path) -> Policy:
        base, base_revision = adapters.base_of(folder)
        policy = load_policy(
            base,
            revision=base_revision,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            quantization=quantization,
        )
        adapters.load_adapters(policy.model, folder)
        if quantization is None:  # merged into 8 or 4 bits they would be rounded
            adapters.merge(policy.model)
        return policy

    return from_folder_or_hub(load, path, revision, "model")


def quantized(bits: str, dtype: str) -> dict[str, Any]:
    """What `from_pretrained` takes for weights in 8 bits (Dettmers et al. 2022, arXiv 2208.07339) or in 4-bit
    NormalFloat (Dettmers et al. 2023, arXiv 2305.14314), computed with in `dtype`.

    Raises:
        ModelError: bitsandbytes is not installed, or there is no GPU.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"quantization={bits} needs bitsandbytes: pip install 'amd-lightning[quantization]', or leave "
            "pair.teacher.quantization out"
        )
    if not torch.cuda.is_available():
        raise ModelError(f"quantization={bits} needs a CUDA GPU, and torch sees none; leave it out")
    settings = BitsAndBytesConfig(
        load_in_8bit=bits == "8bit",
        load_in_4bit=bits == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": settings, "device_map": {"": ranks.local_rank()}}


def checkpoint_activations(policy: Policy) -> None:
    """Compute activations again in the backward pass rather than keep them (Chen et al. 2016, arXiv
    1604.06174); the same numbers, dropout included, for about a third more time.

    Raises:
        ModelError: the model cannot.
    """
    model: Any = policy.model
    # The name that transformers 6 drops, where the new one is not there yet.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__} cannot compute activations again; set pair.NAME.gradient_checkpointing"
            "=false"
        ) from error


def load_tokenizer(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder or hub id, of their base's where adapters have none; raises as
    `load_policy` does."""

    def load(source: str, **options: Any) -> Any:
        folder = adapter_folder(source, **options)
        if folder is not None and not (folder / "tokenizer.json").is_file():
            base, base_revision = adapters.base_of(folder)
            return load_tokenizer(base, revision=base_revision, trust_remote_code=trust_remote_code)
        require_tokenizer_file(source, **options)
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **options)

    tokenizer = from_folder_or_hub(load, path, revision, "tokenizer")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"the tokenizer {path} has no fast version (tokenizer.json); convert it with transformers"
        )
    if tokenizer.pad_token_id is None:  # GPT-2's; masks come from lengths, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def is_causal(path: str, revision: str | None, trust_remote_code: bool = False) -> bool:
    """Whether a model's responses continue its prompts, by its config; raises as `load_policy` does."""

    def load(source: str, **options: Any) -> bool:
        if (folder := adapter_folder(source, **options)) is not None:
            return is_causal(*adapters.base_of(folder), trust_remote_code)
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
        return not config.is_encoder_decoder

    return from_folder_or_hub(load, path, revision, "model")


def fingerprint(path: str, revision: str | None) -> dict[str, Any]:
    """What identifies a model or tokenizer in cache keys: a folder's contents, or a hub id's commit; and the
    same of the base, for adapters."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _with_base({"folder": directory_digest(folder)}, folder)

    def load(source: str, **options: Any) -> dict[str, Any]:
        snapshot = adapter_folder(source, **options)
        if snapshot is None:
            snapshot = Path(str(cached_file(source, "config.json", **options))).parent
        return _with_base({"hub": path, "commit": snapshot.name}, snapshot)  # .../snapshots/COMMIT

    return from_folder_or_hub(load, path, revision, "model")


def _with_base(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Adapters are another model on another base."""
    return found | {"base": fingerprint(*adapters.base_of(folder))} if adapters.is_adapter(folder) else found


def save_policy(
    policy: Policy,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    max_tokens: int,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Weights (safetensors), configs and tokenizer, as `from_pretrained` loads them without this project;
    adapters are merged into what is saved, not into the policy.

    `weights` stand in for those of a policy that is spread over ranks.
    """
    model = adapters.merged(policy.model) if adapters.has_adapters(policy.model) else policy.model
    model.generation_config = GenerationConfig(
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        eos_token_id=model.config.eos_token_id,
        pad_token_id=getattr(model.config, "pad_token_id", None),
        max_new_tokens=max_tokens,
    )
    with without_bars():
        model.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
    tokenizer.save_pretrained(folder)
