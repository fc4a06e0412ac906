"""The stages of a run: teacher → student start → teacher's samples and responses → distil → evaluate.

On several ranks, rank 0 makes artifacts by itself and the others wait: distillation is what takes the time,
and it and the student's evaluation are shared among all. Rank 0 alone writes.

Everything before distillation is an artifact in the cache (`stages`).
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amd_lightning import ranks, starts
from amd_lightning.data.examples import Split, TokenisedExample
from amd_lightning.evaluation.decoding import batches, respond_to_all, response_tokens
from amd_lightning.evaluation.harness import Evaluation
from amd_lightning.models.loading import save_policy
from amd_lightning.modules.base import DistillationModule
from amd_lightning.policies import Policy
from amd_lightning.running.outcome import Outcome
from amd_lightning.spec import RunSpec
from amd_lightning.stages import Stages
from amd_lightning.teacher_cache import with_teacher
from amd_lightning.training.distillation import distil
from amd_lightning.training.fitting import seed_for
from amd_lightning.training.sharding import whole_weights
from amd_lightning.training.stopping import Stopping

log = logging.getLogger(__name__)

MARGIN = 1.2
"""Of a time budget: by how much longer than the student start's the student's evaluation may take."""

HELD_OUT: tuple[Split, ...] = ("valid", "test")


class Pipeline(Stages):
    """Runs the stages of one `RunSpec` in their order; one pipeline, one run.

    Args:
        resume: the checkpoint that distillation goes on from, or a folder of them; None begins anew.
        stopping: what may end distillation early.
    """

    def __init__(self, spec: RunSpec, resume: Path | None = None, stopping: Stopping | None = None) -> None:
        super().__init__(spec)
        self.resume = resume
        self.stopping = stopping or Stopping()

    def run(self) -> Outcome:
        """All stages; the student's model folder is `folder/student`."""
        spec = self.spec
        self._read()
        self.teacher, teacher_key = self._model("teacher", self.spec.teacher, None, None)
        start, start_key = self._model("student_start", self.spec.student, self.teacher, teacher_key)
        teacher_key, start_key = self._aligned(start, teacher_key, start_key)
        evaluation = self.spec.evaluation
        self.teacher_samples = {
            split: self._teacher_samples(split, teacher_key, evaluation.samples, evaluation.seed)
            for split in HELD_OUT
        }
        self._evaluate_once("teacher", self.teacher, teacher_key, teacher_key)
        self._evaluate_once("student_start", start, start_key, teacher_key)
        for name in spec.task.sets:
            self._evaluate_set_once(name, "teacher", self.teacher, teacher_key)
            self._evaluate_set_once(name, "student_start", start, start_key)

        stored = self._teacher_responses(teacher_key) if self.spec.teacher_writes else self.splits["train"]
        if self.spec.kernel_samples:
            draws = self._teacher_samples("train", teacher_key, self.spec.kernel_samples, self.spec.pair_seed)
            stored = [
                row._replace(samples=samples)
                for row, samples in zip(stored, zip(*draws, strict=True), strict=True)
            ]
        if self.spec.top_k is not None:
            stored = self._with_top_k(stored, start, {"teacher": teacher_key, "student_start": start_key})
        student = self._distil(start, stored)
        with self._timed("evaluate_student"):
            self.outcome.evaluations["student"] = self._evaluate(student, "test")
            for name in spec.task.sets:
                self.outcome.sets.setdefault(name, {})["student"] = self._evaluate_set(student, name)
        return self.outcome

    # -- what the teacher writes ---------------------------------------------------------------

    def _teacher_responses(self, teacher_key: Any) -> list[TokenisedExample]:
        """The training split with one response sampled from the teacher in place of each of the data's."""
        examples, decoding = self.splits["train"], self.spec.evaluation.decoding
        seed = seed_for("teacher_responses", self.spec.pair_seed)

        def make(folder: Path) -> None:
            log.info("teacher responses: writing %d", len(examples))
            written = respond_to_all(
                self.teacher,
                examples,
                decoding,
                pad_id=self.tokenizer.pad_token_id,
                seed=seed,
                scored=False,
            )
            ids = response_tokens(written, list(batches(examples, decoding.batch_size)))
            (folder / "responses.json").write_text(json.dumps(ids))

        inputs = {
            "teacher": teacher_key,
            "data": self.data_inputs["train"],
            "max_tokens": decoding.max_tokens,
            "batch_size": decoding.batch_size,
            "seed": seed,
        }
        artifact = self._artifact("teacher_responses", inputs, make)
        responses = json.loads((artifact.path / "responses.json").read_text())
        return [example._replace(response_ids=ids) for example, ids in zip(examples, responses, strict=True)]

    def _with_top_k(
        self, stored: list[TokenisedExample], start: Policy, keys: Mapping[str, Any]
    ) -> list[TokenisedExample]:
        """The rows with the teacher written down at their states; what that leaves out is in the outcome."""
        assert self.spec.top_k is not None
        responses = self.outcome.keys.get("teacher_responses", self.data_inputs["train"])
        rows, self.outcome.truncation = with_teacher(
            lambda kind, inputs, make: self._artifact(kind, inputs, make).path,
            stored,
            self.teacher,
            start,
            keys={**keys, "responses": responses},
            k=self.spec.top_k.k,
            temperature=self.spec.top_k.temperature,
            pad_id=self.tokenizer.pad_token_id,
        )
        return rows

    # -- distillation --------------------------------------------------------------------------

    def _distil(self, student: Policy, stored: list[TokenisedExample]) -> Policy:
        """Train the student against the teacher; `folder/student` holds the result."""
        spec = self.spec

        def measure(module: DistillationModule) -> Evaluation:
            return self._evaluate(student, "valid", self._diagnosed(module), module.held_out_critic())

        self.stopping.reserve = self._seconds_after_training()
        with self._timed("distil"):
            done = distil(
                spec,
                student,
                self.teacher,
                stored,
                measure=measure,
                teacher_wrote=self._texts(self.teacher_samples["valid"][0]),
                metric=spec.task.quality if spec.metric == "auto" else spec.metric,
                pad_id=self.tokenizer.pad_token_id,
                resume=self.resume,
                stopping=self.stopping,
            )
        self.outcome.seconds["distil"] += done.seconds_before
        weights = whole_weights(student.model)
        if ranks.rank() == 0:
            self._save(student, weights)
        self.outcome.parameters["student"] = student.parameter_count
        self.outcome.loggers = done.loggers
        self.outcome.validation = dict(done.validation)
        self.outcome.tokens = done.tokens
        self.outcome.stopped_at = done.stopped_at
        self.teacher.to(self.device)
        return student.to(self.device)  # Lightning leaves what it trained on the CPU

    def _texts(self, responses: list[list[int]]) -> list[str]:
        texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _save(self, student: Policy, weights: Mapping[str, Any] | None) -> None:
        spec = self.spec
        save_policy(
            student, self.tokenizer, spec.folder / "student", spec.task.limits.response_tokens, weights
        )
        if spec.student.lora is not None:
            starts.save_adapters(
                spec.student, student, self.tokenizer, spec.folder / "student_adapters", spec.cache
            )

    def _seconds_after_training(self) -> float:
        """What the last validation and the student's evaluation will take, going by the student start's."""
        seconds = self.outcome.seconds
        test = seconds["evaluate_student_start"]
        valid = test * len(self.splits["valid"]) / len(self.splits["test"])
        sets = sum(seconds[f"evaluate_student_start_{name}"] for name in self.spec.task.sets)
        return MARGIN * (test + valid + sets)

    def _diagnosed(self, module: DistillationModule) -> bool:
        """Whether the validation at this update measures everything."""
        every = self.spec.evaluation.diagnose_every
        if module.update == module.updates or self.stopping.out_of_time:
            return True
        return every > 0 and (module.update // self.spec.trainer.validate_every) % every == 0
