"""One model measured as a run measures its student: same data, decoding and metrics; nothing is trained."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amd_lightning import starts
from amd_lightning.evaluation.lm_eval_tasks import LmEvalSettings, score
from amd_lightning.running.outcome import Outcome
from amd_lightning.running.results import git_commit, peak_memory_mb, versions
from amd_lightning.spec import RunSpec
from amd_lightning.stages import Stages


class ModelEvaluation(Stages):
    """Measures `spec.student`, which is loaded; the tokenizer is that of `spec.teacher`.

    has_teacher: whether `spec.teacher` is a teacher to measure distances to. Else it names the same model.
    """

    def __init__(self, spec: RunSpec, has_teacher: bool) -> None:
        super().__init__(spec)
        self.has_teacher = has_teacher

    def run(self) -> Outcome:
        """The evaluations of "model", and of "teacher" if there is one."""
        spec, outcome = self.spec, self.outcome
        self._read(("test",))
        teacher_key: Any = None
        teacher = None
        if self.has_teacher:
            teacher, teacher_key = self._model("teacher", spec.teacher, None, None)
            self.teacher = teacher
        model, model_key = self._model("model", spec.student, teacher, teacher_key)
        self.model = model
        if teacher is not None:
            teacher_key, _ = self._aligned(model, teacher_key, model_key)
            samples = self._teacher_samples(
                "test", teacher_key, spec.evaluation.samples, spec.evaluation.seed
            )
            self.teacher_samples = {"test": samples}
            self._evaluate_once("teacher", teacher, teacher_key, teacher_key)
        with self._timed("evaluate_model"):
            alone = teacher is None
            outcome.evaluations["model"] = (
                self._evaluate_set(model, "test") if alone else self._evaluate(model, "test")
            )
            for name in spec.task.sets:
                outcome.sets[name] = {"model": self._evaluate_set(model, name)}
        return outcome

    def lm_eval(self, tasks: list[Any], settings: LmEvalSettings) -> dict[str, Any]:
        """What lm_eval says of the model that `run` has loaded; see `lm_eval_tasks.score`."""
        with self._timed("lm_eval"):
            return score(self.model.model, self.tokenizer, tasks, settings)


def assemble(outcome: Outcome, spec: RunSpec, description: Mapping[str, Any]) -> dict[str, Any]:
    """The content of evaluation.json.

    description: what was asked for: task, scale, source, command.
    """
    models = {
        who: {**evaluation.metrics, "parameters": outcome.parameters[who]}
        for who, evaluation in outcome.evaluations.items()
    }
    return {
        **models,
        **description,
        "path": spec.student.path,
        "revision": spec.student.revision,
        "dtype": spec.student.dtype,
        "source_files": starts.source(spec.student),
        "teacher_path": spec.teacher.path if "teacher" in models else None,
        "template": outcome.template._asdict(),
        "decoding": asdict(spec.evaluation.decoding),
        "samples": spec.evaluation.samples,
        "seed": spec.evaluation.seed,
        "quality": outcome.quality,
        "metric_signatures": outcome.signatures,
        "evaluation_sets": {
            name: {who: evaluation.metrics for who, evaluation in found.items()}
            for name, found in outcome.sets.items()
        },
        "rows": outcome.rows,
        "vocabulary": outcome.vocabulary,
        "cost": {"seconds": outcome.seconds, "cached": outcome.cached, "peak_memory_mb": peak_memory_mb()},
        "versions": versions(),
        "git_commit": git_commit(),
    }


def write(folder: Path, results: Mapping[str, Any], outcome: Outcome) -> None:
    """predictions.jsonl, as that of a run; then evaluation.json."""
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for who, evaluation in outcome.evaluations.items():
            for row in evaluation.predictions:
                file.write(json.dumps({"who": who, **row}, ensure_ascii=False) + "\n")
        for name, found in outcome.sets.items():
            for who, evaluation in found.items():
                for row in evaluation.predictions:
                    line = {"who": who, "evaluation_set": name, **row}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    write_results(folder, results)


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """evaluation.json, by rename."""
    temporary = folder / "evaluation.json.tmp"
    temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    temporary.rename(folder / "evaluation.json")
