"""What a run is, as plain values and the objects that need no data: what `pipeline.py` carries out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger

from amd_lightning.adapters import Lora
from amd_lightning.cache import ArtifactCache
from amd_lightning.data.examples import Example, Limits, PromptTemplate
from amd_lightning.evaluation.decoding import Decoding
from amd_lightning.evaluation.metrics import Checker
from amd_lightning.modules.base import DistillationModule
from amd_lightning.policies import Policy
from amd_lightning.students import Layers
from amd_lightning.training import StageSpec, TrainerSpec


class ModelSpec(NamedTuple):
    """A model to load (`path`), to make of the teacher's layers (`layers`) or to build (`architecture`), then
    fine-tuned as `stage` says; with `lora`, adapters learn in place of its weights."""

    path: str | None
    revision: str | None
    dtype: str
    architecture: Mapping[str, Any]
    stage: StageSpec
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False
    allow_pickle: bool = False
    quantization: str | None = None
    lora: Lora | None = None
    layers: Layers | None = None


class Task(NamedTuple):
    """A data set: `load` gives the examples of "train", "valid" or "test"; `checker` is None where a
    response has no right or wrong."""

    name: str
    load: Callable[[str], list[Example]]
    template: PromptTemplate
    limits: Limits
    checker: Checker | None


class EvaluationSpec(NamedTuple):
    """How held-out prompts are answered, by everybody and for validation and test alike.

    Every `diagnose_every`-th validation measures the probe and the gaps of whole responses too; 0 leaves
    them to the last one.
    """

    decoding: Decoding
    samples: int
    seed: int
    diagnose_every: int


@dataclass(frozen=True)
class RunSpec:
    """A run as plain values; `build.py` makes it from a config.

    Attributes:
        task: the data.
        teacher, student: the pair; `vocabulary_size` is that of the tokenizer which is trained for a pair
            built from its config, `pair_seed` that of teacher and student start.
        distillation: how the student is distilled, with `make_module` (student, teacher) -> the method;
            `make_fine_tuning` (policy, stage) -> maximum likelihood, for teacher and student start.
        teacher_writes: off-policy states are the teacher's responses rather than the data's.
        kernel_samples: the teacher's samples to every training prompt, 0 where no objective asks for them.
        evaluation, trainer: shared by all stages.
        cache, folder: where artifacts and the run's own files go.
        loggers: of the distillation stage, made when it begins.
        seed: of distillation.
    """

    task: Task
    teacher: ModelSpec
    student: ModelSpec
    vocabulary_size: int
    pair_seed: int
    distillation: StageSpec
    make_module: Callable[[Policy, Policy], DistillationModule]
    make_fine_tuning: Callable[[Policy, StageSpec], DistillationModule]
    teacher_writes: bool
    kernel_samples: int
    evaluation: EvaluationSpec
    trainer: TrainerSpec
    cache: ArtifactCache
    folder: Path
    loggers: Callable[[], list[Logger]]
    seed: int
