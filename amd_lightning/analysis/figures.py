"""A finished run's pictures: how training went, and what came of it.

Figures are matplotlib objects of their own: no pyplot, no global state, so a caller's style, backend and
open figures stay as they are. Colours are Okabe and Ito's (jfly.uni-koeln.de/color), told apart by the
colour-blind and, by their lightness, markers and dashes, in grey print.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from amd_lightning.analysis.runs import (
    MODELS,
    QUALITIES,
    Curve,
    Results,
    distance_name,
    heading,
    level,
    number,
    quality,
    read_metrics,
    read_results,
    sampled_metric,
)

BLACK, GREY, SKY, GREEN, BLUE, VERMILLION = "#000000", "#5A5A5A", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
COLOUR_OF = {"teacher": GREY, "student_start": SKY, "student": BLUE}
CHARACTERS_PER_INCH = 11
"""Of the title, a cautious count at its 11 points."""
MARKED_BELOW = 40
"""A curve with fewer points shows each of them."""


class Line(NamedTuple):
    """One curve of a panel: a key of metrics.csv, what to call it and how to draw it."""

    key: str
    label: str
    colour: str
    factor: float = 1.0
    companion: bool = False


class CurvePanel(NamedTuple):
    """A panel against the update; `from_zero` where 0 means that the student is at the teacher."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    from_zero: bool = False


class BarPanel(NamedTuple):
    """A panel of bars, one a model: a key of the models' maps, times a factor."""

    metric: str
    title: str
    unit: str
    factor: float = 1.0
    decimals: int = 3
    distance: bool = False


# -- how training went -------------------------------------------------------------------------


def draw_curves(folder: Path) -> Path:
    """Write `curves_figure` of a finished run as `folder/figures/curves.png`.

    Raises:
        UserError: the folder holds no finished run.
    """
    return _save(curves_figure(read_results(folder), read_metrics(folder)), folder, "curves")


def curves_figure(results: Results, metrics: Mapping[str, Curve]) -> Figure:
    """Loss, moment gaps and validation against the update; panels without data are left out.

    Test levels never stand among the curves.
    """
    curves = {key: finite for key, curve in metrics.items() if (finite := _finite(curve))}
    panels = [
        panel
        for panel in curve_panels(results, curves)
        if any(line.key in curves for line in panel.lines if not line.companion)
    ]
    if not panels:
        return _notice(results, "This run logged no curve.")
    figure, axes = _grid(results, len(panels))
    last = max(update for curve in curves.values() for update, _ in curve)
    for axis, panel in zip(axes, panels, strict=True):
        _draw_lines(axis, panel, curves)
        axis.set_xlim(0.0, 1.02 * max(last, 1.0))
        axis.set_xlabel("update")
    return figure


def curve_panels(results: Results, curves: Mapping[str, Curve]) -> list[CurvePanel]:
    """What `curves_figure` draws where there is data for it."""
    objective = results.get("objective", {})
    critic = "the run's critic" if objective.get("distance") == "moment_matching" else "closed-form critic"
    nats = "nats, " if objective.get("distance") in ("kl", "rkl", "nll") else ""
    per = "sum over a response" if objective.get("normalise") == "sequence" else "mean over tokens"
    if "valid/sampled_accuracy" in curves:
        judged = Line("valid/sampled_accuracy", "sampled accuracy", BLUE)
        unit = "share of correct samples"
    else:
        own = quality(results)
        judged, unit = Line(f"valid/{own}", QUALITIES[own], BLUE), "0 to 100"
    return [
        CurvePanel(
            f"Training loss: {distance_name(results)}", nats + per, (Line("train/loss", "loss", BLACK),)
        ),
        CurvePanel(
            f"Training moment gap ({critic})",
            "mean over tokens",
            (
                Line("train/moment_gap_off", "moment gap off", BLUE),
                Line("train/tv_off", "2TV off", BLUE, factor=2.0, companion=True),
                Line("train/moment_gap_on", "moment gap on", VERMILLION),
                Line("train/tv_on", "2TV on", VERMILLION, factor=2.0, companion=True),
            ),
            from_zero=True,
        ),
        CurvePanel(f"Validation {judged.label}", unit, (judged,)),
        CurvePanel(
            "Validation distance to the teacher",
            "mean over tokens",
            (
                Line("valid/tv_on", "2TV on", VERMILLION, factor=2.0),
                Line("valid/kl_off", "KL off (nats)", GREEN),
            ),
            from_zero=True,
        ),
        CurvePanel(
            "Validation moment gap (probe critic)",
            "mean over tokens",
            (
                Line("valid/probe_off", "probe off", BLUE),
                Line("valid/tv_off", "2TV off", BLUE, factor=2.0, companion=True),
                Line("valid/probe_on", "probe on", VERMILLION),
                Line("valid/tv_on", "2TV on", VERMILLION, factor=2.0, companion=True),
            ),
            from_zero=True,
        ),
    ]


