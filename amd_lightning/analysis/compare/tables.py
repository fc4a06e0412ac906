"""A comparison as files: runs.csv and .parquet, summary.csv, .md and .tex, pairs.csv."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from amd_lightning.analysis.compare.comparison import Comparison
from amd_lightning.analysis.compare.measures import measure_of
from amd_lightning.analysis.compare.methods import Method
from amd_lightning.analysis.compare.statistics import Estimate
from amd_lightning.analysis.runs import level, number

NONE = "–"


def write_tables(found: Comparison, folder: Path) -> list[Path]:
    """All table files; `folder` is there."""
    runs, summary, pairs = runs_table(found.methods), summary_table(found), pairs_table(found)
    for name, table in (("runs", runs), ("summary", summary), ("pairs", pairs)):
        table.to_csv(folder / f"{name}.csv", index=False)
    runs.to_parquet(folder / "runs.parquet", index=False)
    (folder / "summary.md").write_text(markdown(found), encoding="utf-8")
    (folder / "summary.tex").write_text(latex(found), encoding="utf-8")
    names = "runs.csv runs.parquet summary.csv summary.md summary.tex pairs.csv".split()
    return [folder / name for name in names]


def runs_table(methods: Sequence[Method]) -> pd.DataFrame:
    """One row a run and metric: the student's value on the test split, and what the run cost."""
    rows: list[dict[str, Any]] = []
    for method in methods:
        for run in method.runs:
            results = run.results
            about = {
                "run": run.name,
                "place": run.place,
                "method": method.label,
                "distance": method.distance,
                "beta": method.beta,
                "seed": run.seed,
                "task": results.get("task"),
                "scale": results.get("scale"),
                "updates": run.updates,
                "git_commit": results.get("git_commit"),
            }
            for metric in results["student"]:
                value, start, teacher = (
                    level(results, who, metric) for who in ("student", "student_start", "teacher")
                )
                row = {"metric": metric, "value": value, "student_start": start, "teacher": teacher}
                rows.append({**about, **row})
            for name, value in _costs(results).items():
                row = {"metric": name, "value": value, "student_start": None, "teacher": None}
                rows.append({**about, **row})
    table = pd.DataFrame(rows)
    numbers = ["value", "student_start", "teacher"]
    table[numbers] = table[numbers].astype("float64")
    return table


def _costs(results: Any) -> dict[str, float]:
    cost = results.get("cost", {})
    found = {f"cost/seconds/{stage}": value for stage, value in cost.get("seconds", {}).items()}
    found |= {f"cost/tokens/{source}": value for source, value in cost.get("tokens", {}).items()}
    return found | {
        f"cost/peak_memory_mb/{kind}": value for kind, value in cost.get("peak_memory_mb", {}).items()
    }


def summary_table(found: Comparison) -> pd.DataFrame:
    """One row a method and metric: mean, interval and what it covers, and the method's budgets."""
    rows = []
    for method in found.methods:
        budget = found.budgets[method.label]
        for metric in found.metrics:
            cell = found.estimates.get((method.label, metric))
            if cell is None:
                continue
            measure = measure_of(metric)
            teacher, start = found.levels[metric]
            judged = metric == found.judge
            rows.append(
                {
                    "method": method.label,
                    "distance": method.distance,
                    "beta": method.beta,
                    "metric": metric,
                    "title": measure.title,
                    "better": {1: "higher", -1: "lower", 0: ""}[measure.better],
                    "mean": cell.mean,
                    "low": cell.low,
                    "high": cell.high,
                    "standard_error": cell.error,
                    "seeds": cell.seeds,
                    "examples": cell.examples,
                    "interval_covers": covers(cell),
                    "teacher": teacher,
                    "student_start": start,
                    "updates": budget.updates,
                    "distil_seconds": budget.seconds,
                    "response_tokens_trained_on": budget.tokens,
                    "common_updates": found.common[0],
                    "common_seconds": found.common[1],
                    "valid_at_common_updates": budget.at_updates if judged else None,
                    "valid_at_common_seconds": budget.at_seconds if judged else None,
                }
            )
    return pd.DataFrame(rows)


def covers(cell: Estimate) -> str:
    """Which chance an interval speaks of."""
    if cell.low is None:
        return "nothing"
    seeds, examples = cell.seeds > 1, cell.examples is not None
    return "seeds and examples" if seeds and examples else "seeds" if seeds else "examples"


PAIR_COLUMNS = (
    "metric first second difference low high p p_holm p_examples effect_size wins losses seeds examples"
).split()


