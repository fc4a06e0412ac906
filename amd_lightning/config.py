"""The schema of a run: every knob with its type, range and meaning.

Hydra composes `conf/` onto `RunConfig`; unknown keys and wrong types fail there, and `rules.py` lists
everything else that is wrong. Values that a scale decides (sizes, budgets) have no default here:
`conf/scale` owns them.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING


class Distance(StrEnum):
    """What is compared at a state."""

    moment_matching = "moment_matching"
    kl = "kl"
    rkl = "rkl"
    js = "js"
    tv = "tv"
    skew_kl = "skew_kl"
    skew_rkl = "skew_rkl"
    jeffreys = "jeffreys"
    akl = "akl"
    alpha_beta = "alpha_beta"
    nll = "nll"


class CriticKind(StrEnum):
    """What the critics are made of."""

    residual = "residual"
    learned = "learned"
    linear = "linear"
    tanh = "tanh"
    closed_form = "closed_form"
    sign = "sign"
    kernel = "kernel"


class Features(StrEnum):
    """What a critic with a head sees of a state."""

    both = "both"
    student = "student"
    teacher = "teacher"


class Actions(StrEnum):
    """Which actions the critics' expectations are taken over."""

    auto = "auto"
    full = "full"
    top_k = "top_k"
    sampled = "sampled"


class Returns(StrEnum):
    """What stands for the cost of a later state."""

    expected = "expected"
    sampled = "sampled"


class Baseline(StrEnum):
    """What is subtracted from the returns."""

    none = "none"
    time_step = "time_step"
    leave_one_out = "leave_one_out"


class Source(StrEnum):
    """Where rows come from."""

    embedded = "embedded"
    files = "files"
    hub = "hub"


class Overlong(StrEnum):
    """What happens to a text that is over its limit."""

    drop = "drop"
    truncate = "truncate"


class Normalise(StrEnum):
    """What a source's loss is a mean over."""

    token = "token"
    sequence = "sequence"


