"""The stages of a run: teacher → student start → teacher's samples and responses → distil → evaluate.

On several ranks, rank 0 makes artifacts by itself and the others wait: distillation is what takes the time,
and it and the student's evaluation are shared among all. Rank 0 alone writes.

Everything before distillation is an artifact whose key is a digest of exactly what determines it, so
runs that differ in β, distance or critic share teacher, student start and what the teacher wrote. Every
stage seeds itself and reads its inputs from stored files: whether an artifact was made or found changes
no number.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L

from amd_lightning import ranks, starts
from amd_lightning.cache import Artifact
from amd_lightning.data.examples import Split, TokenisedExample
from amd_lightning.distillation import distil
from amd_lightning.evaluation.decoding import batches, respond_to_all, response_tokens
from amd_lightning.evaluation.harness import Evaluation, evaluate, evaluate_text
from amd_lightning.evaluation.metrics import signatures
from amd_lightning.metrics_file import csv_logger
from amd_lightning.models import save_policy
from amd_lightning.modules.base import DistillationModule
from amd_lightning.outcome import Outcome
from amd_lightning.policies import Policy
from amd_lightning.sharding import whole_weights
from amd_lightning.spec import ModelSpec, RunSpec
from amd_lightning.stopping import Stopping
from amd_lightning.teacher_cache import with_teacher
from amd_lightning.text import prepare_text
from amd_lightning.training import device_of, fit, seed_for

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key: raised when a stage comes to mean something else."""

DIAGNOSTICS = 1
"""Part of every evaluation's key: raised when what it measures changes."""

MARGIN = 1.2
"""Of a time budget: by how much longer than the student start's the student's evaluation may take."""

HELD_OUT: tuple[Split, ...] = ("valid", "test")


