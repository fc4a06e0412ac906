"""What a run found, as its stages fill it in; `results.py` writes it down."""

from dataclasses import dataclass, field

from lightning.pytorch.loggers import Logger

from amd_lightning.data.examples import PromptTemplate
from amd_lightning.evaluation.harness import Evaluation


@dataclass
class Outcome:
    """What a run found.

    Attributes:
        evaluations: on the test split, of "teacher", "student_start" and "student".
        sets: the same for each further test set, by its name.
        quality: the text metric that is the task's own.
        template: that the prompts were written in.
        signatures: how text metrics were computed, where their package says so.
        validation: the student's last one.
        parameters: of each of the three models.
        vocabulary: how many ids are compared, and how many logits each model has.
        seconds, cached, keys: of every stage; a cached stage's seconds are those of the run that made it.
        stopped_at: the update at which time was up; None where all were made.
        tokens: response tokens while distilling, by who wrote them ("off", "on").
        truncation: what writing down the teacher's likeliest actions left out, see `teacher_cache`; empty
            where the teacher was asked live.
        rows: examples in each split after the length limits.
        loggers: of the distillation stage, still open.
    """

    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    sets: dict[str, dict[str, Evaluation]] = field(default_factory=dict)
    quality: str = "rouge_l"
    template: PromptTemplate = field(default_factory=lambda: PromptTemplate("{prompt}"))
    signatures: dict[str, str] = field(default_factory=dict)
    validation: dict[str, float | None] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    vocabulary: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cached: dict[str, bool] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    stopped_at: int | None = None
    tokens: dict[str, int] = field(default_factory=dict)
    truncation: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    loggers: list[Logger] = field(default_factory=list)
