"""What a run is, as plain values and the objects that need no data: what `pipeline.py` carries out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger

from amd_lightning.cache import ArtifactCache
from amd_lightning.data.examples import Example, Limits
from amd_lightning.evaluation.decoding import Decoding
from amd_lightning.evaluation.metrics import Scorer
from amd_lightning.models.adapters import Lora
from amd_lightning.models.students import Layers
from amd_lightning.modules.base import DistillationModule
from amd_lightning.policies import Policy
from amd_lightning.training.fitting import StageSpec, TrainerSpec


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
    """A data set.

    Attributes:
        name: of the task.
        load: the examples of "train", "valid" or "test".
        template: the name of its prompt template, "auto" for the one that suits the pair.
        limits: of lengths.
        scorers: what responses are scored by, by name; the first is the task's own, `quality`.
        sets: names of further test sets, which `load_set` gives the examples of.
    """

    name: str
    load: Callable[[str], list[Example]]
    template: str
    limits: Limits
    scorers: Mapping[str, Scorer]
    sets: tuple[str, ...]
    load_set: Callable[[str], list[Example]]

    @property
    def quality(self) -> str:
        """The metric that stands for a response's quality."""
        return next(iter(self.scorers))


class TopKSpec(NamedTuple):
    """The teacher's `k` likeliest actions are written down at off-policy states, at `temperature`."""

    k: int
    temperature: float


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
        top_k: what is written down of the teacher at off-policy states; None where it is asked live.
        kernel_samples: the teacher's samples to every training prompt, 0 where no objective asks for them.
        evaluation, trainer: shared by all stages; `metric` of a validation says which checkpoint is the best,
            "auto" the task's own.
        shown_responses: how many of a validation's sampled responses the loggers are given to read.
        cache, folder: where artifacts and the run's own files go.
        loggers: (the W&B run that goes on, or None) -> those of the distillation stage, made when it begins.
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
    top_k: TopKSpec | None
    kernel_samples: int
    evaluation: EvaluationSpec
    trainer: TrainerSpec
    cache: ArtifactCache
    folder: Path
    loggers: Callable[[str | None], list[Logger]]
    seed: int
    metric: str = "auto"
    shown_responses: int = 0
