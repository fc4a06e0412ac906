"""Any model scored as a run's student: `python -m amd_lightning.evaluate model=PATH +experiment=samsum`.

A folder, a hub id or a peft adapter folder, whoever trained it. With `teacher=PATH_OR_ID`, which must have
the model's tokenizer, the distances to that teacher are measured too; with `lm_eval.tasks=[...]`, tasks of
the LM evaluation harness beside the run's own.
"""

import logging
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amd_lightning import conf_dir
from amd_lightning.cli import check_command_line, one_line, validated
from amd_lightning.config.pair import StudentConfig
from amd_lightning.config.schema import RunConfig
from amd_lightning.errors import UserError
from amd_lightning.evaluation.lm_eval_tasks import LEAVE, LmEvalSettings, require, rows

HELP = """\
Score any model with the data, the decoding and the metrics of a run; nothing is trained.

  python -m amd_lightning.evaluate model=runs/samsum/RUN/student +experiment=samsum
  python -m amd_lightning.evaluate model=ORG/NAME model.revision=v1 +experiment=dolly scale=laptop \\
      data.source=files data.path=DIR
  python -m amd_lightning.evaluate model=PEFT_FOLDER teacher=TEACHER +experiment=samsum
  python -m amd_lightning.evaluate model=CAUSAL_MODEL +experiment=dolly lm_eval.tasks=[arc_easy,my_task.yaml]

  model=PATH_OR_ID       a model folder, hub id or peft adapter folder
  teacher=PATH_OR_ID     a teacher with the same tokenizer: distances to it are measured beside the text
  model.KEY=VALUE        and teacher.KEY=VALUE: revision, dtype (float32, bfloat16), attn_implementation,
                         trust_remote_code, allow_pickle; of the teacher also quantization
  lm_eval.tasks=[NAME]   tasks of the LM evaluation harness too (extra lm_eval, causal models): their names,
                         or YAML files of your own; the scores stand under lm_eval in evaluation.json
  lm_eval.KEY=VALUE      as there: num_fewshot (each task's own), limit (all examples), batch_size (8),
                         apply_chat_template (false)
  hydra.run.dir=DIR      where evaluation.json and predictions.jsonl go
                         (runs/EXPERIMENT/evaluate/MODEL/TIME)

The options of a run's data, evaluation, scale and cache, trainer.accelerator and trainer.threads may be given
(python -m amd_lightning.run --help); those of its training are refused. Without data.source the text is the
demo's, which is generated.
"""
MODEL_KEYS = ("revision", "dtype", "attn_implementation", "trust_remote_code", "allow_pickle")
TEACHER_KEYS = (*MODEL_KEYS, "quantization")
LM_EVAL_KEYS = tuple(field.name for field in fields(LmEvalSettings))
TOKENIZER_KEYS = ("revision", "trust_remote_code", "allow_pickle")
"""Those that say where files are and how they may be read."""
USED = ("experiment", "scale", "limits", "data", "evaluation", "cache", "trainer", "hydra.run.dir")
"""Options of a run that make a difference here, with what stands below them."""
UNUSED = ("evaluation.metric", "evaluation.diagnose_every")
TRAINER = ("trainer.accelerator", "trainer.threads")
AS_IT_IS = ("optim.teacher.updates=0", "optim.student_start.updates=0")
PLAIN = (
    "revision=null",
    "attn_implementation=null",
    "trust_remote_code=false",
    "allow_pickle=false",
    "gradient_checkpointing=false",
    "lora.rank=0",
)
"""What a scale's own pair may have set for its models, and these are others."""


class Asked(NamedTuple):
    """A command line, taken apart.

    Attributes:
        own: overrides of a run that stand for `model` and `teacher`.
        rest: those that were given.
        has_teacher: whether there is a teacher.
        lm_eval: what is asked of lm_eval; None for nothing.
    """

    own: list[str]
    rest: list[str]
    has_teacher: bool
    lm_eval: LmEvalSettings | None = None


