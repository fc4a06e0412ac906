"""How it is run: optimizers, evaluation, trainer, loggers, cache."""

from dataclasses import dataclass, field

from omegaconf import MISSING, SI, OmegaConf

from amd_lightning.config.choices import Progress, Schedule, WandbMode
from amd_lightning.config.knobs import knob, section


def times(factor: float, number: float) -> float:
    """`${times:3,${optim.student.learning_rate}}` in a file: a knob that follows another one. Rounded to what
    anybody would write: 3 × 0.003 is 0.009."""
    return float(f"{factor * number:.6g}")


OmegaConf.register_new_resolver("times", times, replace=True)


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
    """A third of the student's learning rate, whatever that is: a critic that is faster wrecks the student at
    high rates (experiments/first_study)."""
    following: float = SI("${times:0.33,${optim.student.learning_rate}}")
    return OptimiserConfig(learning_rate=following, betas=[0.5, 0.99], schedule=Schedule.constant)


@dataclass
class OptimConfig:
    """One optimizer a stage, and the critics' on their own time scale."""

    teacher: StageConfig = section(StageConfig, "fine-tuning of the teacher")
    student_start: StageConfig = section(StageConfig, "fine-tuning of the student before distillation")
    student: StageConfig = section(StageConfig, "distillation")
    critic: OptimiserConfig = field(
        default_factory=_critic_optimiser,
        metadata={"meaning": "the critics; a third of the student's learning rate where nobody says"},
    )


@dataclass
class EvaluationConfig:
    """How held-out prompts are answered; the same for validation and test."""

    num_beams: int = knob(1, "beams; 1 is greedy", low=1)
    length_penalty: float = knob(
        1.0, "exponent of the length that beam search divides a score by; above 0 favours long responses"
    )
    no_repeat_ngram_size: int = knob(
        0,
        "n-grams of this size are written once in the responses whose text is scored (MiniLLM: 6); 0: no "
        "such rule; distances are measured without it",
        low=0,
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
        "auto",
        "what the run returns to a sweeper, measured on the validation split; auto: the task's own",
        choices=(
            "auto",
            "rouge_l",
            "sampled_rouge_l",
            "bleu",
            "sampled_bleu",
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
    devices: int = knob(1, "processes on this machine, one a device (a GPU, or CPU threads)", low=1)
    nodes: int = knob(1, "machines; with more than one, torchrun or srun starts every process", low=1)
    strategy: str = knob(
        "auto",
        "of several devices: ddp, every one holds both models; sharded, the student and the critics are "
        "spread over all (FSDP2); auto is ddp",
        choices=("auto", "ddp", "sharded"),
    )
    teacher: str = knob(
        "replicated",
        "with strategy=sharded: a whole teacher on every device, or spread as well",
        choices=("replicated", "sharded"),
    )
    precision: str = knob(
        "32-true", "numeric precision of training", choices=("32-true", "bf16-true", "bf16-mixed")
    )
    deterministic: bool = knob(
        True,
        "on a GPU: algorithms that add in one order, so that a run repeats itself bit for bit; false for "
        "torch's default ones, some of which are faster (a run on a CPU repeats itself anyway)",
    )
    compile: bool = knob(
        False,
        "while distilling, compile the forward passes of teacher and student (torch.compile, dynamic shapes; "
        "on a CPU it needs a C++ compiler); responses are written without",
    )
    threads: int | None = knob(None, "torch's CPU threads; null leaves torch's choice", low=1)
    chunk_tokens: int | None = knob(
        None,
        "tokens whose logits are in memory at once; null: as many as have 8 million logits (on a CPU 1 "
        "million), 64 at least, 128 where actions are more than 65,536",
        low=1,
    )
    log_every: int = knob(10, "updates between two rows of metrics.csv", low=1)
    validate_every: int = knob(
        MISSING, "updates between two validations while distilling; 0 for the last one only", low=0
    )
    checkpoint_every: int = knob(100, "updates between two checkpoints, in every stage that trains", low=1)
    keep_checkpoints: int = knob(
        2, "how many of the last checkpoints are kept, beside the best by evaluation.metric", low=1
    )
    time_budget: float | None = knob(
        None,
        "minutes in which the whole run ends: distillation stops in time to be evaluated and saved; null for "
        "no limit",
        above=0.0,
    )
    profile: bool = knob(
        False,
        "while distilling, write where the time and memory of the third to the fifth update went: profile/ "
        "in the run's directory",
    )
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
    name: str | None = knob(None, "the run's name; null names objective and seed")
    tags: list[str] = knob([], "additional tags")
    responses: int = knob(
        8, "sampled responses in the table of every validation, the teacher's beside them; 0 for none", low=0
    )


@dataclass
class MlflowConfig:
    """MLflow."""

    enabled: bool = knob(False, "the metrics, as a run of MLflow's (extra mlflow)")
    uri: str | None = knob(None, "a tracking server or store; null is mlflow/ in the run's directory")
    experiment: str = knob("amd_lightning", "MLflow's experiment")


@dataclass
class LoggerConfig:
    """Loggers beside metrics.csv, which is always written."""

    wandb: WandbConfig = section(WandbConfig, "Weights & Biases")
    tensorboard: bool = knob(False, "event files in the run's tensorboard/ (extra tensorboard)")
    mlflow: MlflowConfig = section(MlflowConfig, "a run of MLflow's")


@dataclass
class CacheConfig:
    """Where teacher, student start and teacher responses are kept for the next run."""

    enabled: bool = knob(True, "false keeps them in this run's directory alone (cache=off)")
    dir: str = knob("~/.cache/amd_lightning", "the cache's directory, shared by all runs")
