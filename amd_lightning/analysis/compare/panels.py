"""Heat maps, cost against quality, every yardstick, and who beats whom."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from amd_lightning.analysis.compare.comparison import Comparison
from amd_lightning.analysis.compare.curves import families
from amd_lightning.analysis.compare.measures import measure_of
from amd_lightning.analysis.compare.statistics import Estimate
from amd_lightning.analysis.compare.style import (
    BLACK,
    BLUE,
    PALE,
    VERMILLION,
    WIDE,
    colour,
    grid,
    hide,
    legend_below,
    marker,
)
from amd_lightning.analysis.runs import number

MAP_METRICS = (
    "exact_match",
    "mmd_squared",
    "worst_case",
    "tv_on",
    "kl_off",
    "rkl_on",
    "probe_off",
    "probe_on",
)
SIGNIFICANT = 0.05


# -- distance × β ------------------------------------------------------------------------------


def heat_figure(found: Comparison) -> Figure | None:
    """A map a metric, families × β, its number in every cell; None without two families and two β's."""
    names = families(found.methods)
    betas = sorted(_betas(found))  # as the figure before it, and a sweep's own map
    if len(names) < 2 or len(betas) < 2:
        return None
    metrics = [key for key in dict.fromkeys([found.judge, *MAP_METRICS]) if key in found.metrics]
    columns = 3
    rows = math.ceil(len(metrics) / columns)
    figure, axes = grid(rows, columns, (WIDE, rows * (0.27 * len(names) + 0.75) + 0.1))
    flat = [axis for row in axes for axis in row]
    for place, (axis, metric) in enumerate(zip(flat, metrics, strict=False)):
        values = np.full((len(names), len(betas)), np.nan)
        for method in found.methods:
            mean = found.mean(method.label, metric)
            if method.beta is not None and mean is not None:
                values[names.index(method.family), betas.index(method.beta)] = mean
        _heat(axis, values, metric)
        axis.set_xticks(range(len(betas)), [f"β {beta:g}" for beta in betas])
        axis.set_yticks(
            range(len(names)), names if place % columns == 0 else [""] * len(names), parse_math=False
        )
    hide(flat[len(metrics) :])
    return figure


