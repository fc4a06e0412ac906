"""Finished runs of the study -> results/TASK.csv, tables.md, README.md's tables, and for each task figures
and a report, here.

    python experiments/first_study/collect.py runs/first_study

Run again as runs finish: it writes what there is. Means, intervals and paired tests are those of
`python -m amd_lightning.compare`; methods have the study's names here.
"""

import argparse
import csv
import statistics
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import standings
from choosing import RECORD, Choice, finished, metric_of, point_of, rows_of
from grid import EQUAL_SECONDS, LEARNING_RATES, METHODS, SEEDS, TASKS, Point, known_methods
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

from amd_lightning.analysis.compare.collect import Run, read_run
from amd_lightning.analysis.compare.comparison import Comparison, comparison
from amd_lightning.analysis.compare.measures import measure_of
from amd_lightning.analysis.compare.methods import Method
from amd_lightning.analysis.compare.panels import pairs_figure
from amd_lightning.analysis.compare.report import Picture, render
from amd_lightning.analysis.compare.tables import cell_text, markdown, number
from amd_lightning.analysis.figures import BLACK, BLUE, GREEN, GREY, SKY, VERMILLION
from amd_lightning.analysis.runs import Curve

HERE = Path(__file__).parent
MORE_SEEDS = (3, 4)
"""Of the closest pairs."""
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
DRAWN = ("sft", "kd", "gkd", "distillm", "minillm", "amm_beta.5", "amm_slow_critic_beta1", "amm_rising.001")
"""Methods whose curves are drawn: all of them would hide one another."""

STYLES: tuple[dict[str, Any], ...] = (
    {"color": GREY, "linestyle": "-"},
    {"color": BLACK, "linestyle": ":"},
    {"color": VERMILLION, "linestyle": "-"},
    {"color": SKY, "linestyle": "--"},
    {"color": BLACK, "linestyle": "-."},
    {"color": BLUE, "linestyle": "-"},
    {"color": BLUE, "linestyle": "--"},
    {"color": GREEN, "linestyle": "-"},
)

PICTURES = (
    ("pairs", "pairs", "Who beats whom", "Differences of means, the best first; purple: the row is higher."),
    (
        "learning",
        "curves",
        "Learning curves",
        "Validation, and moment gaps while training, by the run's critic.",
    ),
    (
        "yardsticks",
        "overview",
        "Every method on four yardsticks",
        "Bars: 95 % intervals; dashed: the teacher.",
    ),
)
"""Of a report: the page's name of a figure, the file's, title, how to read it."""

COLUMNS = (
    "task", "method", "beta", "learning_rate", "seed", "regime", "updates", "seconds",
    "accelerator", "split", "metric", "value",
)  # fmt: skip


def main(out: Path) -> None:
    """Write everything, and print the tables."""
    rows: list[list[object]] = list(recorded_elsewhere(out))
    compared: dict[str, Comparison] = {}
    in_equal_time: dict[str, Comparison] = {}
    for task in TASKS:
        rows += list(result_rows(out, task))
        write(task, sorted((row for row in rows if row[0] == task), key=place))
        found = methods_of(out, task)
        timed = [method for method in found if method.label in EQUAL_SECONDS.get(task, ())]
        found = [method for method in found if not method.label.endswith("_longer")]
        if found:
            compared[task] = comparison(found, metric=metric_of(found[0].runs[0].results))
        if timed:
            in_equal_time[task] = comparison(timed, metric=metric_of(timed[0].runs[0].results))
    sections = [summary(compared), *(section(out, task, task, one) for task, one in compared.items())]
    sections += [
        section(out, task, f"{task} at about equal seconds", one) for task, one in in_equal_time.items()
    ]
    (HERE / "tables.md").write_text("\n".join(sections), encoding="utf-8")
    print("\n".join(sections))
    refresh(HERE / "README.md", out, compared)
    refresh(HERE / "README.md", out, in_equal_time, " at equal seconds")
    for task, one in compared.items():
        save(overview(task, one), HERE / f"overview_{task}.png")
        save(curves(task, one), HERE / f"curves_{task}.png")
        (HERE / f"report_{task}.html").write_text(report(task, one), encoding="utf-8")


