"""What the report says in sentences and rows; the template only lays it out."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amd_lightning.analysis.compare.comparison import Comparison, Pair
from amd_lightning.analysis.compare.measures import measure_of
from amd_lightning.analysis.compare.panels import SIGNIFICANT
from amd_lightning.analysis.compare.tables import NONE, best_methods, cell_text
from amd_lightning.analysis.runs import number

# -- sentences ---------------------------------------------------------------------------------


def in_short(found: Comparison) -> list[str]:
    """What may be claimed, in sentences."""
    measure = measure_of(found.judge)
    ranked = [m for m in found.ranked() if (m.label, found.judge) in found.estimates]
    if len(ranked) < 2:
        return [f"One method has {measure.title}: there is nothing to compare it with."]
    best, cell = ranked[0], found.estimates[ranked[0].label, found.judge]
    told, behind = (_told_apart(found, best.label, sign) for sign in (1.0, -1.0))
    apart = {*told, *behind}
    level = [m.label for m in ranked[1:] if m.label in _verdicts(found, best.label) and m.label not in apart]
    sentences = [
        f"{best.label} has the best mean {measure.title}: {cell_text(cell, found.judge)}"
        + (
            f" (teacher {number(teacher, measure.decimals)})"
            if (teacher := found.levels[found.judge][0])
            else ""
        )
        + "."
    ]
    if level:
        sentences.append(
            f"These runs do not tell it apart from {len(level)} "
            f"other{'s' * (len(level) > 1)}: {'; '.join(level)}."
        )
    if told:
        sentences.append(
            f"It is ahead of {len(told)} (paired test over {_chance(found, best.label)}, Holm's correction, "
            f"p < {SIGNIFICANT:g}): {'; '.join(told)}."
        )
    if behind:
        sentences.append(
            f"On the seeds that both have it is behind {len(behind)}, by the same test: {'; '.join(behind)}. "
            "Give all methods the same seeds."
        )
    seeds = min(len(method.runs) for method in found.methods)
    if seeds == 1:
        sentences.append(
            "A method with one seed says nothing of other seeds: its interval is of that student alone."
        )
    elif seeds < 5:
        sentences.append(
            f"{seeds} seeds are few: intervals are wide because of it, and not telling apart is no equality."
        )
    return sentences


def _verdicts(found: Comparison, label: str) -> dict[str, Pair]:
    """Tests of the judging metric that a method takes part in, by the other one."""
    tested = [
        pair for pair in found.pairs if pair.metric == found.judge and label in (pair.first, pair.second)
    ]
    return {pair.second if pair.first == label else pair.first: pair for pair in tested}


def _chance(found: Comparison, label: str) -> str:
    """What the tests of a method cover at least: pairs with one seed in common say nothing of others."""
    cells = [pair.difference.estimate for pair in _verdicts(found, label).values()]
    if any(cell.seeds == 1 for cell in cells):
        return "examples; some pairs share one seed, and then say nothing of other seeds"
    return "seeds and examples" if all(cell.examples for cell in cells) else "seeds"


def _told_apart(found: Comparison, label: str, sign: float) -> list[str]:
    """Methods, ranked, that a test tells from this one: those it is ahead of (sign 1), or behind (−1).

    A mean is of all seeds and a test of those that both have: the two may point in opposite ways.
    """
    verdicts = _verdicts(found, label)
    return [
        method.label
        for method in found.ranked()
        if (pair := verdicts.get(method.label)) and _told(pair) and sign * _lead(pair, label) > 0.0
    ]


def _told(pair: Pair) -> bool:
    return pair.p_holm is not None and pair.p_holm < SIGNIFICANT


def _lead(pair: Pair, label: str) -> float:
    """By how much a method is the better one of a pair, on the seeds that both have."""
    better = measure_of(pair.metric).better or 1
    return better * pair.difference.estimate.mean * (1.0 if label == pair.first else -1.0)


# -- tables ------------------------------------------------------------------------------------


def metric_rows(found: Comparison, metrics: Sequence[str]) -> dict[str, Any]:
    """Heads and rows, methods ranked; a cell is {"text", "best", "tied"}."""
    best = {metric: best_methods(found, metric) for metric in metrics}
    told = {metric: _beaten(found, metric, best[metric]) for metric in metrics}
    levels = []
    for place, name in enumerate(("teacher", "student before")):
        cells = []
        for metric in metrics:
            value = found.levels[metric][place]
            cells.append(NONE if value is None else number(value, measure_of(metric).decimals))
        levels.append({"name": name, "cells": cells})
    rows = [
        {
            "name": method.label,
            "seeds": len(method.runs),
            "cells": [
                {
                    "text": cell_text(found.estimates.get((method.label, metric)), metric),
                    "best": method.label in best[metric],
                    "tied": bool(best[metric])
                    and found.against is None
                    and (method.label, metric) in found.estimates
                    and method.label not in told[metric],
                }
                for metric in metrics
            ],
        }
        for method in found.ranked()
    ]
    return {"heads": [measure_of(metric) for metric in metrics], "levels": levels, "rows": rows}


def _beaten(found: Comparison, metric: str, best: set[str]) -> set[str]:
    """Methods that a test tells apart from the best mean; with --against, nothing is known of most pairs."""
    names = set()
    for pair in found.pairs:
        if pair.metric == metric and _told(pair):
            for one, two in ((pair.first, pair.second), (pair.second, pair.first)):
                if one in best and _lead(pair, one) > 0.0:
                    names.add(two)
    return names


def pair_rows(found: Comparison) -> list[dict[str, str]]:
    """Every other method against the best one, or against the one that was asked for."""
    label = found.against or found.ranked()[0].label
    decimals = measure_of(found.judge).decimals
    rows = []
    for method in found.ranked():
        pair = _verdicts(found, label).get(method.label)
        if pair is None:
            continue
        turned = pair.second == label
        apart, sign = pair.difference, -1.0 if turned else 1.0
        low, high = apart.estimate.low, apart.estimate.high
        ends = [] if low is None or high is None else sorted((sign * low, sign * high))
        wins, losses = (apart.losses, apart.wins) if turned else (apart.wins, apart.losses)
        rows.append(
            {
                "name": method.label,
                "difference": f"{sign * apart.estimate.mean:+.{decimals}f}",
                "interval": f"{ends[0]:+.{decimals}f} to {ends[1]:+.{decimals}f}" if ends else NONE,
                "p": _p(apart.p),
                "p_holm": _p(pair.p_holm),
                "p_examples": _p(apart.p_examples),
                "effect": NONE if apart.effect is None else f"{sign * apart.effect:+.2f}",
                "wins": NONE if wins is None else f"{100 * wins:.0f} %",
                "losses": NONE if losses is None else f"{100 * losses:.0f} %",
                "seeds": str(apart.estimate.seeds),
                "significant": "yes" if pair.p_holm is not None and pair.p_holm < SIGNIFICANT else "",
            }
        )
    return rows


def _p(value: float | None) -> str:
    return (
        NONE
        if value is None
        else "< 0.0001"
        if value < 1e-4
        else f"{value:.4f}"
        if value < 0.1
        else f"{value:.2f}"
    )


def budget_rows(found: Comparison) -> list[dict[str, str]]:
    """What every method spent, and where it stood at equal budgets; methods ranked."""
    measure = measure_of(found.judge)
    known = [budget.seconds for budget in found.budgets.values() if budget.seconds]
    quickest = min(known, default=None)

    def text(value: float | None, decimals: int) -> str:
        return NONE if value is None else number(value, decimals)

    rows = []
    for method in found.ranked():
        budget = found.budgets[method.label]
        times = f"× {budget.seconds / quickest:.2f}" if budget.seconds and quickest else NONE
        rows.append(
            {
                "name": method.label,
                "updates": NONE if budget.updates is None else str(budget.updates),
                "test": cell_text(found.estimates.get((method.label, found.judge)), found.judge),
                "at_updates": text(budget.at_updates, measure.decimals),
                "at_seconds": text(budget.at_seconds, measure.decimals),
                "updates_by_then": text(budget.updates_by_then, 0).split(".")[0],
                "seconds": text(budget.seconds, 1),
                "times": times,
                "tokens": NONE if budget.tokens is None else f"{budget.tokens / 1000:.0f}k",
                "closed": _closed_per_minute(found, method.label),
            }
        )
    return rows


def _closed_per_minute(found: Comparison, label: str) -> str:
    """Percent of the way from the start to the teacher, a minute of distillation."""
    teacher, start = found.levels[found.judge]
    mean, seconds = found.mean(label, found.judge), found.budgets[label].seconds
    if teacher is None or start is None or mean is None or not seconds or teacher == start:
        return NONE
    return f"{100 * (mean - start) / (teacher - start) * 60 / seconds:.0f} %"


def run_rows(found: Comparison) -> list[dict[str, Any]]:
    """Where every run lies and what made it."""
    return [
        {
            "method": method.label,
            "seed": run.seed,
            "place": run.place,
            "command": str(run.results.get("command") or NONE),
            "commit": run.results.get("git_commit") or NONE,
            "keys": run.results.get("cache_keys", {}),
            "hashes": _hashes(run.folder),
        }
        for method in found.methods
        for run in method.runs
    ]


def without_files(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `run_rows` for a reader who has none of the files: the command alone, no directory in it."""
    return row | {"place": "", "command": without_directories(row["command"]), "keys": {}, "hashes": {}}


def without_directories(command: str) -> str:
    """Absolute paths cut to their last name: where things lay is nobody else's."""
    return re.sub(r"(?<![\w.…])/(?:[^\s/=]+/)+", "…/", command)


def _hashes(folder: Path | None) -> dict[str, str]:
    """The first twelve digits of SHA-256, of what was read."""
    names = ("config.yaml", "results.json", "predictions.jsonl")
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()[:12]
        for name in names
        if folder is not None and (folder / name).is_file()
    }


def versions(found: Comparison) -> dict[str, str]:
    """Of libraries: all that runs used."""
    values: dict[str, list[str]] = {}
    for method in found.methods:
        for run in method.runs:
            for name, value in run.results.get("versions", {}).items():
                if value not in values.setdefault(name, []):
                    values[name].append(str(value))
    return {name: " and ".join(used) for name, used in values.items()}