def _heat(axis: Axes, values: np.ndarray, metric: str) -> None:
    measure = measure_of(metric)
    sign = measure.better or 1
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0.0)
    # Dark is better; lightness carries the order, so that grey print does too.
    image = axis.imshow(sign * values, cmap="Blues", aspect="auto")
    known = np.isfinite(values)
    best = np.nanmax(sign * values) if known.any() else math.nan
    for (row, column), value in np.ndenumerate(values):
        if not known[row, column]:
            axis.text(column, row, "–", ha="center", va="center", fontsize=8.5)
            continue
        red, green, blue, _ = image.cmap(image.norm(sign * value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        top = sign * value == best
        axis.text(
            column,
            row,
            f"{number(value, measure.decimals)}{' ★' if top else ''}",
            ha="center",
            va="center",
            fontsize=8.5,
            fontweight="bold" if top else "normal",
            color="white" if dark else BLACK,
        )
    axis.set_title(measure.arrow, fontsize=9.5)


# -- quality against cost ----------------------------------------------------------------------


def cost_figure(found: Comparison) -> Figure | None:
    """The judging metric against seconds of distillation and against response tokens; None without costs."""
    kinds = [
        ("seconds", "seconds of distillation (mean over runs)"),
        ("tokens", "response tokens trained on (mean over runs)"),
    ]
    shown = [
        (name, title)
        for name, title in kinds
        if any(getattr(budget, name) for budget in found.budgets.values())
    ]
    if not shown or not any((m.label, found.judge) in found.estimates for m in found.methods):
        return None
    figure, axes = grid(1, len(shown), (WIDE if len(shown) > 1 else 6.5, 4.2))
    for axis, (name, title) in zip(axes[0], shown, strict=True):
        _cost_panel(axis, found, name)
        axis.set_xlabel(title, fontsize=9)
    axes[0][0].set_ylabel(measure_of(found.judge).arrow, fontsize=9)
    handles = [
        Line2D([], [], color=colour(place), marker=marker(place), markersize=6, linestyle="none", label=name)
        for place, name in enumerate(families(found.methods))
    ]
    handles += [
        Line2D(
            [],
            [],
            color=BLACK,
            marker="o",
            markersize=6,
            linestyle="none",
            label=f"β {beta:g}",
            fillstyle=_fill(found, beta),
            markerfacecoloralt="white",
        )
        for beta in _betas(found)
    ]
    handles.append(Line2D([], [], color=BLACK, linewidth=1.0, linestyle="--", label="best at that cost"))
    legend_below(figure, handles, 6)
    return figure


FILLS: tuple[Literal["full", "left", "none", "bottom", "right"], ...] = (
    "full",
    "left",
    "none",
    "bottom",
    "right",
)
"""How markers show β, from the largest on."""


def _betas(found: Comparison) -> list[float]:
    return sorted({m.beta for m in found.methods if m.beta is not None}, reverse=True)


def _fill(found: Comparison, beta: float | None) -> Literal["full", "left", "none", "bottom", "right"]:
    betas = _betas(found)
    # A sweep of many: the ends and what lies between.
    if beta is None or len(betas) <= len(FILLS):
        return "full" if beta is None else FILLS[betas.index(beta)]
    return "full" if beta == betas[0] else "none" if beta == betas[-1] else "left"


def _cost_panel(axis: Axes, found: Comparison, kind: str) -> None:
    names = families(found.methods)
    points: list[tuple[float, float]] = []
    for method in found.methods:
        cell, cost = (
            found.estimates.get((method.label, found.judge)),
            getattr(found.budgets[method.label], kind),
        )
        if cell is None or not cost:
            continue
        place = names.index(method.family)
        axis.errorbar(
            cost,
            cell.mean,
            yerr=None if cell.low is None else cell.mean - cell.low,
            color=colour(place),
            marker=marker(place),
            markersize=6,
            elinewidth=0.7,
            fillstyle=_fill(found, method.beta),
            markerfacecoloralt="white",
        )
        points.append((cost, cell.mean))
    front = _front(points, measure_of(found.judge).better or 1)
    if len(front) > 1:
        axis.plot(*zip(*front, strict=True), color=BLACK, linewidth=1.0, linestyle="--", zorder=1)


def _front(points: Sequence[tuple[float, float]], sign: int) -> list[tuple[float, float]]:
    """Points that none cheaper reaches, by cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * value > sign * front[-1][1]:
            front.append((cost, value))
    return front


# -- every method on every yardstick -----------------------------------------------------------

YARDSTICKS = {
    "tv": ("TV", "mean over tokens, 0 to 1", ("tv",)),
    "kl": ("KL", "nats a token", ("kl", "skew_kl", "nll")),
    "rkl": ("reverse KL", "nats a token", ("rkl", "skew_rkl")),
    "js": ("JS", "nats a token", ("js",)),
    "probe": ("probe distance", "0 to TV", ("moment_matching",)),
}
"""Name -> title, unit, and the distances whose own yardstick it is."""


def yardstick_figure(found: Comparison) -> Figure | None:
    """A panel a step-wise yardstick, a row a method: off and on, with intervals; None without any."""
    shown = [
        name for name in YARDSTICKS if any(f"{name}_{source}" in found.metrics for source in ("off", "on"))
    ]
    if not shown:
        return None
    figure, axes = grid(1, len(shown), (WIDE, 0.27 * len(found.methods) + 1.35))
    for place, (axis, name) in enumerate(zip(axes[0], shown, strict=True)):
        title, unit, own = YARDSTICKS[name]
        for row, method in enumerate(found.methods):
            if method.distance in own:
                axis.axhspan(row - 0.5, row + 0.5, color=PALE, alpha=0.45, linewidth=0.0)
            for source, shift in (("off", -0.17), ("on", 0.17)):
                _dot(axis, found.estimates.get((method.label, f"{name}_{source}")), row + shift, source)
        axis.axvline(0.0, color=BLACK, linewidth=0.8)
        axis.set_ylim(len(found.methods) - 0.5, -0.5)
        axis.set_yticks(range(len(found.methods)))
        labels = [method.label for method in found.methods] if place == 0 else []
        axis.set_yticklabels(labels or [""] * len(found.methods), parse_math=False)
        axis.tick_params(axis="y", length=0.0)
        axis.set_title(f"{title} (↓)", fontsize=9.5)
        axis.set_xlabel(unit, fontsize=8.5)
    handles = [
        Line2D([], [], color=BLUE, marker="o", markersize=5, label="on stored responses (off)"),
        Line2D(
            [],
            [],
            color=VERMILLION,
            marker="D",
            markersize=5,
            markerfacecolor="white",
            label="on the student's own (on)",
        ),
        Patch(facecolor=PALE, alpha=0.45, label="the method's own yardstick"),
    ]
    legend_below(figure, handles, 3)
    return figure


def _dot(axis: Axes, cell: Estimate | None, row: float, source: str) -> None:
    if cell is None:
        return
    own = BLUE if source == "off" else VERMILLION
    if cell.low is not None and cell.high is not None:
        axis.plot([cell.low, cell.high], [row, row], color=own, linewidth=1.1)
    axis.plot(
        [cell.mean],
        [row],
        color=own,
        marker="o" if source == "off" else "D",
        markersize=4.2,
        markerfacecolor=own if source == "off" else "white",
        linestyle="none",
    )


# -- who beats whom ----------------------------------------------------------------------------


def pairs_figure(found: Comparison) -> Figure | None:
    """Differences of the judging metric, row − column, the best method first; None where nothing was tested.

    A full dot: significant over seeds and examples after Holm's correction; a ring: the same before it.
    """
    tested = {(pair.first, pair.second): pair for pair in found.pairs if pair.metric == found.judge}
    if not tested or found.against is not None or len(found.methods) > 30:
        return None
    labels = [m.label for m in found.ranked() if (m.label, found.judge) in found.estimates]
    count = len(labels)
    values = np.full((count, count), np.nan)
    marks: list[tuple[int, int, bool]] = []
    for (one, two), pair in tested.items():
        row, column = labels.index(one), labels.index(two)
        apart = pair.difference.estimate.mean
        values[row, column], values[column, row] = apart, -apart
        adjusted, plain = pair.p_holm, pair.difference.p
        if plain is not None and adjusted is not None and plain < SIGNIFICANT:
            marks += [(row, column, adjusted < SIGNIFICANT), (column, row, adjusted < SIGNIFICANT)]
    side = 0.34 * count
    figure, axes = grid(1, 1, (side + 3.6, side + 2.2))
    axis = axes[0][0]
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    reach = 1.4 * float(np.nanmax(np.abs(values))) or 1.0  # dots stay visible on the darkest
    image = axis.imshow(values, cmap="PuOr", vmin=-reach, vmax=reach)
    for row, column, corrected in marks:
        if row < column:  # the other half says the same
            axis.plot(
                column,
                row,
                marker="o",
                markersize=5.5,
                color=BLACK,
                markerfacecolor=BLACK if corrected else "none",
            )
    axis.set_xticks(range(count), labels, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
    axis.set_yticks(range(count), labels, parse_math=False)
    axis.tick_params(length=0.0)
    bar = figure.colorbar(image, ax=axis, shrink=0.7)
    bar.set_label(f"{measure_of(found.judge).title}:\nrow − column", fontsize=8.5)
    bar.ax.tick_params(labelsize=8.5)
    handles = [
        Line2D(
            [], [], linestyle="none", marker="o", color=BLACK, label="significant after Holm's correction"
        ),
        Line2D(
            [], [], linestyle="none", marker="o", color=BLACK, markerfacecolor="none", label="before it only"
        ),
    ]
    legend_below(figure, handles, 2)
    return figure
