"""Published numbers beside ours: a row of published.csv each, with its source."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from amd_lightning.analysis.compare.comparison import Comparison
from amd_lightning.analysis.compare.measures import measure_of
from amd_lightning.analysis.compare.methods import Method
from amd_lightning.analysis.compare.tables import cell_text

CAVEAT = (
    "Settings differ (models, data, length of training, decoding): a published number is a landmark, and no "
    "test of ours against it is made."
)
GENERATED = (
    "These runs are on generated text with small models: their numbers are of another, far easier task than "
    "the published ones."
)


class Row(NamedTuple):
    """A published number and what is nearest to it here."""

    method: str
    metric: str
    value: str
    setting: str
    source: str
    ours: str
    ours_value: str


def published_rows(found: Comparison) -> tuple[list[Row], list[str]]:
    """(rows for the task of these runs, caveats); no rows where none is known."""
    results = found.methods[0].runs[0].results
    rows = list(_rows(found, str(results.get("task"))))
    caveats = [CAVEAT] + [GENERATED] * (results.get("source") == "embedded")
    return rows, caveats if rows else []


def _rows(found: Comparison, task: str) -> Iterator[Row]:
    with (Path(__file__).parent / "published.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["task"] != task:
                continue
            metric = row["metric"]
            ours = _nearest(found, metric, row["distance"], float(row["beta"]) if row["beta"] else None)
            cell = None if ours is None else found.estimates.get((ours.label, metric))
            yield Row(
                row["method"],
                measure_of(metric).title,
                row["value"],
                row["setting"],
                row["source"],
                "–" if ours is None else ours.label,
                cell_text(cell, metric),
            )


def _nearest(found: Comparison, metric: str, distance: str, beta: float | None) -> Method | None:
    """Ours of the same distance and β; the best of the distance where β is open or was not run."""
    alike = [method for method in found.methods if method.distance == distance]
    exact = [method for method in alike if beta is not None and method.beta == beta]
    sign = measure_of(metric).better or 1
    return max(exact or alike, key=lambda m: sign * (found.mean(m.label, metric) or 0.0), default=None)
