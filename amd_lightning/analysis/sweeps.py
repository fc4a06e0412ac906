"""A sweep's summary: a table of its points, and beta x distance as a heat map."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from amd_lightning.analysis.compare.measures import measure_of
from amd_lightning.analysis.figures import BLACK, BLUE
from amd_lightning.analysis.runs import DISTANCE_NAMES, number, read_results
from amd_lightning.analysis.tables import NONE
from amd_lightning.metric_direction import rises
from amd_lightning.sweeps.index import Row, Status

COLOURS: Colormap = LinearSegmentedColormap.from_list("levels", ["#FFFFFF", BLUE])
"""White to Okabe and Ito's blue: lightness alone tells levels apart, in grey print too. Blue is
better, whichever way the metric goes."""
Cells = Mapping[tuple[str, float], Sequence[float]]
"""(distance, beta) -> the values of its points, one a seed or whatever else was swept."""


def sweep_table(rows: Sequence[Row]) -> Table:
    """Every point with how it stands and what it came to, best read at 100 columns."""
    metrics = ", ".join(dict.fromkeys(row.metric for row in rows if row.metric))
    done = sum(row.status == Status.done for row in rows)
    others = [
        f", {count} {words}"
        for status, words in ((Status.pruned, "given up"), (Status.stopped, "stopped"))
        if (count := sum(row.status == status for row in rows))
    ]
    table = Table(
        title=Text(f"sweep: {done} of {len(rows)} points done{''.join(others)}"),
        caption=Text(
            "Metric: on the validation split after the last update. Cached: artifacts that were there "
            "already, of all.",
            justify="left",
        ),
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    table.add_column("", justify="right")
    table.add_column("point")
    table.add_column("status", no_wrap=True)
    table.add_column(metrics or "metric", justify="right")
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("cached", justify="right", no_wrap=True)
    for row in rows:
        value = NONE if row.value is None else number(row.value, 3)
        seconds = NONE if row.seconds is None else f"{row.seconds:.0f}"
        cells = (str(row.point), _short(row.overrides), str(row.status), value, seconds, row.found or NONE)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _short(overrides: str) -> str:
    """Overrides with the last part of each key alone."""
    return re.sub(r"(^| )[^ =]*\.([^ =.]+=)", r"\1\2", overrides)


def draw_heat_map(folder: Path, rows: Sequence[Row]) -> Path | None:
    """Write `heat_map` of a sweep's finished points as `folder/beta_by_distance.png`.

    Args:
        folder: of the sweep.
        rows: its points.

    Returns:
        The file; None, and nothing is written, where the points that are done do not vary in both.
    """
    cells, metric = collected(folder, rows)
    if any(len(set(values)) < 2 for values in zip(*cells, strict=True)) or not cells:
        return None
    path = folder / "beta_by_distance.png"
    heat_map(cells, metric).savefig(path, dpi=200, facecolor="white")
    return path


def collected(folder: Path, rows: Sequence[Row]) -> tuple[Cells, str]:
    """The values of a sweep's finished points by distance and beta, and what they are values of."""
    cells: dict[tuple[str, float], list[float]] = {}
    metrics: dict[str, None] = {}
    for row in rows:
        if row.status == Status.pruned or row.value is None or not math.isfinite(row.value):
            continue
        objective = read_results(folder / row.directory)["objective"]
        cells.setdefault((str(objective["distance"]), float(objective["beta"])), []).append(row.value)
        metrics[row.metric] = None
    return cells, ", ".join(metrics)


def heat_map(cells: Cells, metric: str) -> Figure:
    """A row a distance, a column a beta, the mean of each cell's points written in it.

    The darker a cell, the better (`metric_direction.rises`); title and colour bar say which way that is. What
    was not measured stays white, with a dash. Distances keep the order in which they come.
    """
    distances = list(dict.fromkeys(distance for distance, _ in cells))
    betas = sorted({beta for _, beta in cells})
    means = [[fmean(cells.get((d, b)) or [math.nan]) for b in betas] for d in distances]
    low = min(value for row in means for value in row if math.isfinite(value))
    high = max(value for row in means for value in row if math.isfinite(value))
    figure = Figure((1.0 * len(betas) + 3.0, 0.5 * len(distances) + 1.6), layout="constrained")  # inches
    axis = figure.add_subplot()
    more = rises(metric)
    colours = COLOURS if more else COLOURS.reversed()
    limits = (low, high)
    if low == high:  # a level alone is not called good: white
        limits = (low, low + 1.0) if more else (low - 1.0, low)
    image = axis.imshow(means, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    for place, row in enumerate(means):
        for column, value in enumerate(row):
            dark = math.isfinite(value) and abs(value - limits[not more]) > 0.85 * (high - low)
            text = number(value, 3) if math.isfinite(value) else NONE
            axis.text(
                column, place, text, ha="center", va="center", fontsize=9, color="white" if dark else BLACK
            )
    axis.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axis.set_yticks(range(len(distances)), [DISTANCE_NAMES.get(name, name) for name in distances])
    axis.set_xlabel("β (0: student-written states alone, 1: the data's)", fontsize=9)
    axis.tick_params(labelsize=9, length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axis)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("better →", fontsize=9)  # upwards, as the bar's upper end is
    if not more:
        bar.ax.invert_yaxis()  # better is the upper end
    most = max(len(values) for values in cells.values())
    several = f", mean of up to {most} points" if most > 1 else ""
    better = "more is better" if more else "less is better"
    axis.set_title(f"{measure_of(metric).title} ({better})\nvalidation split{several}", fontsize=10)
    return figure
