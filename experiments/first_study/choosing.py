"""Which learning rate a method takes on a task: by validation, from the runs here and those written down."""

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from grid import CLOSE, SEEDS, TASKS, Point, grid_of

RECORD = Path(__file__).parent / "results"
"""What `collect.py` wrote down of all runs so far, those of other machines too: TASK.csv."""


@dataclass(frozen=True)
class Choice:
    """A method's learning rate on a task, from what has run by now."""

    out: Path
    task: str
    method: str
    seeds: Sequence[int]
    """Asked for: the first climbs the grid, further ones run where it led."""

    @cached_property
    def tried(self) -> list[float]:
        """The learning rates that the first seed has run at, or is to run at next, in that order."""
        grid = grid_of(self.task, self.method)
        scores: dict[float, float] = {}
        asked = list(grid[max(len(grid) // 2 - 1, 0) :][:2])
        while asked:
            for rate in asked:
                score = self.score(rate, self.seeds[0])
                if score is None:
                    return [*scores, *(rate for rate in asked if rate not in scores)]
                scores[rate] = score
            best = grid.index(max(scores, key=scores.__getitem__))
            asked = [rate for rate in grid[max(best - 1, 0) : best + 2] if rate not in scores]
        return list(scores)

    @cached_property
    def climbed(self) -> bool:
        """Whether the first seed has run at all that it is to run at."""
        return all(self.score(rate, self.seeds[0]) is not None for rate in self.tried)

    @cached_property
    def rivals(self) -> list[float]:
        """By the first seed so far: the best learning rate and those close to it, the best first."""
        scores = {rate: self.score(rate, self.seeds[0]) for rate in self.tried}
        known = {rate: score for rate, score in scores.items() if score is not None}
        best = max(known.values(), default=0.0)
        near = [rate for rate, score in known.items() if score >= (1.0 - CLOSE) * best]
        return sorted(near, key=lambda rate: -known[rate])

    @cached_property
    def judges(self) -> list[int]:
        """Those of the seeds that choose; the first one where none of `SEEDS` is asked for."""
        return [seed for seed in self.seeds if seed in SEEDS] or list(self.seeds[:1])

    @cached_property
    def judged(self) -> bool:
        """Whether all that decides has run: of several close learning rates every seed that chooses."""
        rest = [(rate, seed) for rate in self.rivals for seed in self.judges]
        return self.climbed and (
            len(self.rivals) == 1 or all(self.score(rate, seed) is not None for rate, seed in rest)
        )

    @cached_property
    def best_so_far(self) -> float | None:
        """The first seed's best, or of the close ones that all seeds have run at the one with the best mean;
        None where nothing has run."""
        means: dict[float, float] = {}
        for rate in self.rivals:
            scores = [self.score(rate, seed) for seed in self.judges]
            known = [score for score in scores if score is not None]
            if len(known) == len(scores):
                means[rate] = statistics.fmean(known)
        if self.rivals and self.rivals[0] in means:
            return max(means, key=means.__getitem__)
        return self.rivals[0] if self.rivals else None

    @property
    def chosen(self) -> float | None:
        """The learning rate that validates best; None before all that decides it has run."""
        return self.best_so_far if self.judged else None

    def contenders(self, seed: int) -> list[float]:
        """The learning rates that a further seed is to run at; none before the first seed is through.

        All that are close to the best where the seed is one that chooses, the chosen one where it is not.
        """
        if seed in self.judges:
            return self.rivals if self.climbed else []
        return [] if self.chosen is None else [self.chosen]

    def score(self, rate: float, seed: int) -> float | None:
        """What a run validated at, None before it has run."""
        return validated(self.out, Point(self.task, self.method, rate, seed))


def validated(out: Path, point: Point) -> float | None:
    """What a run's learning rate is judged by, from the run itself or the record; None before it has run."""
    results = finished(out / point.place)
    if results is not None:
        return float(results["validation"][metric_of(results)])
    return recorded(RECORD).get(point)


@lru_cache
def recorded(record: Path) -> dict[Point, float]:
    """Runs whose validation is written down."""
    return {point_of(row): float(row["value"]) for row in rows_of(record) if row["split"] == "valid"}


def rows_of(record: Path) -> list[dict[str, str]]:
    """All that is written down, task by task."""
    rows = []
    for task in TASKS:
        path = record / f"{task}.csv"
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows += list(csv.DictReader(file))
    return rows


def point_of(row: dict[str, str]) -> Point:
    """The run that a row of the record is of."""
    return Point(row["task"], row["method"], float(row["learning_rate"]), int(row["seed"]))


def metric_of(results: dict[str, Any]) -> str:
    """The metric of sampled responses that a task's learning rates are chosen by."""
    return {"iwslt": "sampled_bleu", "strategyqa": "sampled_accuracy"}.get(results["task"], "sampled_rouge_l")


def finished(folder: Path) -> dict[str, Any] | None:
    """results.json of a run that came to its end."""
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
