"""Curves over β and over updates, a panel a family, with all others pale behind it."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from amd_lightning.analysis.compare.comparison import Comparison
from amd_lightning.analysis.compare.measures import measure_of
from amd_lightning.analysis.compare.methods import Method
from amd_lightning.analysis.compare.style import (
    BLACK,
    COLOURS,
    PALE,
    WIDE,
    colour,
    grid,
    hide,
    legend_below,
    marker,
)

AT_ONCE = 6
"""Panels in a row."""
BETA_METRICS = ("exact_match", "tv_on", "kl_off")
"""Beside the judging one: a whole-response, a mode-seeking and a covering yardstick."""
SMOOTHED = 5
"""Logged points that a curve of training is averaged over."""


def families(methods: Sequence[Method]) -> list[str]:
    """Names without β, in order."""
    return list(dict.fromkeys(method.family for method in methods))


# -- over β ------------------------------------------------------------------------------------


def beta_figure(found: Comparison) -> Figure | None:
    """Rows of metrics, columns of families: the mean against β with its interval; None without two β's."""
    curves = _beta_curves(found)
    if not curves:
        return None
    metrics = [key for key in dict.fromkeys([found.judge, *BETA_METRICS]) if key in found.metrics]
    names = list(curves)[: 2 * AT_ONCE]
    columns = min(AT_ONCE, len(names))
    blocks = math.ceil(len(names) / columns)
    rows = len(metrics) * blocks
    figure, axes = grid(rows, columns, (max(WIDE * columns / AT_ONCE, 4.5), 1.55 * rows + 0.5))
    places = {name: place for place, name in enumerate(families(found.methods))}
    for block in range(blocks):
        shown = names[block * columns : (block + 1) * columns]
        for row, metric in enumerate(metrics):
            line = axes[block * len(metrics) + row]
            _share_y(line)
            for axis, name in zip(line, shown, strict=False):
                _beta_panel(axis, found, metric, name, curves, places[name])
                if row == 0:
                    axis.set_title(name, fontsize=9.5, parse_math=False)
                if row == len(metrics) - 1:
                    axis.set_xlabel("β", fontsize=9)
                else:
                    axis.tick_params(labelbottom=False)
            line[0].set_ylabel(measure_of(metric).arrow.replace(" with ", "\nwith "), fontsize=8.5)
            hide(line[len(shown) :])
    handles = [
        Line2D(
            [], [], color=BLACK, marker="o", markersize=4, linewidth=1.6, label="mean, band: 95 % interval"
        ),
        Line2D([], [], color=PALE, linewidth=1.2, label="the other distances"),
        Line2D([], [], color=BLACK, linestyle=":", linewidth=1.0, label="the teacher itself"),
    ]
    legend_below(figure, handles, 3)
    return figure


def _beta_curves(found: Comparison) -> dict[str, list[Method]]:
    """Families with at least two β's, their methods by ascending β."""
    curves: dict[str, list[Method]] = {}
    for method in found.methods:
        if method.beta is not None:
            curves.setdefault(method.family, []).append(method)
    ordered = {name: sorted(points, key=lambda m: m.beta or 0.0) for name, points in curves.items()}
    return {name: points for name, points in ordered.items() if len({m.beta for m in points}) > 1}


def _beta_panel(
    axis: Axes, found: Comparison, metric: str, name: str, curves: dict[str, list[Method]], place: int
) -> None:
    for other, points in curves.items():
        cells = [
            (m.beta, found.estimates[m.label, metric]) for m in points if (m.label, metric) in found.estimates
        ]
        if not cells:
            continue
        betas, means = [beta or 0.0 for beta, _ in cells], [cell.mean for _, cell in cells]
        if other != name:
            axis.plot(betas, means, color=PALE, linewidth=1.1, zorder=1)
            continue
        lows = [cell.mean if cell.low is None else cell.low for _, cell in cells]
        highs = [cell.mean if cell.high is None else cell.high for _, cell in cells]
        axis.fill_between(betas, lows, highs, color=colour(place), alpha=0.22, linewidth=0.0, zorder=2)
        axis.plot(
            betas, means, color=colour(place), marker=marker(place), markersize=4, linewidth=1.7, zorder=3
        )
    teacher = found.levels[metric][0]
    if teacher:  # 0 is a distance's, by definition
        axis.axhline(teacher, color=BLACK, linestyle=":", linewidth=1.0)
    ticks = sorted({m.beta for points in curves.values() for m in points if m.beta is not None})
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _share_y(axes: Sequence[Axes]) -> None:
    for axis in axes[1:]:
        axis.sharey(axes[0])
        axis.tick_params(labelleft=False)


