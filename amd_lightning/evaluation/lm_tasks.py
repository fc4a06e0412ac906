"""Tasks of the lm-evaluation-harness (Gao et al. 2024, doi:10.5281/zenodo.12608602), for causal models.

The harness is an extra, `lm_eval`. Its own tasks come from the hub; tasks of one's own are YAML files in a
directory, and may read local files.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import datasets
import huggingface_hub
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amd_lightning.data.sources import hub_reachable
from amd_lightning.errors import DataError, ModelError, UserError

REMEDY = "pip install 'amd_lightning[lm_eval]', or leave lm_eval.* out"


class LmTasks(NamedTuple):
    """What is asked of the harness.

    Attributes:
        names: tasks and groups.
        folder: with YAML files of tasks beside its own.
        limit: the first so many examples of each task; None for all.
        few_shot: examples before each question; None for the task's own number.
    """

    names: Sequence[str]
    folder: str | None = None
    limit: int | None = None
    few_shot: int | None = None


def require_harness() -> None:
    """Refuse at once, before anything is loaded, where the harness is not installed.

    Raises:
        UserError: it is not.
    """
    if find_spec("lm_eval") is None:
        raise UserError(f"lm_eval.tasks needs the lm-evaluation-harness; {REMEDY}")


def require_causal(model: PreTrainedModel) -> None:
    """Raises ModelError for an encoder-decoder model, whose text the harness' tasks do not score alike."""
    if model.config.is_encoder_decoder:
        raise ModelError(
            f"lm_eval.tasks are for causal models, and this is a {type(model).__name__}; leave lm_eval.* out"
        )


def require_tasks(asked: LmTasks) -> Any:
    """The harness' task manager, which knows every task that is asked for.

    Raises:
        UserError: a task or the folder is not there.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=asked.folder)
    unknown = [name for name in asked.names if not manager.match_tasks([name])]
    if unknown:
        where = (
            f" nor in lm_eval.folder={asked.folder}"
            if asked.folder
            else "; give your own with lm_eval.folder=DIR"
        )
        raise UserError(f"lm_eval.tasks: {', '.join(unknown)} is no task of the harness{where}")
    return manager


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: LmTasks,
    manager: Any,
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """Task -> metric -> value, with the harness' standard errors as "METRIC_stderr".

    manager: from `require_tasks`, which takes its time.

    Raises:
        DataError: a task's data cannot be had (no hub within reach).
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    for name in ("lm_eval", "evaluate", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with _no_retries_without_hub():
            found = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                tasks=list(asked.names),
                num_fewshot=asked.few_shot,
                limit=asked.limit,
                task_manager=manager,
                log_samples=False,
            )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"lm_eval: the data of {', '.join(asked.names)} cannot be read ({reason}): is the hub within "
            "reach? or give tasks on local files with lm_eval.folder=DIR"
        ) from error
    return {task: plain(values) for task, values in found["results"].items()}


@contextmanager
def _no_retries_without_hub() -> Iterator[None]:
    """Where the hub does not answer its libraries look into their caches alone: no trying for minutes."""
    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    offline = not hub_reachable()
    try:
        for place in places:
            place.HF_HUB_OFFLINE = place.HF_HUB_OFFLINE or offline
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = was


def plain(values: dict[str, Any]) -> dict[str, float]:
    """The harness' "acc,none" and "acc_stderr,none" as "acc" and "acc_stderr"; a filter's name stays."""
    found = {}
    for key, value in values.items():
        metric, _, of_filter = key.partition(",")
        if isinstance(value, int | float) and metric not in ("alias", "sample_len"):
            found[metric if of_filter in ("", "none") else f"{metric} ({of_filter})"] = float(value)
    return found
