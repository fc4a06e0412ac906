"""The stages that runs share: data, teacher, student start, the teacher's samples, and what is measured.

Each is an artifact whose key is a digest of exactly what determines it, so runs that differ in β, distance or
critic share teacher, student start and what the teacher wrote. Every stage seeds itself and reads its inputs
from stored files: whether an artifact was made or found changes no number.
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
from amd_lightning.cache import Artifact, Make
from amd_lightning.data.examples import Split
from amd_lightning.evaluation.decoding import batches, respond_to_all, response_tokens
from amd_lightning.evaluation.distances import Critic
from amd_lightning.evaluation.harness import Evaluation, evaluate, evaluate_text
from amd_lightning.evaluation.metrics import signatures
from amd_lightning.policies import Policy
from amd_lightning.running.outcome import Outcome
from amd_lightning.spec import ModelSpec, RunSpec
from amd_lightning.text import prepare_text
from amd_lightning.training.fine_tuning import fine_tune
from amd_lightning.training.fitting import device_of, seed_for

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key: raised when a stage comes to mean something else."""

DIAGNOSTICS = 1
"""Part of every evaluation's key: raised when what it measures changes."""


class Stages:
    """What is made of a `RunSpec` so far; `outcome` tells of it.

    Attributes:
        tokenizer, splits, data_inputs: of the data, after `_read`; the last is what identifies each split.
        teacher: the policy.
        teacher_samples: of each held-out split, see `_teacher_samples`.
    """

    teacher: Policy
    teacher_samples: dict[Split, list[list[list[int]]]]

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.outcome = Outcome()
        self.device = device_of(spec.trainer.accelerator)

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

        def make(folder: Path) -> float:
            L.seed_everything(seed, verbose=False)
            policy = starts.initial(spec, teacher, self.tokenizer, self.spec.cache)
            module = self.spec.make_fine_tuning(policy, spec.stage)
            before = fine_tune(
                module,
                self.splits["train"],
                stage=who.replace("_", " "),
                spec=spec.stage,
                trainer=self.spec.trainer,
                seed=seed,
                pad_id=self.tokenizer.pad_token_id,
                folder=folder,
                unfinished=self.spec.cache.unfinished(who, _formatted(inputs)),
            )
            starts.save(
                spec, policy, self.tokenizer, folder, self.spec.task.limits.response_tokens, self.spec.cache
            )
            return before

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

    def _evaluate(
        self, policy: Policy, split: Split, diagnose: bool = True, critic: Critic | None = None
    ) -> Evaluation:
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
            critic=critic,
        )

    # -- bookkeeping ---------------------------------------------------------------------------

    def _artifact(
        self, kind: str, inputs: Mapping[str, Any], make: Make, name: str | None = None
    ) -> Artifact:
        """An artifact, noted in the outcome under `name` where a run has several of a kind."""
        artifact = ranks.first_alone(lambda: self.spec.cache.get_or_make(kind, _formatted(inputs), make))
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


def _formatted(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, **inputs}
