"""The schema of a run: every knob with its type, range and meaning.

Hydra composes `conf/` onto `RunConfig`; unknown keys and wrong types fail there, and `rules.py` lists
everything else that is wrong. Values that a scale decides (sizes, budgets) have no default here:
`conf/scale` owns them.
"""

from dataclasses import dataclass

from omegaconf import MISSING

from amd_lightning.config.data import DataConfig
from amd_lightning.config.knobs import knob, section
from amd_lightning.config.method import CriticConfig, ObjectiveConfig, RolloutConfig
from amd_lightning.config.pair import PairConfig
from amd_lightning.config.running import (
    CacheConfig,
    EvaluationConfig,
    LoggerConfig,
    OptimConfig,
    TrainerConfig,
)


@dataclass
class RunConfig:
    """A distillation run: a distance x a beta x a source of states, on a pair and a data set."""

    experiment: str = knob("custom", "the experiment file that was chosen, for names and groups")
    scale: str = knob(
        MISSING,
        "demo (generated text, two cores), laptop, own (your models) or paper: sizes, budgets and devices",
    )
    seed: int = knob(0, "seed of distillation: data order, rollouts, critics", low=0)
    resume: str = knob(
        "auto",
        "auto: go on with what lies in the run's directory; never: refuse a directory that holds a run; DIR: "
        "go on in that run's directory; FILE: from that checkpoint, in its run's directory",
    )
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