class Schedule(StrEnum):
    """How the learning rate falls."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class Writer(StrEnum):
    """Who wrote the off-policy responses."""

    data = "data"
    teacher = "teacher"


class Progress(StrEnum):
    """How a stage shows where it is."""

    auto = "auto"
    bar = "bar"
    lines = "lines"
    off = "off"


class WandbMode(StrEnum):
    """Where W&B writes."""

    online = "online"
    offline = "offline"
    disabled = "disabled"


def knob(default: Any, meaning: str, **limits: Any) -> Any:
    """A field with its meaning and limits: `low`, `high` inclusive, `above`, `below` exclusive, `choices`."""
    metadata = {"meaning": meaning, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, meaning: str) -> Any:
    """A nested group of knobs."""
    return field(default_factory=kind, metadata={"meaning": meaning})


@dataclass
class DataConfig:
    """Where rows come from and how long they may be."""

    task: str = knob("samsum", "the data set", choices=("samsum",))
    source: Source = knob(Source.embedded, "embedded (generated, offline), files (data.path) or hub")
    path: str | None = knob(
        None, "with source=files: a directory with train, valid and test as JSONL, CSV or parquet"
    )
    revision: str | None = knob(
        None, "with source=hub: the data set's revision; null takes the one pinned in the code"
    )
    seed: int = knob(0, "with source=embedded: seed of the generated corpus", low=0)
    train_rows: int | None = knob(MISSING, "first n rows of the training split; null for all", low=1)
    valid_rows: int | None = knob(MISSING, "first n rows of the validation split; null for all", low=1)
    test_rows: int | None = knob(MISSING, "first n rows of the test split; null for all", low=1)
    max_prompt_tokens: int = knob(MISSING, "longest prompt, template included", low=8)
    max_response_tokens: int = knob(
        MISSING, "longest response, EOS included; also the longest that is generated", low=1
    )
    long_prompts: Overlong = knob(
        Overlong.truncate,
        "a longer training or validation prompt: drop the row, or truncate its text (test: always truncated)",
    )
    long_responses: Overlong = knob(Overlong.drop, "a longer training response: drop the row, or truncate it")


@dataclass
class ArchitectureConfig:
    """A T5 built from its config, for models that are trained from scratch (path: null)."""

    d_model: int = knob(128, "width of the hidden states", low=8)
    d_kv: int = knob(32, "width of one attention head", low=1)
    d_ff: int = knob(256, "width of the feed-forward layers", low=1)
    num_layers: int = knob(2, "encoder layers", low=1)
    num_decoder_layers: int = knob(2, "decoder layers", low=1)
    num_heads: int = knob(4, "attention heads", low=1)
    relative_attention_max_distance: int = knob(
        128, "distance from which on all positions look equally far", low=1
    )
    dropout_rate: float = knob(0.0, "dropout while training", low=0.0, below=1.0)
    feed_forward_proj: str = knob("gated-gelu", "feed-forward kind", choices=("relu", "gated-gelu"))


@dataclass
class ModelConfig:
    """One of the two models."""

    path: str | None = knob(None, "a model folder or hub id; null builds a T5 from `architecture`")
    revision: str | None = knob(None, "revision of a hub model: branch, tag or commit")
    dtype: str = knob("float32", "number type of its weights", choices=("float32", "bfloat16"))
    architecture: ArchitectureConfig = section(ArchitectureConfig, "the T5 to build where path is null")


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


@dataclass
class HorizonConfig:
    """How far an action is held responsible for what follows it, on student-written states."""

    gamma: float = knob(
        0.0,
        "what a distance one step later counts; 0: nothing (the usual), 1: unbiased, as MiniLLM's returns",
        low=0.0,
        high=1.0,
    )
    returns: Returns = knob(
        Returns.expected,
        "expected: the distance itself at later states; sampled: estimated by the action written there",
    )
    baseline: Baseline = knob(
        Baseline.time_step,
        "subtracted from returns: none, the other responses' at the same step (time_step), or those to the "
        "same prompt alone (leave_one_out)",
    )
    centre: bool = knob(True, "subtract the token mean from the distances, so that ending early is no gain")
    length_normalise: bool = knob(False, "divide returns by the number of later tokens, as MiniLLM does")


@dataclass
class KernelConfig:
    """A sequence-level term: responses as near to the teacher's samples as these are to each other."""

    weight: float = knob(0.0, "weight of the term beside the distance; 0 leaves it out", low=0.0)
    teacher_samples: int = knob(8, "M, the teacher's samples for every prompt (cached)", low=1)
    ngram: int = knob(2, "longest n-gram whose counts make the similarity", low=1)


@dataclass
class ObjectiveConfig:
    """A distance x a beta: J = beta·off + (1 − beta)·on."""

    distance: Distance = knob(Distance.moment_matching, "what is compared at a state")
    beta: float = knob(
        0.5,
        "weight of off-policy states; 1 never generates, 0 uses student-written states alone",
        low=0.0,
        high=1.0,
    )
    normalise: Normalise = knob(
        Normalise.token, "each source's loss is a mean over its tokens, or over its sequences"
    )
    js_mixture: float = knob(0.5, "js: the teacher's share of the middle", low=0.0, high=1.0)
    skew: float = knob(
        0.1, "skew_kl, skew_rkl: how much of the first distribution is in the second", low=0.0, below=1.0
    )
    akl_head: float = knob(
        0.5, "akl: the teacher's probability that makes the head of its distribution", above=0.0, high=1.0
    )
    ab_alpha: float = knob(0.2, "alpha_beta: exponent of the teacher's probabilities", low=0.0)
    ab_beta: float = knob(0.7, "alpha_beta: exponent of the student's probabilities", low=0.0)
    teacher_temperature: float = knob(
        1.0, "divides the teacher's logits in the distance; the loss is not rescaled", above=0.0
    )
    student_temperature: float = knob(
        1.0, "divides the student's logits in the distance; the loss is not rescaled", above=0.0
    )
    horizon: HorizonConfig = section(HorizonConfig, HorizonConfig.__doc__ or "")
    kernel: KernelConfig = section(KernelConfig, KernelConfig.__doc__ or "")


