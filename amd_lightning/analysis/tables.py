"""Teacher, student before and student after, side by side: for the terminal and for Markdown."""

import math

from rich import box
from rich.table import Table
from rich.text import Text

from amd_lightning.analysis.runs import (
    MODELS,
    QUALITIES,
    Results,
    heading,
    level,
    number,
    quality,
    sampled_metric,
)

NONE = "–"

# heading -> key of a model's map, factor, decimals; the task's own metric, of 0 to 100, comes first
COLUMNS: dict[str, tuple[str, float, int]] = {
    "accuracy": ("accuracy", 1.0, 3),
    "sampled accuracy": ("sampled_accuracy", 1.0, 3),
    "2TV off": ("tv_off", 2.0, 3),
    "2TV on": ("tv_on", 2.0, 3),
    "KL off": ("kl_off", 1.0, 3),
    "reverse KL on": ("rkl_on", 1.0, 3),
}
DISTANCES = (
    *(f"{name}_{source}" for name in ("tv", "kl", "rkl", "js", "probe") for source in ("off", "on")),
    *(f"{name}_sequence_{source}" for name in ("tv", "kl", "rkl", "js") for source in ("off", "on")),
)
"""To the teacher, so 0 for the teacher by definition; every other metric is better where it is higher."""

LEGEND = (
    "Test split. Accuracies 0 to 1, ROUGE-L and BLEU 0 to 100, 2TV 0 to 2, KL and reverse KL in nats per "
    "token, to the teacher; off: on stored responses, on: on the model's own. Seconds: of the model's "
    "training stage."
)


def models_table(results: Results) -> Table:
    """The three models of a finished run; fits 80 columns."""
    title = Text("\n".join(filter(None, heading(results))))
    return _narrow(title, _cells(results), Text(f"{_closed(results)}\n{LEGEND}", justify="left"))


def _narrow(title: Text, cells: list[list[str]], caption: Text | None = None) -> Table:
    """A table of models that is as narrow as its numbers allow.

    Args:
        cells: the header, then a row a model, its name first.
    """
    table = Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=0,  # the box itself sets columns one space apart
        show_edge=False,
    )
    header, *rows = cells
    table.add_column(header[0], min_width=max(len(word) for row in rows for word in row[0].split()))
    for name in header[1:]:
        # Broken after its first word, and no further: only the models' names give way on a narrow terminal.
        table.add_column("\n".join(name.split(" ", 1)), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def sets_table(results: Results) -> Table:
    """The three models on the further test sets: the task's own metric of the sampled responses, and of the
    best response in brackets."""
    own = quality(results)
    sets = results["evaluation_sets"]
    table = Table(
        title=Text(f"{QUALITIES[own]} of sampled responses (of the best one) on further test sets"),
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    table.add_column("")
    for name in sets:
        table.add_column(name, justify="right")
    for who, words in MODELS.items():
        cells = []
        for levels in sets.values():
            values = [levels[who].get(metric) for metric in (f"sampled_{own}", own)]
            sampled, best = (NONE if value is None else number(value, 1) for value in values)
            cells.append(Text(f"{sampled} ({best})"))
        table.add_row(Text(words), *cells)
    return table


def evaluation_table(results: Results) -> Table:
    """A model that was measured alone, and the teacher if there was one; empty columns are left out. Fits 80
    columns.

    results: of evaluation.json, the models under "teacher" and "model".
    """
    who = [name for name in ("teacher", "model") if name in results]
    own = quality(results)
    columns = {f"sampled {QUALITIES[own]}": (f"sampled_{own}", 1.0, 1), **_columns(results)}
    if own == "accuracy":
        columns = _columns(results)
    shown = {
        heading: cells
        for heading, column in columns.items()
        if set(cells := [_metric(results, name, *column) for name in who]) != {NONE}
    }
    rows = [[name, *(cells[place] for cells in shown.values())] for place, name in enumerate(who)]
    return _narrow(Text(f"{results['task']}: {results['path']}"), [["", *shown], *rows])


def models_markdown(results: Results) -> str:
    """The same as a GitHub table, its caption as paragraphs below."""
    header, *rows = _cells(results)
    rule = [":--"] + ["--:"] * (len(header) - 1)
    lines = ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]
    title = " · ".join(filter(None, heading(results)))
    return "\n".join([f"**{title}**", "", *lines, "", _closed(results), "", LEGEND, ""])


def gap_closed(results: Results, metric: str = "sampled_accuracy") -> float | None:
    """Share of the distance to the teacher that distillation closed, in a metric of the test split.

    (student − student_start) / (teacher − student_start): 1 is the teacher's level, above 1 beyond it,
    below 0 further away than before. The teacher's own level of what is in `DISTANCES` is 0.

    Returns:
        None where it is undefined: a level is null, missing or not finite, or the teacher is no better
        than the student start, so that there is nothing to close.
    """
    distance = metric in DISTANCES
    teacher = 0.0 if distance else level(results, "teacher", metric)
    start, student = level(results, "student_start", metric), level(results, "student", metric)
    if teacher is None or start is None or student is None:
        return None
    lead = start - teacher if distance else teacher - start
    if not (math.isfinite(lead) and math.isfinite(student) and lead > 0.0):
        return None
    return (student - start) / (teacher - start)


def _cells(results: Results) -> list[list[str]]:
    """The header and one row a model, as text."""
    columns = _columns(results)
    header = ["", *columns, "parameters", "seconds"]
    rows = [
        [
            name,
            *(_metric(results, who, *column) for column in columns.values()),
            _count(level(results, who, "parameters")),
            _seconds(level(results, who, "seconds")),
        ]
        for who, name in MODELS.items()
    ]
    return [header, *rows]


def _columns(results: Results) -> dict[str, tuple[str, float, int]]:
    own = quality(results)
    return COLUMNS if own == "accuracy" else {QUALITIES[own]: (own, 1.0, 1), **COLUMNS}


def _metric(results: Results, who: str, metric: str, factor: float, decimals: int) -> str:
    value = level(results, who, metric)
    if value is None or (who == "teacher" and metric in DISTANCES):
        return NONE
    return number(factor * value, decimals)


def _count(value: float | None) -> str:
    """12345 -> 12.3k, three significant digits."""
    if value is None:
        return NONE
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            short = value / limit
            return f"{short:.{0 if short >= 100 else 1 if short >= 10 else 2}f}{unit}"
    return f"{value:.0f}"


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.{1 if value < 100 else 0}f}"


def _closed(results: Results) -> str:
    """How much of the distance to the teacher is gone, as a sentence."""
    words = {f"sampled_{metric}": f"sampled {name}" for metric, name in QUALITIES.items()}
    words["tv_on"] = "2TV on"
    parts = []
    for metric in (sampled_metric(results), "tv_on"):
        share = gap_closed(results, metric)
        parts.append(f"{NONE if share is None else f'{100 * share:.0f}%'} in {words[metric]}")
    return f"Distance to the teacher that distillation closed: {', '.join(parts)}."
