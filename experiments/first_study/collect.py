"""Finished runs of the study -> results.csv, tables.md and figures, beside this file.

    python experiments/first_study/collect.py runs/first_study

Run again as runs finish: it writes what there is. Means, intervals and paired tests are those of
`python -m amd_lightning.compare`; methods have the study's names here.
"""

import csv
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from study import (
    LEARNING_RATES,
    METHODS,
    RECORD,
    SEEDS,
    TASKS,
    Point,
    chosen,
    finished,
    known_methods,
    metric_of,
    point_of,
)  # fmt: skip

from amd_lightning.analysis.compare.collect import Run, read_run
from amd_lightning.analysis.compare.comparison import Comparison, comparison
from amd_lightning.analysis.compare.measures import measure_of
from amd_lightning.analysis.compare.methods import Method
from amd_lightning.analysis.compare.tables import cell_text, markdown
from amd_lightning.analysis.figures import BLACK, BLUE, SKY, VERMILLION
from amd_lightning.analysis.runs import Curve

HERE = Path(__file__).parent
REGIME = "few_updates"
YARDSTICKS = (
    "tv_off",
    "tv_on",
    "kl_off",
    "rkl_on",
    "probe_off",
    "probe_on",
    "exact_match",
    "response_tokens",
)
"""Beside the task's own metric, greedy and sampled."""
DRAWN = ("kd", "gkd", "distillm", "minillm", "amm_beta.5", "amm_closed_form.25")
"""Methods whose curves are drawn: all of them would hide one another."""

STYLES: tuple[dict[str, Any], ...] = (
    {"color": BLACK, "linestyle": ":"},
    {"color": VERMILLION, "linestyle": "-"},
    {"color": SKY, "linestyle": "--"},
    {"color": BLACK, "linestyle": "-."},
    {"color": BLUE, "linestyle": "-"},
    {"color": BLUE, "linestyle": "--"},
)

COLUMNS = (
    "task", "method", "beta", "learning_rate", "seed", "regime", "updates", "seconds",
    "split", "metric", "value",
)  # fmt: skip


def main(out: Path) -> None:
    """Write everything, and print the tables."""
    rows: list[list[object]] = list(recorded_elsewhere(out))
    compared: dict[str, Comparison] = {}
    for task in TASKS:
        rows += list(result_rows(out, task))
        found = methods_of(out, task)
        if found:
            compared[task] = comparison(found, metric=metric_of(found[0].runs[0].results))
    with RECORD.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(sorted(rows, key=place))
    sections = [section(task, one) for task, one in compared.items()]
    (HERE / "tables.md").write_text("\n".join(sections), encoding="utf-8")
    print("\n".join(sections))
    for name, draw in (("overview.png", overview), ("curves.png", curves)):
        if compared:
            draw(compared).savefig(HERE / name, dpi=110, facecolor="white")


def runs_of(out: Path, task: str, method: str) -> list[Run]:
    """The finished runs of a method at the learning rate that it chose, by seed."""
    rate = chosen(out, task, method, SEEDS[0])
    if rate is None:
        return []
    places = [out / Point(task, method, rate, seed).place for seed in SEEDS]
    return [read_run(place) for place in places if finished(place) is not None]


def methods_of(out: Path, task: str) -> list[Method]:
    """The methods of a task that have chosen, with their seeds so far."""
    found = []
    for name in known_methods(task):
        runs = runs_of(out, task, name)
        if runs:
            objective = runs[0].results["objective"]
            seeds = tuple(str(run.seed) for run in runs)
            found.append(Method(name, name, objective["distance"], objective["beta"], tuple(runs), seeds))
    return found


# -- results.csv ------------------------------------------------------------------------------------


def recorded_elsewhere(out: Path) -> Iterator[list[object]]:
    """What is written down of runs that are not here: another machine made them."""
    if not RECORD.is_file():
        return
    with RECORD.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if finished(out / point_of(row).place) is None:
                yield [row[column] for column in COLUMNS]


def place(row: Sequence[Any]) -> tuple[Any, ...]:
    """Where a row stands: by task, method, learning rate, seed, as the study has them."""
    task, method, _, rate, seed = row[:5]
    return TASKS.index(task), list(METHODS).index(method), float(rate), int(seed)


