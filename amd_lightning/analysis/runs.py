"""A finished run's folder, read: results.json, metrics.csv, and what to call what stands in them."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amd_lightning.errors import UserError

Results = Mapping[str, Any]
"""The content of results.json."""

Curve = list[tuple[float, float]]
"""(update, value) pairs, by ascending update."""

MODELS = {"teacher": "teacher", "student_start": "student before", "student": "student after"}
"""The models of results.json, in order, with what they are called in tables and figures."""

DISTANCE_NAMES = {
    "moment_matching": "moment matching",
    "kl": "KL",
    "rkl": "reverse KL",
    "js": "JS",
    "tv": "TV",
    "skew_kl": "skew KL",
    "skew_rkl": "skew reverse KL",
    "jeffreys": "Jeffreys",
    "akl": "adaptive KL",
    "alpha_beta": "alpha-beta",
    "nll": "NLL",
}


def read_results(folder: Path) -> dict[str, Any]:
    """The content of `folder/results.json`; its presence is what makes a run finished.

    Raises:
        UserError: there is none, it is damaged, or a model's map is missing from it.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(
            f"{folder} holds no finished run (no results.json): name the output_dir of a run that has ended, "
            "or start this one again; its finished stages are in the cache"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or start the run again") from error
    missing = [
        who for who in MODELS if not (isinstance(results, dict) and isinstance(results.get(who), dict))
    ]
    if missing:
        raise UserError(
            f"{path} says nothing of {', '.join(missing)}: it is not this project's, or another version's; "
            "start the run again"
        )
    return results


def read_metrics(folder: Path) -> dict[str, Curve]:
    """The curves in `folder/metrics.csv` of a finished run, by key (`train/loss`, `valid/tv_on`, ...).

    Rows may be split (training and validation of one update); an empty cell says nothing. Where a key
    has an update twice, the later row holds. Keys without a value are left out; a run that logged
    nothing gives an empty map.

    Raises:
        UserError: no finished run, or a cell that is no number.
    """
    if not (folder / "results.json").is_file():
        read_results(folder)  # says what is wrong
    path = folder / "metrics.csv"
    if not path.is_file():
        return {}
    values: dict[str, dict[float, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                update = row.get("update")
                if not update:
                    continue  # no place on the x-axis
                for key, cell in row.items():
                    if cell and key not in ("update", "step"):
                        values.setdefault(key, {})[float(update)] = float(cell)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{path}, line {reader.line_num}, is damaged ({error}): restore the file, "
                    "or start the run again"
                ) from error
    return {key: sorted(curve.items()) for key, curve in values.items()}


def level(results: Results, who: str, metric: str) -> float | None:
    """A model's metric as it stands in results.json; None where it is null or missing."""
    value = results[who].get(metric)
    return None if value is None else float(value)


def number(value: float, decimals: int) -> str:
    """A level as text; one decimal less from 10 on where there are three, and no "-0"."""
    if abs(value) >= 10.0:
        decimals = min(decimals, 2)
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


QUALITIES = {"rouge_l": "ROUGE-L", "bleu": "BLEU", "accuracy": "accuracy"}
"""A task's own metric of text -> what it is called."""


def quality(results: Results) -> str:
    """The task's own metric of text; older runs, which do not name it, are of a task with ROUGE-L."""
    return str(results.get("quality", "rouge_l"))


def sampled_metric(results: Results) -> str:
    """What judges the student's samples: their accuracy, or the task's own metric where it has no checker."""
    if level(results, "student", "sampled_accuracy") is None:
        return f"sampled_{quality(results)}"
    return "sampled_accuracy"


def distance_name(results: Results) -> str:
    """The objective's distance in words."""
    distance = str(results.get("objective", {}).get("distance", "distance unknown"))
    return DISTANCE_NAMES.get(distance, distance.replace("_", " "))


def heading(results: Results) -> tuple[str, str]:
    """Two lines that say what was run: task and objective; scale, updates and seed."""
    objective = results.get("objective", {})
    parts = [distance_name(results)]
    critic = objective.get("critic")
    if critic:
        kind = str(critic["kind"]).replace("_", " ") if "kind" in critic else ""
        alpha = f"α {critic['alpha']:g}" if critic.get("alpha") is not None else ""
        parts.append(" ".join(filter(None, [kind, "critic", alpha])))
    if objective.get("beta") is not None:
        parts.append(f"β {objective['beta']:g}")
    setting = [
        f"{name} {results[key]}"
        for key, name in (("scale", "scale"), ("updates", "updates"), ("seed", "seed"))
        if results.get(key) is not None
    ]
    return f"{results.get('task', 'unknown task')}: {', '.join(parts)}", ", ".join(setting)