class Pipeline:
    """Runs the stages of one `RunSpec` in their order; one pipeline, one run.

    Args:
        resume: the checkpoint that distillation goes on from, or a folder of them; None begins anew.
        stopping: what may end distillation early.
    """

    def __init__(self, spec: RunSpec, resume: Path | None = None, stopping: Stopping | None = None) -> None:
        self.spec = spec
        self.resume = resume
        self.stopping = stopping or Stopping()
        self.outcome = Outcome()
        self.device = device_of(spec.trainer.accelerator)

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

    def _read(self, splits: Sequence[Split] | None = None) -> None:
        """The data, and what is known of it before any model."""
        spec = self.spec
        text = prepare_text(spec.task, spec.teacher, spec.vocabulary_size, spec.cache, self._artifact, splits)
        self.tokenizer, self.splits, self.data_inputs = text.tokenizer, text.splits, text.inputs
        self.outcome.template = text.template
        self.outcome.rows = {name: len(rows) for name, rows in text.splits.items()}
        self.outcome.quality = spec.task.quality
        golds = [row.example.references for row in text.splits["test"]]
        self.outcome.signatures = signatures(list(spec.task.scorers), golds)

    # -- teacher and student start -------------------------------------------------------------

    def _model(
        self, who: str, spec: ModelSpec, teacher: Policy | None, teacher_key: Any
    ) -> tuple[Policy, Any]:
        """The teacher or the student start: fine-tuned on the training split, or as it was loaded.

        Returns the policy and what identifies it in the keys of later stages.
        """
        seed = seed_for(who, self.spec.pair_seed)
        identity = starts.identity(spec, teacher_key)
        if spec.stage.updates == 0:
            if spec.lora is not None:  # the adapters are drawn
                L.seed_everything(seed, verbose=False)
            policy = starts.initial(spec, teacher, self.tokenizer, self.spec.cache)
            self.outcome.parameters[who] = policy.parameter_count
            return policy.to(self.device), {**identity, "dtype": spec.dtype}

        def make(folder: Path) -> None:
            L.seed_everything(seed, verbose=False)
            policy = starts.initial(spec, teacher, self.tokenizer, self.spec.cache)
            module = self.spec.make_fine_tuning(policy, spec.stage)
            fit(
                module,
                self.splits["train"],
                stage=who.replace("_", " "),
                spec=spec.stage,
                trainer=self.spec.trainer,
                seed=seed,
                pad_id=self.tokenizer.pad_token_id,
                folder=folder,
                loggers=[csv_logger(folder)],
            )
            starts.save(
                spec, policy, self.tokenizer, folder, self.spec.task.limits.response_tokens, self.spec.cache
            )

        inputs = {
            "model": identity,
            "dtype": spec.dtype,
            "data": self.data_inputs["train"],
            "stage": {**spec.stage._asdict(), "optimisation": asdict(spec.stage.optimisation)},
            "precision": self.spec.trainer.precision,
            "seed": seed,
        }
        artifact = self._artifact(who, inputs, make)
        policy = starts.after_stage(spec, artifact.path, teacher, self.tokenizer, self.spec.cache)
        self.outcome.parameters[who] = policy.parameter_count
        return policy.to(self.device), artifact.key

    def _aligned(self, student: Policy, teacher_key: Any, student_key: Any) -> tuple[Any, Any]:
        """The keys of two models whose heads were aligned: what is left out of one is part of its key."""
        shared = self.teacher.vocabulary_size
        self.outcome.vocabulary = {
            "compared": shared,
            "teacher_logits": self.teacher.head_size,
            "student_logits": student.head_size,
        }

        def key(of_model: Any, policy: Policy) -> Any:
            return of_model if policy.head_size == shared else {"model": of_model, "vocabulary": shared}

        return key(teacher_key, self.teacher), key(student_key, student)

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

    def _teacher_samples(
        self, split: Split, teacher_key: Any, count: int, seed: int
    ) -> list[list[list[int]]]:
        """The teacher's draws that whole responses are compared with: the ids of one response to every row
        of the split, `count` times."""
        examples, decoding = self.splits[split], self.spec.evaluation.decoding
        seed = seed_for(f"teacher_samples_{split}", seed)

        def make(folder: Path) -> None:
            order = list(batches(examples, decoding.batch_size))
            draws = [
                respond_to_all(
                    self.teacher,
                    examples,
                    decoding,
                    pad_id=self.tokenizer.pad_token_id,
                    seed=seed + draw,
                    scored=False,
                )
                for draw in range(count)
            ]
            (folder / "samples.json").write_text(json.dumps([response_tokens(draw, order) for draw in draws]))

        inputs = {
            "teacher": teacher_key,
            "data": self.data_inputs[split],
            "max_tokens": decoding.max_tokens,
            "batch_size": decoding.batch_size,
            "samples": count,
            "seed": seed,
        }
        artifact = self._artifact("teacher_samples", inputs, make, name=f"teacher_samples_{split}")
        draws: list[list[list[int]]] = json.loads((artifact.path / "samples.json").read_text())
        return draws

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
            return self._evaluate(student, "valid", self._diagnosed(module))

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

    # -- evaluation ----------------------------------------------------------------------------

    def _evaluate_once(self, who: str, policy: Policy, key: Any, teacher_key: Any) -> None:
        """The evaluation of a model that many runs share, from the cache where it was made before."""
        evaluation = self.spec.evaluation
        inputs = {
            "model": key,
            "teacher": teacher_key,
            "data": self.data_inputs["test"],
            "decoding": asdict(evaluation.decoding),
            "samples": evaluation.samples,
            "seed": evaluation.seed,
            "metrics": self._metrics(),
            "diagnostics": DIAGNOSTICS,
        }

        self.outcome.evaluations[who] = self._kept(
            f"evaluate_{who}", inputs, lambda: self._evaluate(policy, "test")
        )

    def _evaluate_set_once(self, name: str, who: str, policy: Policy, key: Any) -> None:
        """The same for one of the further test sets, whose text alone is scored."""
        evaluation = self.spec.evaluation
        inputs = {
            "model": key,
            "data": self.data_inputs[name],
            "decoding": asdict(evaluation.decoding),
            "samples": evaluation.samples,
            "seed": evaluation.seed,
            "metrics": self._metrics(),
        }

        self.outcome.sets.setdefault(name, {})[who] = self._kept(
            "evaluate_set", inputs, lambda: self._evaluate_set(policy, name), f"evaluate_{who}_{name}"
        )

    def _kept(
        self, kind: str, inputs: Mapping[str, Any], measure: Callable[[], Evaluation], name: str | None = None
    ) -> Evaluation:
        """An evaluation as the cache has it, measured where it isn't there."""

        def make(folder: Path) -> None:
            (folder / "evaluation.json").write_text(json.dumps(asdict(measure())))

        artifact = self._artifact(kind, inputs, make, name)
        return Evaluation(**json.loads((artifact.path / "evaluation.json").read_text()))

    def _evaluate_set(self, policy: Policy, name: str) -> Evaluation:
        evaluation = self.spec.evaluation
        return evaluate_text(
            policy,
            self.splits[name],
            self.tokenizer,
            decoding=evaluation.decoding,
            scorers=self.spec.task.scorers,
            samples=evaluation.samples,
            seed=evaluation.seed,
        )

    def _metrics(self) -> list[str]:
        """What identifies the text metrics: their names, without those that the task has no notion of."""
        return [name for name, score in self.spec.task.scorers.items() if score([""], [[""]]) is not None]

    def _diagnosed(self, module: DistillationModule) -> bool:
        """Whether the validation at this update measures everything."""
        every = self.spec.evaluation.diagnose_every
        if module.update == module.updates or self.stopping.out_of_time:
            return True
        return every > 0 and (module.update // self.spec.trainer.validate_every) % every == 0

    def _evaluate(self, policy: Policy, split: Split, diagnose: bool = True) -> Evaluation:
        evaluation = self.spec.evaluation
        return evaluate(
            policy,
            self.teacher,
            self.splits[split],
            self.tokenizer,
            decoding=evaluation.decoding,
            scorers=self.spec.task.scorers,
            samples=evaluation.samples,
            seed=evaluation.seed,
            teacher_samples=self.teacher_samples[split] if diagnose else None,
        )

    # -- bookkeeping ---------------------------------------------------------------------------

    def _artifact(
        self, kind: str, inputs: Mapping[str, Any], make: Callable[[Path], None], name: str | None = None
    ) -> Artifact:
        """An artifact, noted in the outcome under `name` where a run has several of a kind."""
        artifact = ranks.first_alone(
            lambda: self.spec.cache.get_or_make(kind, {"format": FORMAT, **inputs}, make)
        )
        name = name or kind
        self.outcome.seconds[name] = artifact.seconds
        self.outcome.cached[name] = artifact.cached
        self.outcome.keys[name] = artifact.key
        state = "found in the cache" if artifact.cached else f"made in {artifact.seconds:.1f} s"
        log.info("%s: %s (%s)", name.replace("_", " "), state, artifact.path)
        return artifact

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.outcome.seconds[stage] = time.perf_counter() - started
        self.outcome.cached[stage] = False
