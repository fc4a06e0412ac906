"""Several methods side by side, by every yardstick: no single one of them decides which is nearest."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from amd_lightning.analysis.figures import BLACK, BLUE, SKY, VERMILLION
from amd_lightning.analysis.runs import QUALITIES, Results, distance_name, level, quality
from amd_lightning.errors import UserError

COLUMNS = 3
COLOUR_OF = {"off": BLUE, "on": VERMILLION, "": SKY}
HATCH_OF = {"off": None, "on": "////", "": None}
"""Told apart in grey print too."""
DOT: dict[str, Any] = {
    "marker": "o",
    "markersize": 3.2,
    "markerfacecolor": "white",
    "markeredgecolor": BLACK,
    "markeredgewidth": 0.8,
}
DASHED: dict[str, Any] = {"linestyle": "--", "linewidth": 1.0}


class Yardstick(NamedTuple):
    """A panel: which keys of the student's map, by whose states they are ("" for whole responses)."""

    title: str
    unit: str
    bars: Mapping[str, str]
    """Source ("off", "on" or "") -> key."""
    teacher: bool = False
    """Whether the teacher's own level is drawn: where it is not 0 by definition."""


class Method(NamedTuple):
    """Runs that differ in their seeds alone."""

    label: str
    runs: tuple[Results, ...]


def draw_methods(runs: Sequence[Results], path: Path) -> Path:
    """Write `methods_figure` of finished runs as a PNG.

    Raises:
        UserError: there are no runs.
    """
    figure = methods_figure(runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=200, facecolor="white")
    return path


def methods_figure(runs: Sequence[Results]) -> Figure:
    """A panel a yardstick, a row a method: the mean over its seeds as a bar, each seed as a dot.

    All on the test split, of the student after distillation. Panels without data are left out.

    Raises:
        UserError: there are no runs.
    """
    if not runs:
        raise UserError("there is no run to compare: name at least one finished run")
    methods = group(runs)
    panels = [panel for panel in yardsticks(runs) if any(_levels(runs, "student", panel).values())]
    columns = min(COLUMNS, max(len(panels), 1))
    rows = max(math.ceil(len(panels) / columns), 1)
    height = rows * (0.36 * len(methods) + 0.95) + 0.9
    figure = Figure((3.1 * columns + 2.0, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(len(panels))]
    for place, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        _draw(axis, panel, methods, named=place % columns == 0)
    figure.suptitle(_title(runs, methods), fontsize=11, parse_math=False)
    if panels:
        handles = _legend(panels)
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False
        )
    return figure


def yardsticks(runs: Sequence[Results]) -> list[Yardstick]:
    """What `methods_figure` draws where there is data for it."""
    judged = Yardstick("Sampled accuracy (↑)", "share of correct samples", {"": "sampled_accuracy"}, True)
    if all(level(run, "student", "sampled_accuracy") is None for run in runs):
        own = quality(runs[0])
        judged = Yardstick(f"Sampled {QUALITIES[own]} (↑)", "0 to 100", {"": f"sampled_{own}"}, True)
    return [
        Yardstick("Total variation (↓)", "mean over tokens, 0 to 1", {"off": "tv_off", "on": "tv_on"}),
        Yardstick(
            "Probe moment distance (↓)", "mean over tokens, 0 to TV", {"off": "probe_off", "on": "probe_on"}
        ),
        judged,
        Yardstick("Exact match with the teacher (↑)", "share of pairs of samples", {"": "exact_match"}, True),
        Yardstick("MMD² to the teacher (↓)", "n-gram kernel, whole responses", {"": "mmd_squared"}, True),
    ]


def group(runs: Sequence[Results]) -> list[Method]:
    """Runs by method, in order of appearance, each with a name of its own.

    A method is what results.json says of a run's objective, who wrote its off-policy responses, and what it
    was tried on. It is called by distance and β, and by those of its other settings in which it differs from
    another of the same distance and β.
    """
    found: dict[str, list[Results]] = {}
    for run in runs:
        found.setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    settings = [_settings(of_method[0]) for of_method in found.values()]
    short = [_short_name(of_method[0]) for of_method in found.values()]
    methods = []
    for name, own, of_method in zip(short, settings, found.values(), strict=True):
        others = [other for other, its_name in zip(settings, short, strict=True) if its_name == name]
        telling = [
            _told(key, own.get(key))
            for key in sorted({key for other in others for key in other})
            if len({json.dumps(other.get(key)) for other in others}) > 1
        ]
        methods.append(Method("\n".join(filter(None, [name, ", ".join(telling)])), tuple(of_method)))
    return methods