def _draw_lines(axis: Axes, panel: CurvePanel, curves: Mapping[str, Curve]) -> None:
    drawn = [line for line in panel.lines if line.key in curves]
    for line, marker in zip(drawn, "osD^", strict=False):
        updates, values = zip(*curves[line.key], strict=True)
        few = len(updates) < MARKED_BELOW
        axis.plot(
            updates,
            [line.factor * value for value in values],
            color=line.colour,
            linewidth=0.9 if line.companion else 1.6,
            linestyle="--" if line.companion else "-",
            marker=marker if few and not line.companion else None,
            markersize=3.5,
            label=line.label,
        )
    if panel.from_zero:
        # A learned critic may still be on the wrong side: then below zero.
        bottom, top = axis.get_ylim()
        axis.set_ylim(min(bottom, 0.0), max(top, 0.0))
    axis.set_title(panel.title, fontsize=10)
    axis.set_ylabel(panel.unit, fontsize=9)
    axis.grid(alpha=0.25, linewidth=0.6)
    if len(drawn) > 1:
        axis.legend(fontsize=8, frameon=False, ncols=2 if len(drawn) > 2 else 1)


def _finite(curve: Curve) -> Curve:
    return [(update, value) for update, value in curve if math.isfinite(value)]


# -- what came of it ---------------------------------------------------------------------------


def draw_models(folder: Path) -> Path:
    """Write `models_figure` of a finished run as `folder/figures/models.png`.

    Raises:
        UserError: the folder holds no finished run.
    """
    return _save(models_figure(read_results(folder)), folder, "models")


def models_figure(results: Results) -> Figure:
    """Teacher, student before and student after on the test split; panels without data are left out."""
    panels = [
        panel
        for panel in bar_panels(results)
        if any(level(results, who, panel.metric) is not None for who in ("student_start", "student"))
    ]
    if not panels:
        return _notice(results, "This run measured no student on the test split.")
    figure, axes = _grid(results, len(panels), "test split")
    for axis, panel in zip(axes, panels, strict=True):
        _draw_bars(axis, panel, results)
    return figure


def bar_panels(results: Results) -> list[BarPanel]:
    """What `models_figure` draws where there is data for it."""
    own, sampled = quality(results), sampled_metric(results)
    if sampled == "sampled_accuracy":
        judged = BarPanel(sampled, "Sampled accuracy (↑)", "share of correct samples")
    else:
        judged = BarPanel(sampled, f"Sampled {QUALITIES[own]} (↑)", "0 to 100", decimals=1)
    best = BarPanel(own, f"{QUALITIES[own]} (↑)", "0 to 100", decimals=1)
    if own == "accuracy":
        best = BarPanel(own, "Accuracy (↑)", "share of correct responses")
    return [
        best,
        judged,
        BarPanel("tv_on", "2TV on (↓)", "mean over tokens, 0 to 2", factor=2.0, distance=True),
        BarPanel("kl_off", "KL off (↓)", "nats per token", distance=True),
    ]


def _draw_bars(axis: Axes, panel: BarPanel, results: Results) -> None:
    heights = []
    for place, who in enumerate(MODELS):
        value = level(results, who, panel.metric)
        if panel.distance and who == "teacher":
            height, text = 0.0, "0 by definition"
        elif value is None or not math.isfinite(value):
            height, text = 0.0, "–" if value is None else str(value)
        else:
            height = panel.factor * value
            text = number(height, panel.decimals)
        heights.append(height)
        axis.bar(place, height, width=0.66, color=COLOUR_OF[who])
        axis.annotate(
            text,
            (place, max(height, 0.0)),
            (0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    axis.set_ylim(0.0, 1.15 * max(heights) or 1.0)
    axis.set_xticks(range(len(MODELS)), [name.replace(" ", "\n") for name in MODELS.values()])
    axis.set_title(panel.title, fontsize=10)
    axis.set_ylabel(panel.unit, fontsize=9)
    axis.grid(axis="y", alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)


# -- what both share ---------------------------------------------------------------------------


def _grid(results: Results, panels: int, note: str = "") -> tuple[Figure, Sequence[Axes]]:
    """A figure with its title, and one axis a panel, at most two in a row."""
    columns = min(panels, 2)
    rows = math.ceil(panels / columns)
    size = (4.2 * columns if columns > 1 else 5.6, 3.0 * rows + 0.6)
    figure = Figure(size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))  # inches
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(panels)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    _title(figure, results, note)
    return figure, axes


def _notice(results: Results, sentence: str) -> Figure:
    """A picture that says why there is nothing to see."""
    figure = Figure(figsize=(5.6, 2.4), layout="constrained")
    axis = figure.add_subplot()
    axis.set_axis_off()
    axis.text(0.5, 0.5, sentence, ha="center", va="center", fontsize=11, transform=axis.transAxes)
    _title(figure, results)
    return figure


def _title(figure: Figure, results: Results, note: str = "") -> None:
    what, setting = heading(results)
    width = int(CHARACTERS_PER_INCH * figure.get_figwidth())
    lines = [*textwrap.wrap(what, width), *textwrap.wrap(", ".join(filter(None, [setting, note])), width)]
    # A name may hold a dollar sign: no formula is meant.
    figure.suptitle("\n".join(lines), fontsize=11, parse_math=False)


def _save(figure: Figure, folder: Path, name: str) -> Path:
    path = folder / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=200, facecolor="white")
    return path