@dataclass
class CriticConfig:
    """The Q-critics of distance=moment_matching."""

    kind: CriticKind = knob(
        CriticKind.residual,
        "residual (closed form + learned shift), learned (unbounded, ridge), linear and tanh (plain forms), "
        "closed_form, sign (2TV), kernel (unit ball over the teacher's token embeddings)",
    )
    alpha: float = knob(
        0.5,
        "the ridge's mixture alpha·teacher + (1 − alpha)·student: small covers modes, large seeks them",
        above=0.0,
        below=1.0,
    )
    ridge: float = knob(
        2.0, "weight of the ridge; 2 at alpha .5 makes the closed form tanh(½ log p/q)", low=0.0
    )
    steps: int = knob(3, "K, critic ascent steps an update, on the same batch", low=1)
    rank: int = knob(64, "hidden width of the critic's head", low=1)
    features: Features = knob(Features.both, "whose hidden state the head sees: both, student or teacher")
    shared: bool = knob(False, "one critic for off- and on-policy states in place of two")
    actions: Actions = knob(
        Actions.auto,
        "what critic steps look at: top_k (the likeliest actions, and the rest lumped into one), sampled "
        "(draws from both policies), full (keeps [N, V] of a batch in memory); auto: full where the "
        "vocabulary is under 16 times top_k, else top_k",
    )
    top_k: int = knob(64, "actions=top_k and auto: how many", low=1)
    samples: int = knob(32, "actions=sampled: draws from each policy at each state", low=1)


@dataclass
class RolloutConfig:
    """Who writes the states."""

    off_policy: Writer = knob(
        Writer.data, "off-policy responses: the data's, or the teacher's (sampled once, cached)"
    )
    temperature: float = knob(1.0, "temperature at which the student writes its own states", above=0.0)
    responses: int = knob(1, "responses that the student writes to each prompt", low=1)
    teacher_share: float = knob(
        0.0,
        "the teacher's share of the mixture that student-written states are drawn from; tokens are weighed "
        "by their importance (MiniLLM's teacher-mixed sampling)",
        low=0.0,
        below=1.0,
    )


@dataclass
class OptimiserConfig:
    """AdamW and its schedule."""

    learning_rate: float = knob(MISSING, "peak learning rate", above=0.0)
    betas: list[float] = knob([0.9, 0.999], "AdamW's betas", low=0.0, below=1.0)
    weight_decay: float = knob(0.0, "AdamW's weight decay", low=0.0)
    clip_norm: float = knob(1.0, "largest gradient norm; 0 for no clipping", low=0.0)
    schedule: Schedule = knob(Schedule.cosine, "how the learning rate falls over the stage")
    warmup_updates: int = knob(0, "updates of linear warm-up", low=0)
    final_share: float = knob(0.0, "the share of the peak that the learning rate falls to", low=0.0, high=1.0)


@dataclass
class StageConfig(OptimiserConfig):
    """One training stage."""

    updates: int = knob(MISSING, "how many updates; 0 takes a loaded model as it is", low=0)
    batch_size: int = knob(MISSING, "prompts an update", low=1)
    micro_batch_size: int | None = knob(None, "prompts a backward; null takes the whole batch at once", low=1)


def _critic_optimiser() -> OptimiserConfig:
    return OptimiserConfig(betas=[0.5, 0.99], schedule=Schedule.constant)


@dataclass
class OptimConfig:
    """One optimizer a stage, and the critics' on their own time scale."""

    teacher: StageConfig = section(StageConfig, "fine-tuning of the teacher")
    student_start: StageConfig = section(StageConfig, "fine-tuning of the student before distillation")
    student: StageConfig = section(StageConfig, "distillation")
    critic: OptimiserConfig = field(default_factory=_critic_optimiser, metadata={"meaning": "the critics"})


