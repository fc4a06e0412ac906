"""Tasks of the LM evaluation harness (`lm_eval`, Gao et al. 2024, doi 10.5281/zenodo.12608602) on a model
that is loaded already; an extra. Neither it nor torch is imported before it is needed: a command line is read
with this.
"""

import importlib.util
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amd_lightning.errors import ModelError, UserError

LEAVE = "leave lm_eval.* out"


@dataclass
class LmEvalSettings:
    """What is asked of lm_eval, under its own names.

    Attributes:
        tasks: names of its tasks, groups or tags, or YAML files of one's own.
        num_fewshot: solved examples before each question, at least 0; None for each task's own number.
        limit: the first so many examples of each task alone, at least 1; None for all.
        batch_size: prompts at a time, at least 1.
        apply_chat_template: questions in the tokenizer's chat template.
    """

    tasks: list[str] = field(default_factory=list)
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    apply_chat_template: bool = False


def require(settings: LmEvalSettings) -> None:
    """Refuse what cannot be done, before anything is loaded.

    Raises:
        UserError: the package is missing, no task, or a number out of its range.
    """
    if not settings.tasks:
        raise UserError(
            f"lm_eval has nothing to do; name its tasks with lm_eval.tasks=[NAME,...], or {LEAVE}"
        )
    for name, least in (("num_fewshot", 0), ("limit", 1), ("batch_size", 1)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise UserError(f"lm_eval.{name}={value} is too small; set at least {least}, or leave it out")
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "lm_eval.tasks needs a package that is not there: pip install 'amd-lightning[lm_eval]' "
            f"(-e '.[lm_eval]' in a checkout), or {LEAVE}"
        )


def load(settings: LmEvalSettings) -> list[Any]:
    """The tasks and groups with their data, read before any model.

    Raises:
        UserError: no such task, or its data cannot be read, as without a network.
    """
    from lm_eval.tasks import TaskManager

    for name in ("lm_eval", "httpx", "huggingface_hub"):  # a screenful for each task
        logging.getLogger(name).setLevel(logging.ERROR)
    files = all(Path(name).is_file() for name in settings.tasks)
    try:  # without the index of its own tasks, which takes a while, where nobody names one
        found = TaskManager(include_defaults=not files).load(list(settings.tasks))
    except KeyError as error:
        raise UserError(
            f"lm_eval cannot find a task ({_line(error)}); `lm-eval ls tasks` lists them, and a YAML file of "
            "your own may be named"
        ) from error
    except Exception as error:  # of the network, of datasets, of a task's own code: there are many kinds
        raise UserError(
            f"lm_eval cannot read what its tasks need ({_line(error)}); most ask the hub once: name tasks "
            f"whose data are cached or local, or {LEAVE}"
        ) from error
    inside = {child for children in found["group_map"].values() for child in children}
    every = {**found["tasks"], **found["groups"]}
    return [every[name] for name in every if name not in inside]


def score(model: Any, tokenizer: Any, tasks: list[Any], settings: LmEvalSettings) -> dict[str, Any]:
    """What lm_eval says of a causal model, for evaluation.json.

    Args:
        model, tokenizer: of transformers, where they are to compute.
        tasks: of `load`.

    Returns:
        results (task or group -> its metrics), examples (task -> how many were asked), num_fewshot and
        versions of the tasks, the settings, and the version of lm_eval.

    Raises:
        ModelError: the tokenizer has no chat template, and it was asked for.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    if settings.apply_chat_template and tokenizer.chat_template is None:
        raise ModelError("the tokenizer has no chat template; leave lm_eval.apply_chat_template out")
    model.eval()
    # lm_eval takes a pair of texts apart by the length of the first, and so would score an ending alone where
    # the tokenizer adds one (as that of a pair trained from scratch, after which responses begin).
    endings = None if not ends_in_special(tokenizer) else False
    found = lm_eval.simple_evaluate(
        model=HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size, add_bos_token=endings
        ),
        tasks=tasks,
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        apply_chat_template=settings.apply_chat_template,
        log_samples=False,
    )
    return {
        "results": {name: _metrics(values) for name, values in found["results"].items()},
        "examples": {name: count["effective"] for name, count in found["n-samples"].items()},
        "num_fewshot": dict(found["n-shot"]),
        "task_versions": dict(found["versions"]),
        "limit": settings.limit,
        "apply_chat_template": settings.apply_chat_template,
        "version": lm_eval.__version__,
    }


def ends_in_special(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a token of its own after every text."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    return bool(tokenizer("a").input_ids[-len(bare) :] != bare)


def _metrics(values: dict[str, Any]) -> dict[str, float | None]:
    """Numbers alone, by lm_eval's `metric,filter`; null where there is none."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float | str)}
    return {
        name: float(value) if isinstance(value, int | float) and math.isfinite(value) else None
        for name, value in numbers.items()
        if "," in name
    }


def rows(found: dict[str, Any]) -> list[tuple[str, str, float | None, float | None]]:
    """Task, metric, value and standard error of each line that `score` found."""
    return [
        (task, name, value, values.get(f"{name.partition(',')[0]}_stderr,{name.partition(',')[2]}"))
        for task, values in found["results"].items()
        for name, value in values.items()
        if not name.partition(",")[0].endswith("_stderr")
    ]


def _line(error: Exception) -> str:
    return " ".join(str(error).strip("'\"").split())[:200] or type(error).__name__