def main() -> None:
    """Evaluate what the command line says; an error that the user can mend is one line, and status 1."""
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(HELP)
        return
    logging.basicConfig(format="%(message)s")
    has_teacher = any(text.startswith("teacher=") for text in arguments)
    try:
        evaluate(arguments)
    except UserError as error:
        sys.exit(f"error: {_own_words(str(error), has_teacher)}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {_own_words(one_line(error), has_teacher)}")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def evaluate(arguments: Sequence[str]) -> dict[str, Any]:
    """Measure, write, and print the table; returns the content of evaluation.json.

    Raises:
        UserError: the command line, the model, its tokenizer, the data or the folder cannot be used.
    """
    asked = taken_apart(arguments)
    if asked.lm_eval is not None:
        require(asked.lm_eval)
    config, plain, folder = _composed(asked)
    import torch
    from rich.console import Console

    from amd_lightning.analysis.tables import evaluation_table
    from amd_lightning.build import build
    from amd_lightning.standalone import ModelEvaluation, assemble, write, write_results
    from amd_lightning.training.fitting import device_of, quiet_libraries
    from amd_lightning.training.torch_settings import set_up_torch

    if config.trainer.accelerator == "gpu" and not torch.accelerator.is_available():
        raise UserError("trainer.accelerator=gpu, but torch sees no GPU here; set trainer.accelerator=cpu")
    set_up_torch(
        threads=config.trainer.threads,
        on_gpu=device_of(config.trainer.accelerator).type == "cuda",
        deterministic=config.trainer.deterministic,
    )
    quiet_libraries()
    spec = build(config, plain)
    tasks = None if asked.lm_eval is None else _lm_eval_tasks(asked.lm_eval, config.pair.student)
    _make(folder)
    evaluation = ModelEvaluation(spec, asked.has_teacher)
    try:
        outcome = evaluation.run()
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise
    description = {
        "task": config.data.task,
        "experiment": config.experiment,
        "scale": config.scale,
        "source": str(config.data.source),
        "command": shlex.join(["python", "-m", "amd_lightning.evaluate", *arguments]),
    }
    results = assemble(outcome, spec, description)
    write(folder, results, outcome)
    console = Console()
    console.print(evaluation_table(results))
    for name, models in results["evaluation_sets"].items():
        own = results["quality"]
        best, sampled = (models["model"].get(metric) for metric in (own, f"sampled_{own}"))
        console.print(f"{name}: {own} {sampled:.1f} sampled, {best:.1f} best", highlight=False)
    if asked.lm_eval is not None and tasks is not None:
        results["lm_eval"] = evaluation.lm_eval(tasks, asked.lm_eval)
        write_results(folder, results)
        for line in _lm_eval_lines(results["lm_eval"]):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    place = f"Everything lies in {folder}: evaluation.json, predictions.jsonl"
    console.print(place, markup=False, soft_wrap=True, highlight=False)
    return results


def taken_apart(arguments: Sequence[str]) -> Asked:
    """The overrides of a run that come to the same.

    Raises:
        UserError: no model, or options that would do nothing here.
    """
    given: dict[str, list[tuple[str, str]]] = {"model": [], "teacher": []}
    harness: list[tuple[str, str]] = []
    paths: dict[str, str] = {}
    rest = []
    for place, text in enumerate(arguments):
        key, _, value = text.partition("=")
        who, _, inner = key.partition(".")
        if text.startswith("-"):
            if key.lstrip("-") in given:
                said = value or " ".join(arguments[place + 1 : place + 2]) or "PATH_OR_ID"
                raise UserError(f"options have no dashes here: write {key.lstrip('-')}={said}")
            raise UserError(f"{text} is not for this command, which measures one model; leave it out")
        if who == "lm_eval":
            if inner not in LM_EVAL_KEYS:
                raise UserError(f"{key} is not known; choose {_choices(who, LM_EVAL_KEYS)}")
            harness.append((inner, value))
        elif who in given and not inner:
            paths[who] = value
        elif who in given:
            known = MODEL_KEYS if who == "model" else TEACHER_KEYS
            if inner not in known:
                raise UserError(f"{key} is not known; choose {_choices(who, known)}")
            given[who].append((inner, value))
        else:
            _require_used(key.lstrip("+~"), text)
            rest.append(text)
    if not paths.get("model"):
        raise UserError("no model; write model=PATH_OR_ID (see python -m amd_lightning.evaluate --help)")
    if given["teacher"] and "teacher" not in paths:
        raise UserError(f"teacher.{given['teacher'][0][0]} needs teacher=PATH_OR_ID")
    _require_model(paths["model"])
    has_teacher = bool(paths.get("teacher"))
    if not has_teacher:  # the model stands in its place: tokenizer and template come from there
        paths["teacher"] = paths["model"]
        given["teacher"] = [(key, value) for key, value in given["model"] if key in TOKENIZER_KEYS]
    own = [
        f"pair.{place}.{key}={value}"
        for place, who in (("student", "model"), ("teacher", "teacher"))
        for key, value in (("path", paths[who]), *given[who])
    ]
    return Asked(own, rest, has_teacher, _lm_eval_settings(harness))


