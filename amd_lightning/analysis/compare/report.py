"""report.html: one file that opens from disk, with its figures and its script inside."""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from amd_lightning import __version__
from amd_lightning.analysis.compare.comparison import Comparison
from amd_lightning.analysis.compare.curves import beta_figure, learning_figure
from amd_lightning.analysis.compare.measures import measure_of
from amd_lightning.analysis.compare.panels import (
    cost_figure,
    heat_figure,
    pairs_figure,
    yardstick_figure,
)
from amd_lightning.analysis.compare.published import published_rows
from amd_lightning.analysis.compare.report_rows import (
    budget_rows,
    in_short,
    metric_rows,
    pair_rows,
    run_rows,
    versions,
    without_directories,
    without_files,
)
from amd_lightning.analysis.compare.responses import LIMIT, side_by_side
from amd_lightning.analysis.compare.style import svg
from amd_lightning.analysis.compare.tables import note

MOST_BYTES = 5_000_000
"""Of report.html."""


class Picture(NamedTuple):
    """A figure of the report; `source` is a data: address."""

    name: str
    title: str
    reading: str
    source: str


def write_report(found: Comparison, folder: Path, command: str, *, shareable: bool = False) -> Path:
    """`folder/report.html`, and its figures as `folder/figures/NAME.svg`; `shareable`: see `render`."""
    drawn = pictures(found)
    (folder / "figures").mkdir(exist_ok=True)
    for name, _, _, text in drawn:
        (folder / "figures" / f"{name}.svg").write_text(text, encoding="utf-8")
    shown = {name: Picture(name, title, reading, _address(text)) for name, title, reading, text in drawn}
    limit = LIMIT
    page = render(found, shown, command, limit=limit, shareable=shareable)
    while len(page.encode()) > MOST_BYTES and limit > 1000:
        limit //= 4  # responses give way
        page = render(found, shown, command, limit=limit, shareable=shareable)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def render(
    found: Comparison,
    shown: Mapping[str, Picture],
    command: str,
    *,
    limit: int = LIMIT,
    shareable: bool = False,
) -> str:
    """The page as text.

    Args:
        shown: the figures, by name.
        command: that makes it.
        limit: characters of responses.
        shareable: without a prompt, reference or response, which may not be ours to pass on, and without the
            directories of this machine.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    said = None if shareable else side_by_side(found.methods, limit)
    rows, caveats = published_rows(found)
    runs = run_rows(found)
    context = {
        "title": _title(found),
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "command": without_directories(command) if shareable else command,
        "warnings": [without_directories(text) if shareable else text for text in found.warnings],
        "summary": in_short(found),
        "note": note(found),
        "tested_against": found.against,
        "judge": measure_of(found.judge),
        "headline": metric_rows(found, found.headline),
        "others": metric_rows(found, [key for key in found.metrics if key not in found.headline]),
        "pairs": pair_rows(found),
        "against": found.against or found.ranked()[0].label,
        "families_tested": sum(pair.metric == found.judge for pair in found.pairs),
        "budgets": budget_rows(found),
        "common": {
            "updates": None if found.common[0] is None else f"{found.common[0]:.0f}",
            "seconds": None if found.common[1] is None else f"{found.common[1]:.0f}",
        },
        "pictures": shown,
        "published": rows,
        "caveats": caveats,
        "responses": None if said is None else Markup(_json(said)),
        "shown_responses": said,
        "runs": [without_files(row) for row in runs] if shareable else runs,
        "versions": versions(found),
        "shareable": shareable,
        "glossary": [measure_of(key) for key in found.metrics],
    }
    return environment.get_template("report.html.j2").render(context)


def pictures(found: Comparison) -> list[tuple[str, str, str, str]]:
    """(name, title, how to read it, SVG) of every figure that these runs have the data for."""
    learning, what = learning_figure(found)
    drawn: list[tuple[str, str, str, Figure | None]] = [
        (
            "pairs",
            "Who beats whom",
            "Differences of means, the best method first; purple: the row is higher.",
            pairs_figure(found),
        ),
        (
            "beta",
            "From the student's own responses (β 0) to stored ones (β 1)",
            "Each distance in turn, all others pale behind it.",
            beta_figure(found),
        ),
        (
            "heat",
            "Distance × β",
            "Means over seeds. Dark is better and ★ is best in every map: ↑ more is better, ↓ less is.",
            heat_figure(found),
        ),
        ("learning", "Learning curves", f"What is shown: {what}.", learning),
        (
            "cost",
            "Quality against cost",
            "Bars are 95 % intervals; seconds are those of the machines that ran, and of what else they ran.",
            cost_figure(found),
        ),
        (
            "yardsticks",
            "Every method on every yardstick, state by state",
            "Distances to the teacher; a method is expected to do well where its row is grey. Bars are 95 % "
            "intervals over seeds. Probe: a fresh critic's moment gap on states that it has not seen; it may "
            "be below 0 near the teacher.",
            yardstick_figure(found),
        ),
    ]
    return [(name, title, reading, svg(figure)) for name, title, reading, figure in drawn if figure]


def _address(text: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def _json(value: Any) -> str:
    """JSON that may stand in a <script>: no "<" can end it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _title(found: Comparison) -> str:
    results = found.methods[0].runs[0].results
    runs = sum(len(method.runs) for method in found.methods)
    parts = [str(results.get("task", "unknown task"))]
    parts += [f"{key} {results[key]}" for key in ("scale", "updates") if results.get(key) is not None]
    return f"{', '.join(parts)}: {len(found.methods)} methods, {runs} runs"