def result_rows(out: Path, task: str) -> Iterator[list[object]]:
    """Validation of every run of the grid of learning rates, test of the chosen ones."""
    for method in known_methods(task):
        for rate in LEARNING_RATES[task]:
            for seed in SEEDS:
                results = finished(out / Point(task, method, rate, seed).place)
                if results is None:
                    continue
                seconds = results["cost"]["seconds"]["distil"]
                head = [task, method, results["objective"]["beta"], rate, seed, REGIME, results["updates"]]
                head.append(round(seconds))
                judge = metric_of(results)
                yield [*head, "valid", judge, f"{results['validation'][judge]:.4g}"]
                if rate == chosen(out, task, method, SEEDS[0]):
                    for metric in (judge, judge.removeprefix("sampled_"), *YARDSTICKS):
                        yield [*head, "test", metric, f"{results['student'][metric]:.4g}"]


# -- tables -----------------------------------------------------------------------------------------


def section(task: str, found: Comparison) -> str:
    """A task's table and what its paired tests tell apart."""
    return "\n".join([f"## {task}\n", markdown(found), *told_apart(found)])


def told_apart(found: Comparison) -> Iterator[str]:
    """Of the best AMM by the judging metric: against which baselines the difference is beyond chance."""
    own = [method.label for method in found.ranked() if method.label.startswith("amm")]
    if not own:
        return
    yield f"\n{measure_of(found.judge).title}, the difference of {own[0]} (best of AMM) to the baselines:\n"
    yield "| against | difference, 95 % interval | p (Holm) |"
    yield "| :-- | --: | --: |"
    for pair in found.pairs:
        if pair.metric != found.judge or own[0] not in (pair.first, pair.second):
            continue
        other = pair.second if pair.first == own[0] else pair.first
        if other.startswith("amm"):
            continue
        sign = 1.0 if pair.first == own[0] else -1.0
        apart = pair.difference.estimate
        text = cell_text(apart._replace(mean=sign * apart.mean), found.judge)
        yield f"| {other} | {text} | {'–' if pair.p_holm is None else f'{pair.p_holm:.3f}'} |"


# -- figures ----------------------------------------------------------------------------------------


def overview(found: dict[str, Comparison]) -> Figure:
    """A row a task, a column a yardstick: every method's mean and interval, the teacher's level dashed."""
    figure = Figure(
        (11.0, 0.8 + 0.24 * sum(len(one.methods) for one in found.values())), layout="constrained"
    )
    heights = [len(one.methods) for one in found.values()]
    axes = figure.subplots(len(found), 4, squeeze=False, height_ratios=heights)
    for row, (task, one) in zip(axes, found.items(), strict=True):
        metrics = (one.judge, one.judge.removeprefix("sampled_"), "tv_on", "kl_off")
        for axis, metric in zip(row, metrics, strict=True):
            places = range(len(one.methods))
            for place, method in zip(places, one.methods, strict=True):
                cell = one.estimates.get((method.label, metric))
                if cell is None:
                    continue
                colour = BLUE if method.label.startswith("amm") else BLACK
                half = 0.0 if cell.low is None or cell.high is None else 0.5 * (cell.high - cell.low)
                axis.errorbar(cell.mean, place, xerr=half, fmt="o", markersize=3.5, color=colour, linewidth=1)
            teacher, _ = one.levels.get(metric, (None, None))
            if teacher is not None and metric not in ("tv_on", "kl_off"):
                axis.axvline(teacher, color=VERMILLION, linestyle="--", linewidth=0.8)
            axis.set_title(f"{task}: {measure_of(metric).arrow}", fontsize=8)
            axis.set_yticks(
                places, [method.label for method in one.methods] if axis is row[0] else [""] * len(places)
            )
            axis.tick_params(labelsize=7)
            axis.invert_yaxis()
            axis.grid(axis="x", alpha=0.3)
    return figure


def curves(found: dict[str, Comparison]) -> Figure:
    """A row a task: the validation metric over updates, and both moment distances while training."""
    figure = Figure((11.0, 2.6 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), 3, squeeze=False)
    for row, (task, one) in zip(axes, found.items(), strict=True):
        keys = (f"valid/{one.judge}", "train/moment_gap_off", "train/moment_gap_on")
        for axis, key in zip(row, keys, strict=True):
            for style, method in zip(STYLES, (m for m in one.methods if m.label in DRAWN), strict=False):
                curve = mean_curve([run.curves.get(key, []) for run in method.runs])
                if curve:
                    axis.plot(*zip(*curve, strict=True), label=method.label, linewidth=1.2, **style)
            axis.set_title(f"{task}: {key}", fontsize=8)
            axis.set_xlabel("update", fontsize=7)
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.3)
        if row[0].has_data():
            row[0].legend(fontsize=6)
    return figure


def mean_curve(of_runs: Sequence[Curve]) -> Curve:
    """The mean at the places that all runs have."""
    shared = set.intersection(*({place for place, _ in curve} for curve in of_runs))
    return [(place, statistics.fmean(dict(curve)[place] for curve in of_runs)) for place in sorted(shared)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
