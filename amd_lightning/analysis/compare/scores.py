"""A score for each test example, from predictions.jsonl; the mean is the metric of results.json."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from amd_lightning.analysis.compare.collect import Run
from amd_lightning.analysis.compare.statistics import Array
from amd_lightning.analysis.runs import level
from amd_lightning.data.embedded import is_correct
from amd_lightning.errors import UserError
from amd_lightning.evaluation.metrics import rouge_l

TOLERANCE = 1e-6
"""Relative; a metric whose example scores do not have it as their mean is none of examples (BLEU)."""


class Scores(NamedTuple):
    """The scores of one metric, in the order of ids."""

    ids: tuple[str, ...]
    values: Array


def example_scores(run: Run, who: str = "student") -> dict[str, Scores]:
    """By metric, the mean over an example's responses; only where the mean over examples is the metric's.

    A row's own "scores" count; rows of earlier versions, which have none, are scored from their texts.

    Raises:
        UserError: predictions.jsonl is damaged.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in responses(run):
        if row.get("who") != who:
            continue
        prefix = f"{row['evaluation_set']}/" if row.get("evaluation_set") else ""
        kind = "sampled_" if row.get("kind") == "sampled" else ""
        for name, value in row_scores(row, run).items():
            if value is not None:
                found[f"{prefix}{kind}{name}"][str(row["id"])].append(float(value))
    complete = {}
    for metric, by_id in found.items():
        values = np.array([sum(scores) / len(scores) for scores in by_id.values()])
        stated = level(run.results, who, metric)
        if stated is not None and math.isclose(values.mean(), stated, rel_tol=TOLERANCE, abs_tol=1e-9):
            complete[metric] = Scores(tuple(by_id), values)
    return complete


def responses(run: Run) -> Iterator[dict[str, Any]]:
    """The rows of predictions.jsonl; none where there is no such file.

    Raises:
        UserError: it is damaged.
    """
    path = None if run.folder is None else run.folder / "predictions.jsonl"
    if path is None or not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                row["id"], row["response"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}, is damaged ({error}): restore the file, or leave out the run"
                ) from error
            yield row


def row_scores(row: dict[str, Any], run: Run, texts: bool = True) -> dict[str, float | None]:
    """A row's own "scores"; without any, ROUGE-L from its texts and, of generated dialogues, accuracy.

    texts: whether ROUGE-L, which takes time, is wanted.
    """
    stored = row.get("scores")
    if isinstance(stored, dict):
        return stored
    golds = row.get("references") or [""]
    found: dict[str, float | None] = {}
    if texts:
        found["rouge_l"] = rouge_l([row["response"]], [golds])
    if (run.results.get("task"), run.results.get("source")) == ("samsum", "embedded"):
        found["accuracy"] = float(is_correct(row["response"], golds))
    return found