def _choices(who: str, keys: Sequence[str]) -> str:
    return ", ".join(f"{who}.{key}" for key in keys)


def _lm_eval_settings(given: Sequence[tuple[str, str]]) -> LmEvalSettings | None:
    """As they were written; one task needs no brackets.

    Raises:
        OmegaConfBaseException: a value of another type.
    """
    if not given:
        return None
    pairs = [
        f"{key}=[{value}]" if key == "tasks" and not value.startswith("[") else f"{key}={value}"
        for key, value in given
    ]
    try:
        known = OmegaConf.merge(OmegaConf.structured(LmEvalSettings), OmegaConf.from_dotlist(pairs))
    except OmegaConfBaseException as error:
        raise UserError(f"lm_eval.{error.full_key}: {one_line(error)}") from error
    settings: Any = OmegaConf.to_object(known)
    return settings


def _lm_eval_tasks(settings: LmEvalSettings, model: StudentConfig) -> list[Any]:
    """lm_eval's tasks for a causal model.

    Raises:
        UserError: an encoder-decoder, or tasks that cannot be read.
    """
    from amd_lightning.evaluation.lm_eval_tasks import load
    from amd_lightning.models.loading import is_causal

    if not is_causal(str(model.path), model.revision, model.trust_remote_code):
        raise UserError(
            f"lm_eval scores causal models, and model={model.path} is an encoder-decoder; {LEAVE}"
        )
    return load(settings)


def _lm_eval_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for task, metric, value, error in rows(found):
        shown = "–" if value is None else f"{value:.3f}"
        lines.append(f"lm_eval {task}: {metric} {shown}" + ("" if error is None else f" ± {error:.3f}"))
    return lines


def _require_used(key: str, text: str) -> None:
    below = any(key == used or key.startswith(used + ".") for used in USED)
    if not below or key in UNUSED or (key.startswith("trainer") and key not in TRAINER):
        raise UserError(
            f"{text} would be ignored: nothing is trained, and the model is the one that model= names; leave "
            "it out"
        )


def _require_model(path: str) -> None:
    """A run's folder holds its model one level below."""
    folder = Path(path.strip("'\"")).expanduser()
    if (folder / "student" / "config.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(f"model={path} is a run's folder; its model is model={folder / 'student'}")


def _make(folder: Path) -> None:
    """The folder of the results, before anything takes time."""
    if (folder / "results.json").exists():
        raise UserError(f"{folder} is a run's, whose predictions.jsonl would be lost; set hydra.run.dir=DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be used ({error}); set hydra.run.dir=DIR") from error


def _composed(asked: Asked) -> tuple[RunConfig, dict[Any, Any], Path]:
    """The configuration, the same as plain values, and where the results go."""
    elsewhere = [text.partition("=")[2] for text in asked.rest if text.startswith("hydra.run.dir=")]
    check_command_line([*asked.rest, *asked.own, *AS_IT_IS])
    plain_models = [f"pair.{who}.{setting}" for who in ("teacher", "student") for setting in PLAIN]
    plain_models.append("pair.teacher.quantization=null")
    overrides = [*asked.rest, *AS_IT_IS, *plain_models, *asked.own]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("config", ["output_dir=.", *overrides])
    name = re.sub(r"[^\w.-]+", "_", composed.pair.student.path).strip("_.")[-60:]
    default = f"runs/{composed.experiment}/evaluate/{name}/{datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = Path(elsewhere[-1] if elsewhere else default)
    composed.output_dir = str(folder)
    config = validated(composed, (), refuse_ignored=False)
    plain: Any = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    return config, plain, folder


def _own_words(text: str, has_teacher: bool) -> str:
    """A run's names of the two models, as this command line has them."""
    for place in ("student", "NAME", "teacher"):
        who = "teacher" if place == "teacher" and has_teacher else "model"
        text = text.replace(f"pair.{place}.path", who).replace(f"pair.{place}.", f"{who}.")
    return text if has_teacher else text.replace("model=DIR model=DIR", "model=DIR")  # the same one for both


if __name__ == "__main__":
    main()