# -- over updates ------------------------------------------------------------------------------


class Watched(NamedTuple):
    """A logged key to draw against the update."""

    key: str
    label: str
    dash: Literal["-", "--"]


def learning_figure(found: Comparison) -> tuple[Figure | None, str]:
    """(the judging metric on the validation split against the update, or training's distances where a run
    validated fewer than three times; what it shows)."""
    judged = Watched(f"valid/{found.judge}", f"validation {measure_of(found.judge).title}", "-")
    if all(len(run.curves.get(judged.key, [])) > 2 for method in found.methods for run in method.runs):
        figure = _small_multiples(found, [judged], smooth=False)
        return figure, f"{judged.label} against the update, mean and range over seeds"
    watched = [Watched("train/tv_on", "TV on", "-"), Watched("train/tv_off", "TV off", "--")]
    figure = _small_multiples(found, watched, smooth=True)
    return figure, (
        "training TV to the teacher against the update, mean and range over seeds, running mean over "
        f"{SMOOTHED} logged updates; with trainer.validate_every=N validation is shown here instead"
    )


def _small_multiples(found: Comparison, watched: Sequence[Watched], *, smooth: bool) -> Figure | None:
    drawn = {
        (method.label, line.key): curve
        for method in found.methods
        for line in watched
        if (curve := _mean_curve(method, line.key, smooth)) is not None
    }
    if not drawn:
        return None
    names = families(found.methods)[: 2 * AT_ONCE]
    betas = sorted({m.beta for m in found.methods if m.beta is not None}, reverse=True)
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = grid(rows, columns, (WIDE * max(columns, 2) / 3, 2.2 * rows + 0.6))
    flat = [axis for row in axes for axis in row]
    for axis, name in zip(flat, names, strict=False):
        for method in found.methods:
            for line in watched:
                curve = drawn.get((method.label, line.key))
                if curve is None or method.family != name:
                    continue
                own = COLOURS[betas.index(method.beta) % len(COLOURS)] if method.beta in betas else BLACK
                axis.fill_between(curve.updates, curve.low, curve.high, color=own, alpha=0.18, linewidth=0.0)
                axis.plot(
                    curve.updates,
                    curve.mean,
                    color=own,
                    linestyle=line.dash,
                    linewidth=1.4,
                    marker=marker(betas.index(method.beta)) if method.beta in betas else None,
                    markersize=4,
                    markevery=max(1, len(curve.updates) // 6),
                )
        axis.set_title(name, fontsize=9.5, parse_math=False)
        axis.sharey(flat[0])
    for row in axes:
        row[0].set_ylabel("TV, mean over tokens" if smooth else watched[0].label, fontsize=8.5)
    for axis in flat[len(names) - min(columns, len(names)) : len(names)]:
        axis.set_xlabel("update", fontsize=9)
    hide(flat[len(names) :])
    if smooth:
        flat[0].set_ylim(bottom=0.0)
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS[place % len(COLOURS)],
            linewidth=2.0,
            marker=marker(place),
            label=f"β {beta:g}",
        )
        for place, beta in enumerate(betas)
    ]
    if len(watched) > 1:
        words = {"train/tv_on": "on the student's own responses", "train/tv_off": "on stored responses"}
        handles += [
            Line2D([], [], color=BLACK, linestyle=line.dash, label=f"{words[line.key]} ({line.label})")
            for line in watched
        ]
    legend_below(figure, handles, 5)
    return figure


class MeanCurve(NamedTuple):
    """Over seeds, at the updates that all of them logged."""

    updates: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def _mean_curve(method: Method, key: str, smooth: bool) -> MeanCurve | None:
    curves = [dict(run.curves.get(key, [])) for run in method.runs]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    if len(common) < 2:
        return None
    values = np.array([[curve[update] for update in common] for curve in curves])
    if smooth and len(common) > 2 * SMOOTHED:
        kernel = np.ones(SMOOTHED) / SMOOTHED
        values = np.stack([np.convolve(row, kernel, mode="valid") for row in values])
        common = common[SMOOTHED - 1 :]
    columns = (values.mean(0), values.min(0), values.max(0))
    return MeanCurve(list(common), *(column.tolist() for column in columns))