@dataclass
class EvaluationConfig:
    """How held-out prompts are answered; the same for validation and test."""

    num_beams: int = knob(1, "beams; 1 is greedy", low=1)
    length_penalty: float = knob(
        1.0, "exponent of the length that beam search divides a score by; above 0 favours long responses"
    )
    batch_size: int = knob(64, "prompts decoded together", low=1)
    samples: int = knob(
        4,
        "responses sampled at temperature 1 for each prompt, by the student and by the teacher; gaps between "
        "whole responses need 2",
        low=1,
    )
    seed: int = knob(10, "seed of these samples", low=0)
    diagnose_every: int = knob(
        1,
        "every so many validations measure the probe and the gaps of whole responses too; 0 for the last one "
        "only",
        low=0,
    )
    metric: str = knob(
        "rouge_l",
        "what the run returns to a sweeper, measured on the validation split",
        choices=(
            "rouge_l",
            "sampled_rouge_l",
            "accuracy",
            "sampled_accuracy",
            "tv_off",
            "tv_on",
            "kl_off",
            "kl_on",
            "rkl_off",
            "rkl_on",
            "js_off",
            "js_on",
            "probe_off",
            "probe_on",
            "exact_match",
            "mmd_squared",
        ),
    )


@dataclass
class TrainerConfig:
    """Lightning's trainer."""

    accelerator: str = knob("cpu", "where to train", choices=("cpu", "gpu", "auto"))
    precision: str = knob(
        "32-true", "numeric precision of training", choices=("32-true", "bf16-true", "bf16-mixed")
    )
    threads: int | None = knob(None, "torch's CPU threads; null leaves torch's choice", low=1)
    chunk_tokens: int | None = knob(
        None,
        "tokens whose logits are in memory at once; null: as many as have 8 million logits, 64 at least",
        low=1,
    )
    log_every: int = knob(10, "updates between two rows of metrics.csv", low=1)
    validate_every: int = knob(
        MISSING, "updates between two validations while distilling; 0 for the last one only", low=0
    )
    checkpoint_every: int = knob(100, "updates between two checkpoints", low=1)
    progress: Progress = knob(Progress.auto, "bar, lines (for logs), off; auto takes a bar on a terminal")


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: WandbMode = knob(
        WandbMode.offline,
        "offline needs no account and no network (`wandb sync` sends it later); online; disabled",
    )
    project: str = knob("amd_lightning", "the W&B project")
    entity: str | None = knob(None, "team or user; null is the account's default")
    group: str | None = knob(None, "runs to be compared; null is task/pair/scale")
    name: str | None = knob(None, "the run's name; null names distance, beta and seed")
    tags: list[str] = knob([], "additional tags")


@dataclass
class LoggerConfig:
    """Loggers beside metrics.csv, which is always written."""

    wandb: WandbConfig = section(WandbConfig, "Weights & Biases")


@dataclass
class CacheConfig:
    """Where teacher, student start and teacher responses are kept for the next run."""

    enabled: bool = knob(True, "false keeps them in this run's directory alone (cache=off)")
    dir: str = knob("~/.cache/amd_lightning", "the cache's directory, shared by all runs")


@dataclass
class RunConfig:
    """A distillation run: a distance x a beta x a source of states, on a pair and a data set."""

    experiment: str = knob("custom", "the experiment file that was chosen, for names and groups")
    scale: str = knob(
        MISSING, "demo (generated text, two cores), laptop or paper: sizes, budgets and devices"
    )
    seed: int = knob(0, "seed of distillation: data order, rollouts, critics", low=0)
    output_dir: str = knob(MISSING, "the run's directory; set hydra.run.dir=DIR instead")
    data: DataConfig = section(DataConfig, DataConfig.__doc__ or "")
    pair: PairConfig = section(PairConfig, PairConfig.__doc__ or "")
    objective: ObjectiveConfig = section(ObjectiveConfig, ObjectiveConfig.__doc__ or "")
    critic: CriticConfig = section(CriticConfig, CriticConfig.__doc__ or "")
    rollout: RolloutConfig = section(RolloutConfig, RolloutConfig.__doc__ or "")
    optim: OptimConfig = section(OptimConfig, OptimConfig.__doc__ or "")
    evaluation: EvaluationConfig = section(EvaluationConfig, EvaluationConfig.__doc__ or "")
    trainer: TrainerConfig = section(TrainerConfig, TrainerConfig.__doc__ or "")
    logger: LoggerConfig = section(LoggerConfig, LoggerConfig.__doc__ or "")
    cache: CacheConfig = section(CacheConfig, CacheConfig.__doc__ or "")