def _settings(run: Results) -> dict[str, Any]:
    """The objective as one flat map, with everything else that seeds do not change; nulls are left out."""
    flat: dict[str, Any] = {}

    def add(prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                add(f"{prefix}{key}.", value)
            else:
                flat[f"{prefix}{key}"] = value

    add("", run.get("objective", {}))
    add("rollout.", run.get("rollout", {}))
    flat.pop("rollout.off_policy", None)  # said in "responses", for runs that use any
    flat |= {key: run.get(key) for key in ("task", "scale", "source", "pair", "updates", "learning_rate")}
    flat["responses"] = "teacher's" if "teacher_responses" in run.get("cache_keys", {}) else "data's"
    return {key: value for key, value in flat.items() if value is not None}


def _short_name(run: Results) -> str:
    beta = run.get("objective", {}).get("beta")
    return distance_name(run) + ("" if beta is None else f", β {beta:g}")


def _told(key: str, value: Any) -> str:
    """A setting in words: "closed form critic", "α 0.25"."""
    text = f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")
    if key in ("critic.kind", "responses"):
        return f"{text} {key.partition('.')[0]}"
    return f"{'α' if key == 'critic.alpha' else key.rpartition('.')[2].replace('_', ' ')} {text}"


def _levels(runs: Iterable[Results], who: str, panel: Yardstick) -> dict[str, list[float]]:
    """Source -> the finite levels of the runs."""
    found: dict[str, list[float]] = {}
    for source, key in panel.bars.items():
        values = [level(run, who, key) for run in runs]
        found[source] = [value for value in values if value is not None and math.isfinite(value)]
    return found


def _legend(panels: Sequence[Yardstick]) -> list[Patch | Line2D]:
    """What bars, dots and the dashed line stand for, as far as they are drawn."""
    words = {"off": "on stored responses (off)", "on": "on the student's own (on)"}
    sources = {source for panel in panels for source in panel.bars}
    handles: list[Patch | Line2D] = [
        Patch(facecolor=COLOUR_OF[source], hatch=HATCH_OF[source], edgecolor="white", label=text)
        for source, text in words.items()
        if source in sources
    ]
    handles.append(Line2D([], [], linestyle="none", label="one run", **DOT))
    if any(panel.teacher for panel in panels):
        handles.append(Line2D([], [], color=BLACK, label="the teacher itself", **DASHED))
    return handles


def _draw(axis: Axes, panel: Yardstick, methods: Sequence[Method], *, named: bool) -> None:
    thickness = 0.7 / len(panel.bars)
    for row, method in enumerate(methods):
        for place, (source, values) in enumerate(_levels(method.runs, "student", panel).items()):
            if not values:
                continue
            y = row + thickness * (place - (len(panel.bars) - 1) / 2)
            axis.barh(
                y,
                sum(values) / len(values),
                height=0.92 * thickness,
                color=COLOUR_OF[source],
                hatch=HATCH_OF[source],
                edgecolor="white",
                linewidth=0.0,
            )
            axis.plot(values, [y] * len(values), linestyle="none", **DOT)
    own = _levels([run for method in methods for run in method.runs], "teacher", panel).get("", [])
    if panel.teacher and own:
        axis.axvline(sum(own) / len(own), color=BLACK, **DASHED)
    axis.set_ylim(len(methods) - 0.5, -0.5)  # the first method on top
    axis.set_yticks(range(len(methods)), [method.label for method in methods] if named else [])
    for text in axis.get_yticklabels():
        text.set_parse_math(False)
    axis.axvline(0.0, color=BLACK, linewidth=0.8)
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel(panel.unit, fontsize=9)
    axis.tick_params(labelsize=9)
    axis.tick_params(axis="y", length=0.0)
    axis.locator_params(axis="x", nbins=5)
    axis.grid(axis="x", alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _title(runs: Sequence[Results], methods: Sequence[Method]) -> str:
    """What the runs have in common; what they do not is listed, for it is no difference of methods."""

    def values(key: str) -> str:
        found = dict.fromkeys(str(run[key]) for run in runs if run.get(key) is not None)
        return "/".join(found)

    counts = {len(method.runs) for method in methods}
    several = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    setting = [f"{key} {values(key)}" for key in ("scale", "updates") if values(key)]
    runs_each = f"{several} run{'s' if max(counts) > 1 else ''} each"
    return f"{values('task') or 'unknown task'}: " + ", ".join([*setting, runs_each, "test split"])
