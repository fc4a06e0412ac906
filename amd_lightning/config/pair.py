"""Teacher, student and their tokenizer."""

from dataclasses import dataclass

from omegaconf import MISSING

from amd_lightning.config.choices import Family
from amd_lightning.config.knobs import knob, section


@dataclass
class ArchitectureConfig:
    """A T5 or a Llama built from its config, for models that are trained from scratch (path: null).

    A Llama is a decoder alone, with rotary positions and a gated feed-forward layer of its own.
    """

    family: Family = knob(Family.t5, "t5 (encoder-decoder) or llama (causal); one for teacher and student")
    d_model: int = knob(128, "width of the hidden states", low=8)
    d_kv: int = knob(32, "width of one attention head", low=1)
    d_ff: int = knob(256, "width of the feed-forward layers", low=1)
    num_layers: int = knob(2, "encoder layers of a T5", low=1)
    num_decoder_layers: int = knob(2, "decoder layers", low=1)
    num_heads: int = knob(4, "attention heads", low=1)
    relative_attention_max_distance: int = knob(
        128, "distance from which on all positions look equally far to a T5", low=1
    )
    dropout_rate: float = knob(
        0.0, "dropout while training; a Llama's attention alone has any", low=0.0, below=1.0
    )
    feed_forward_proj: str = knob("gated-gelu", "feed-forward kind of a T5", choices=("relu", "gated-gelu"))


@dataclass
class ModelConfig:
    """One of the two models."""

    path: str | None = knob(None, "a model folder or hub id; null builds one from `architecture`")
    revision: str | None = knob(None, "revision of a hub model: branch, tag or commit")
    dtype: str = knob("float32", "number type of its weights", choices=("float32", "bfloat16"))
    architecture: ArchitectureConfig = section(ArchitectureConfig, "the model to build where path is null")


@dataclass
class TokenizerConfig:
    """The tokenizer of a pair that is trained from scratch; a loaded teacher brings its own."""

    vocabulary_size: int = knob(
        512,
        "of the tokenizer trained on the training split: its words where all fit, else byte-level BPE",
        low=260,
    )


@dataclass
class PairConfig:
    """Teacher and student belong together: they share a vocabulary."""

    name: str = knob(MISSING, "the pair's name in groups of runs")
    teacher: ModelConfig = section(ModelConfig, "the frozen policy")
    student: ModelConfig = section(ModelConfig, "the policy that learns")
    tokenizer: TokenizerConfig = section(TokenizerConfig, "shared by both")
    seed: int = knob(
        0,
        "seed of teacher and student start (weights and data order); apart from `seed`, so that a sweep over "
        "seeds shares both",
        low=0,
    )