def refresh(readme: Path, out: Path, compared: dict[str, Comparison], what: str = "") -> None:
    """README.md with the tables of these runs at its marks; a task without a mark is told in words there."""
    text = readme.read_text(encoding="utf-8")
    for task, found in compared.items():
        if standings.MARK.format(task + what) in text:
            text = standings.into(text, task + what, standings.standing(out, task, found))
    readme.write_text(text, encoding="utf-8")


def write(task: str, rows: Sequence[Sequence[object]]) -> None:
    """The record of a task, where there is any."""
    if not rows:
        return
    RECORD.mkdir(exist_ok=True)
    with (RECORD / f"{task}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def save(figure: Figure, path: Path) -> None:
    """A picture in few colours: a quarter of the bytes, and no eye tells."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=100, facecolor="white")
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def runs_of(out: Path, task: str, method: str) -> list[Run]:
    """The finished runs of a method at the learning rate that it chose, or the best so far, by seed."""
    rate = Choice(out, task, method, SEEDS).best_so_far
    if rate is None:
        return []
    places = [out / Point(task, method, rate, seed).place for seed in (*SEEDS, *MORE_SEEDS)]
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


# -- results ------------------------------------------------------------------------------------


def recorded_elsewhere(out: Path) -> Iterator[list[object]]:
    """What is written down of runs that are not here: another machine made them."""
    for row in rows_of(RECORD):
        if finished(out / point_of(row).place) is None:
            yield [row[column] for column in COLUMNS]


def place(row: Sequence[Any]) -> tuple[Any, ...]:
    """Where a row stands: by task, method, learning rate, seed, as the study has them."""
    task, method, _, rate, seed = row[:5]
    return TASKS.index(task), list(METHODS).index(method), float(rate), int(seed)


def result_rows(out: Path, task: str) -> Iterator[list[object]]:
    """Validation of every run of the grid of learning rates, test of those at the best one so far."""
    for method in known_methods(task):
        for rate in LEARNING_RATES[task]:
            for seed in (*SEEDS, *MORE_SEEDS):
                results = finished(out / Point(task, method, rate, seed).place)
                if results is None:
                    continue
                seconds = results["cost"]["seconds"]["distil"]
                regime = "many_updates" if task.endswith("_long") else "few_updates"
                head = [task, method, results["objective"]["beta"], rate, seed, regime, results["updates"]]
                config = OmegaConf.load(out / Point(task, method, rate, seed).place / "config.yaml")
                head += [round(seconds), config.trainer.accelerator]
                judge = metric_of(results)
                yield [*head, "valid", judge, f"{results['validation'][judge]:.4g}"]
                if rate == Choice(out, task, method, SEEDS).best_so_far:
                    for metric in (judge, judge.removeprefix("sampled_"), *YARDSTICKS):
                        yield [*head, "test", metric, f"{results['student'][metric]:.4g}"]


# -- tables -----------------------------------------------------------------------------------------


def summary(found: dict[str, Comparison]) -> str:
    """A row a method, a column a task: sampled quality, mean of the seeds, and how many there are."""
    labels = [
        label for label in METHODS if any((label, one.judge) in one.estimates for one in found.values())
    ]
    lines = [
        "## Sampled quality on every task\n",
        "| | " + " | ".join(f"{task}: {measure_of(one.judge).title}" for task, one in found.items()) + " |",
        "| :-- |" + " --: |" * len(found),
    ]
    for level, name in enumerate(("teacher", "student before")):
        levels = [(one, one.levels[one.judge][level]) for one in found.values()]
        cells = [
            "–" if value is None else number(value, measure_of(one.judge).decimals) for one, value in levels
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for label in labels:
        cells = []
        for one in found.values():
            cell = one.estimates.get((label, one.judge))
            seeds = next((len(method.runs) for method in one.methods if method.label == label), 0)
            text = cell and number(cell.mean, measure_of(one.judge).decimals)
            cells.append(f"{text} ({seeds})" if text else "–")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join([*lines, "\nTest split; in brackets the training seeds.\n"])


def section(out: Path, task: str, title: str, found: Comparison) -> str:
    """A task's table and what its paired tests tell apart."""
    return "\n".join(
        [
            f"## {title}\n",
            markdown(found),
            *rates_told(out, task, found),
            *told_apart(found),
            *standings.led_by_seed(found),
        ]
    )


def rates_told(out: Path, task: str, found: Comparison) -> Iterator[str]:
    """At which learning rate each method stands in the table, and which of them may choose another yet."""
    told = [
        f"{method.label} {method.runs[0].results['learning_rate']:g}"
        + ("" if Choice(out, task, method.label, SEEDS).chosen else " (so far)")
        for method in found.methods
    ]
    yield f"\nLearning rates, each method's own by validation: {', '.join(told)}."


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


def report(task: str, found: Comparison) -> str:
    """The page that `compare` makes of these runs, to be shared: the pictures lie beside it."""
    pairs = pairs_figure(found)
    if pairs is not None:
        save(pairs, HERE / f"pairs_{task}.png")
    shown = {
        name: Picture(name, title, reading, f"{file}_{task}.png")
        for name, file, title, reading in PICTURES
        if file != "pairs" or pairs is not None
    }
    command = "python experiments/first_study/collect.py runs/first_study"
    return render(found, shown, command, shareable=True)


# -- figures ----------------------------------------------------------------------------------------


def overview(task: str, found: Comparison) -> Figure:
    """A column a yardstick: every method's mean and interval, the teacher's level dashed."""
    figure = Figure((11.0, 0.8 + 0.2 * len(found.methods)), layout="constrained")
    axes = figure.subplots(1, 4)
    places = range(len(found.methods))
    metrics = (found.judge, found.judge.removeprefix("sampled_"), "tv_on", "kl_off")
    for axis, metric in zip(axes, metrics, strict=True):
        for place, method in zip(places, found.methods, strict=True):
            cell = found.estimates.get((method.label, metric))
            if cell is None:
                continue
            colour = BLUE if method.label.startswith("amm") else BLACK
            half = 0.0 if cell.low is None or cell.high is None else 0.5 * (cell.high - cell.low)
            axis.errorbar(cell.mean, place, xerr=half, fmt="o", markersize=3.5, color=colour, linewidth=1)
        teacher, _ = found.levels.get(metric, (None, None))
        if teacher is not None and metric not in ("tv_on", "kl_off"):
            axis.axvline(teacher, color=VERMILLION, linestyle="--", linewidth=0.8)
        axis.set_title(f"{task}: {measure_of(metric).arrow}", fontsize=8)
        labels = [method.label for method in found.methods] if axis is axes[0] else [""] * len(places)
        axis.set_yticks(places, labels)
        axis.tick_params(labelsize=7)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
    return figure


def curves(task: str, found: Comparison) -> Figure:
    """The validation metric over updates, and both moment distances while training."""
    figure = Figure((11.0, 2.6), layout="constrained")
    axes = figure.subplots(1, 3)
    keys = (f"valid/{found.judge}", "train/moment_gap_off", "train/moment_gap_on")
    for axis, key in zip(axes, keys, strict=True):
        for method in (method for method in found.methods if method.label in DRAWN):
            style = STYLES[DRAWN.index(method.label)]  # one for all tasks, whichever methods have run
            curve = mean_curve([run.curves.get(key, []) for run in method.runs])
            if curve:
                axis.plot(*zip(*curve, strict=True), label=method.label, linewidth=1.2, **style)
        if key.startswith("train/") and axis.has_data():
            axis.set_yscale("log")  # a critic near KL is large where the student has missed a mode
        axis.set_title(f"{task}: {key}", fontsize=8)
        axis.set_xlabel("update", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    if axes[0].has_data():
        axes[0].legend(fontsize=6, framealpha=0.6)
    return figure


def mean_curve(of_runs: Sequence[Curve]) -> Curve:
    """The mean at the places that all runs have."""
    shared = set.intersection(*({place for place, _ in curve} for curve in of_runs))
    return [(place, statistics.fmean(dict(curve)[place] for curve in of_runs)) for place in sorted(shared)]


def asked(arguments: Sequence[str] | None = None) -> Path:
    """The directory of runs that the command line names; one without any would empty the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="what study.py's --out said: runs/first_study")
    out: Path = parser.parse_args(arguments).out
    if next(out.glob("*/*/*/*/results.json"), None) is None:
        parser.error(f"no finished run lies in {out}: name the directory that study.py run --out wrote")
    return out


if __name__ == "__main__":
    main(asked())