def pairs_table(found: Comparison) -> pd.DataFrame:
    """One row a paired test: first − second."""
    rows = [
        (
            pair.metric,
            pair.first,
            pair.second,
            pair.difference.estimate.mean,
            pair.difference.estimate.low,
            pair.difference.estimate.high,
            pair.difference.p,
            pair.p_holm,
            pair.difference.p_examples,
            pair.difference.effect,
            pair.difference.wins,
            pair.difference.losses,
            pair.difference.estimate.seeds,
            pair.difference.estimate.examples,
        )
        for pair in found.pairs
    ]
    return pd.DataFrame(rows, columns=PAIR_COLUMNS)


# -- for people --------------------------------------------------------------------------------


def cell_text(cell: Estimate | None, metric: str, plus_minus: str = " ± ") -> str:
    """ "0.764 ± 0.049": the mean and half of its interval; "–" for nothing."""
    if cell is None:
        return NONE
    decimals = measure_of(metric).decimals
    text = number(cell.mean, decimals)
    if cell.low is None or cell.high is None:
        return text
    half = 0.5 * (cell.high - cell.low)
    shown = len(text.partition(".")[2])
    return f"{text}{plus_minus}{half:.{shown}f}"


def best_methods(found: Comparison, metric: str) -> set[str]:
    """Labels of the best mean of a metric; none where no side is better."""
    sign = measure_of(metric).better
    means = {m.label: found.mean(m.label, metric) for m in found.methods}
    known = {label: sign * value for label, value in means.items() if value is not None}
    if sign == 0 or len(known) < 2:
        return set()
    top = max(known.values())
    return {label for label, value in known.items() if value == top}


def note(found: Comparison) -> str:
    """What numbers and intervals of a table mean, in words."""
    seeds = sorted({len(method.runs) for method in found.methods})
    several = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    cells = [
        found.estimates[method.label, metric]
        for method in found.methods
        for metric in found.headline
        if (method.label, metric) in found.estimates
    ]
    examples = {cell.examples for cell in cells if cell.examples}
    both = f"training seeds and {max(examples)} test examples" if examples else "training seeds"
    alone = " where each example has a score, the seeds alone elsewhere" if examples and seeds[-1] > 1 else ""
    if seeds[-1] == 1:
        both = f"{max(examples)} test examples of one trained student" if examples else "nothing"
        alone = ", where each example has a score" if examples else ""
    return (
        f"Test split, means over {several} training seed{'s' * (seeds[-1] > 1)} a method; "
        f"± half of the 95 % bootstrap interval over {both}{alone}."
    )


def markdown(found: Comparison) -> str:
    """The headline as a GitHub table, best mean in bold, with the teacher and the start."""
    header = ["", *(measure_of(metric).arrow for metric in found.headline)]
    rule = [":--"] + ["--:"] * len(found.headline)
    lines = _rows(found, lambda text: f"**{text}**", " ± ")
    table = ["| " + " | ".join(row) + " |" for row in (header, rule, *lines)]
    return "\n".join([*table, "", note(found), ""])


def latex(found: Comparison) -> str:
    """The same for a paper; needs the booktabs package."""
    titles = [_tex(measure_of(metric).arrow) for metric in found.headline]
    lines = _rows(found, lambda text: rf"\textbf{{{text}}}", r" $\pm$ ", _tex)
    body = [" & ".join(row) + r" \\" for row in lines]
    return "\n".join(
        [
            "% " + note(found),
            r"\begin{tabular}{l" + "r" * len(titles) + "}",
            r"\toprule",
            " & ".join(["", *titles]) + r" \\",
            r"\midrule",
            *body[:2],
            r"\midrule",
            *body[2:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _rows(
    found: Comparison, bold: Callable[[str], str], plus_minus: str, escape: Callable[[str], str] = str
) -> list[list[str]]:
    """Teacher, student before, and the methods."""
    best = {metric: best_methods(found, metric) for metric in found.headline}
    rows = []
    for place, name in enumerate(("teacher", "student before")):
        levels = [found.levels[metric][place] for metric in found.headline]
        cells = [
            NONE if value is None else number(value, measure_of(metric).decimals)
            for metric, value in zip(found.headline, levels, strict=True)
        ]
        rows.append([escape(name), *map(escape, cells)])
    for method in found.methods:
        row = [escape(method.label)]
        for metric in found.headline:
            text = cell_text(found.estimates.get((method.label, metric)), metric, plus_minus)
            text = text.replace(NONE, escape(NONE))
            row.append(bold(text) if method.label in best[metric] else text)
        rows.append(row)
    return rows


TEX = {
    "\\": r"\textbackslash{}",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "β": r"$\beta$",
    "α": r"$\alpha$",
    "γ": r"$\gamma$",
    "²": r"$^2$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
    "−": "$-$",
}


def _tex(text: str) -> str:
    return "".join(TEX.get(letter, letter) for letter in text)
