"""From grades to figures: score ratio, wins, position bias, each over the examples that were judged whole."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

DRAWS = 2000
"""Of the bootstrap, as in reports; our choice."""


class Judged(NamedTuple):
    """One question with what came of it; `grades` None where the reply had none, `error` where none came."""

    item: str
    order: tuple[str, ...]
    grades: dict[str, float] | None
    reply: str | None
    error: str | None = None


def summary(judged: Sequence[Judged]) -> dict[str, Any]:
    """The figures of judge.json.

    Returns:
        questions, parse_failures (a reply without grades), unanswered, examples (judged whole: of a pair,
        in both orders); then, with any examples: mean_response (1 to 10); and for pairs mean_rival,
        ratio (100 × total grade of the responses / that of the rivals, MiniLLM's figure) with ratio_low and
        ratio_high (95 %, bootstrap over examples; None with one example), ratio_first and ratio_second (the
        responses stand first, second), wins, ties, losses (shares, by the mean of both orders), agreement
        (share on which both orders name the same better answer), position_bias (mean grade of what stands
        first − of what stands second).
    """
    by_item: dict[str, list[Judged]] = defaultdict(list)
    for row in judged:
        by_item[row.item].append(row)
    whole = {
        item: [row.grades for row in sorted(rows, key=lambda row: row.order[0] == "rival") if row.grades]
        for item, rows in by_item.items()
        if all(row.grades is not None for row in rows) and len(rows) == len(rows[0].order)
    }
    found: dict[str, Any] = {
        "questions": len(judged),
        "parse_failures": sum(row.grades is None and row.error is None for row in judged),
        "unanswered": sum(row.error is not None for row in judged),
        "examples": len(whole),
    }
    if not whole:
        return found
    # [examples, orders]; of a pair the first column has the response first
    response = np.array([[grades["response"] for grades in rows] for rows in whole.values()])
    found["mean_response"] = float(response.mean())
    if response.shape[1] == 1:
        found["mean_low"], found["mean_high"] = _interval(response.mean(1), np.ones(len(response)))
        return found
    rival = np.array([[grades["rival"] for grades in rows] for rows in whole.values()])
    return found | _of_pairs(response, rival)


def _of_pairs(response: np.ndarray, rival: np.ndarray) -> dict[str, Any]:
    """Of grades [examples, 2]."""
    ours, theirs = response.mean(1), rival.mean(1)
    low, high = _interval(ours, theirs)
    apart = response - rival
    return {
        "mean_rival": float(rival.mean()),
        "ratio": 100.0 * float(ours.sum() / theirs.sum()),
        "ratio_low": None if low is None else 100.0 * low,
        "ratio_high": None if high is None else 100.0 * high,
        "ratio_first": 100.0 * float(response[:, 0].sum() / rival[:, 0].sum()),
        "ratio_second": 100.0 * float(response[:, 1].sum() / rival[:, 1].sum()),
        "wins": float((ours > theirs).mean()),
        "ties": float((ours == theirs).mean()),
        "losses": float((ours < theirs).mean()),
        "agreement": float((np.sign(apart[:, 0]) == np.sign(apart[:, 1])).mean()),
        "position_bias": float((apart[:, 0] - apart[:, 1]).mean() / 2.0),
    }


def _interval(above: np.ndarray, below: np.ndarray) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of Σ above / Σ below over resampled examples."""
    count = len(above)
    if count < 2:
        return None, None
    drawn = np.random.default_rng(0).integers(0, count, size=(DRAWS, count))
    low, high = np.quantile(above[drawn].sum(1) / below[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)
