"""How the report's figures look: readable in print, in grey and for the colour-blind."""

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from amd_lightning.analysis.figures import BLACK as BLACK
from amd_lightning.analysis.figures import BLUE as BLUE
from amd_lightning.analysis.figures import GREEN, GREY, SKY
from amd_lightning.analysis.figures import VERMILLION as VERMILLION

ORANGE, PINK = "#E69F00", "#CC79A7"
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PINK, SKY, BLACK, GREY)
"""Okabe and Ito's, by family; markers tell them apart in grey print."""
MARKERS = "osD^vPX*"
PALE = "#C9C9C9"
"""Everybody else's curves."""
WIDE = 11.0
"""Inches: the width of the report's column."""
LETTER, HANDLE = 0.075, 0.6
"""Inches that a letter and a line or marker take in a legend."""


def colour(place: int) -> str:
    """Of the family at a place."""
    return COLOURS[place % len(COLOURS)]


def marker(place: int) -> str:
    """Of the family at a place."""
    return MARKERS[place % len(MARKERS)]


def grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[list[Axes]]]:
    """A figure of its own with rows × columns of axes, [row][column]; `size` in inches."""
    figure = Figure(size, layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
    axes = [
        [figure.add_subplot(rows, columns, row * columns + column + 1) for column in range(columns)]
        for row in range(rows)
    ]
    for axis in (axis for row in axes for axis in row):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8.5)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def hide(axes: Sequence[Axes]) -> None:
    """Leave places of a grid empty."""
    for axis in axes:
        axis.set_axis_off()


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    """A legend under the axes in at most so many columns, fewer where the figure is too narrow for them: what
    stands beyond its edge is cut off.
    """
    letters = [len(str(handle.get_label())) for handle in handles]
    widths = [HANDLE + LETTER * count for count in letters]
    fitting = max(1, int(figure.get_figwidth() / max(widths)))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(columns, fitting, len(handles)) if sum(widths) > figure.get_figwidth() else columns,
        fontsize=8.5,
        frameon=False,
    )


def svg(figure: Figure) -> str:
    """The figure as one SVG, the same text for the same figure; letters are drawn as paths."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "amd_lightning", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    return buffer.getvalue()
