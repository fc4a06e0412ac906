"""Methods × metrics: what the runs say, with intervals, paired tests and budgets. Numbers only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from amd_lightning.analysis.compare.measures import NOT_MEASURED, headline, in_order, judges, measure_of
from amd_lightning.analysis.compare.methods import Method
from amd_lightning.analysis.compare.scores import Scores, example_scores
from amd_lightning.analysis.compare.statistics import (
    Difference,
    Estimate,
    Resamples,
    Sample,
    difference,
    estimate,
    holm,
)
from amd_lightning.analysis.runs import Curve, level
from amd_lightning.errors import UserError


class Pair(NamedTuple):
    """A paired test of two methods by one metric."""

    metric: str
    first: str
    second: str
    difference: Difference
    p_holm: float | None
    """`difference.p`, corrected for the pairs of this metric."""


class Budget(NamedTuple):
    """What a method spent, and where it stood at budgets that all methods reached; means over its runs."""

    updates: int | None
    seconds: float | None
    tokens: float | None
    """Of responses that it was trained on."""
    at_updates: float | None
    at_seconds: float | None
    """The judging metric on the validation split, None where too few validations say it."""
    updates_by_then: float | None


@dataclass(frozen=True)
class Comparison:
    """Everything that tables and figures show.

    Attributes:
        methods: in order.
        metrics: keys of results.json that some run has, in order.
        headline: those of the first table.
        judge: what the report ranks by.
        estimates: (method, metric) -> mean and interval; missing where a run has no finite value.
        pairs: of all methods, or of all against one.
        budgets: by method.
        common: (updates, seconds) that all runs reached; None where not known.
        levels: metric -> (teacher, student before), means over runs; None where not measured.
        warnings: what a reader must know, in sentences.
    """

    methods: list[Method]
    metrics: list[str]
    headline: list[str]
    judge: str
    estimates: dict[tuple[str, str], Estimate]
    pairs: list[Pair]
    budgets: dict[str, Budget]
    common: tuple[float | None, float | None]
    levels: dict[str, tuple[float | None, float | None]]
    against: str | None = None
    warnings: list[str] = field(default_factory=list)

    def mean(self, method: str, metric: str) -> float | None:
        """A cell without its interval."""
        found = self.estimates.get((method, metric))
        return None if found is None else found.mean

    def ranked(self) -> list[Method]:
        """The methods, the best by the judging metric first; those without it at the end."""
        sign = -(measure_of(self.judge).better or 1)

        def place(method: Method) -> float:
            found = self.mean(method.label, self.judge)
            return math.inf if found is None else sign * found

        return sorted(self.methods, key=place)


def comparison(
    methods: Sequence[Method],
    warnings: Sequence[str] = (),
    *,
    metric: str | None = None,
    against: str | None = None,
    seed: int = 0,
) -> Comparison:
    """All statistics.

    Args:
        methods: of at least one run each.
        warnings: what is known already.
        metric: what to judge by; None for the first of `JUDGES` that the runs have.
        against: a method's label: tests are of all others against it, and not of all pairs.
        seed: of the resampling.

    Raises:
        UserError: no such metric, no such method.
    """
    runs = [run for method in methods for run in method.runs]
    metrics = in_order(
        key
        for run in runs
        for key in run.results["student"]
        if key not in NOT_MEASURED and level(run.results, "student", key) is not None
    )
    quality = next((str(run.results["quality"]) for run in runs if run.results.get("quality")), None)
    judge = _judge(metrics, metric, quality)
    if against is not None and against not in (labels := [method.label for method in methods]):
        raise UserError(f"--against {against!r} is no method here; they are: {'; '.join(labels)}")
    said = list(warnings)
    samples = _samples(methods, metrics, Resamples(seed), said)
    commons = _common_budgets(methods)
    return Comparison(
        methods=list(methods),
        metrics=metrics,
        headline=headline(metrics, quality),
        judge=judge,
        estimates={place: estimate(sample) for place, (sample, _) in samples.items()},
        pairs=_pairs(methods, metrics, samples, against),
        budgets={method.label: _budget(method, judge, commons) for method in methods},
        common=commons,
        levels={
            key: (_mean_level(methods, "teacher", key), _mean_level(methods, "student_start", key))
            for key in metrics
        },
        against=against,
        warnings=said,
    )


def _judge(metrics: Sequence[str], wanted: str | None, quality: str | None) -> str:
    if wanted is not None:
        if wanted not in metrics:
            raise UserError(f"--metric {wanted} is not in these runs; they have: {', '.join(metrics)}")
        return wanted
    found = [key for key in (*judges(quality), *metrics) if key in metrics]
    if not found:
        raise UserError("these runs measured nothing of the student: there is nothing to compare")
    return found[0]


# -- scores ------------------------------------------------------------------------------------

Samples = dict[tuple[str, str], tuple[Sample, tuple[str, ...]]]
"""(method, metric) -> scores and the names of their rows."""


def _samples(
    methods: Sequence[Method], metrics: Sequence[str], resamples: Resamples, said: list[str]
) -> Samples:
    scores = {method.label: [example_scores(run) for run in method.runs] for method in methods}
    found: Samples = {}
    for metric in metrics:
        order = _common_ids([of_run.get(metric) for runs in scores.values() for of_run in runs])
        for method in methods:
            values = [level(run.results, "student", metric) for run in method.runs]
            bad = sum(value is None or not math.isfinite(value) for value in values)
            if bad:
                if bad < len(values) or any(value is not None for value in values):
                    said.append(
                        f"{method.label}: {bad} of {len(values)} runs have no finite "
                        f"{measure_of(metric).title}; no mean is shown."
                    )
                continue
            if order is None:
                table = np.array(values, dtype=np.float64)[:, None]
            else:
                table = np.stack([_ordered(of_run[metric], order) for of_run in scores[method.label]])
            found[method.label, metric] = (Sample(table, resamples), method.replicates)
    return found


def _common_ids(scores: Sequence[Scores | None]) -> list[str] | None:
    """The examples, where every run scored the same ones."""
    known = [of_run for of_run in scores if of_run is not None]
    if len(known) < len(scores) or not known or len({frozenset(of_run.ids) for of_run in known}) > 1:
        return None
    return list(known[0].ids)


def _ordered(scores: Scores, order: Sequence[str]) -> np.ndarray:
    if list(scores.ids) == order:
        return scores.values
    by_id = dict(zip(scores.ids, scores.values, strict=True))
    return np.array([by_id[name] for name in order])


def _pairs(
    methods: Sequence[Method], metrics: Sequence[str], samples: Samples, against: str | None
) -> list[Pair]:
    labels = [method.label for method in methods]
    couples = (
        [(one, two) for place, one in enumerate(labels) for two in labels[place + 1 :]]
        if against is None
        else [(label, against) for label in labels if label != against]
    )
    found = []
    for metric in metrics:
        tested = []
        for one, two in couples:
            if (one, metric) in samples and (two, metric) in samples:
                apart = _paired(samples[one, metric], samples[two, metric])
                if apart is not None:
                    tested.append((one, two, apart))
        known = [apart.p for _, _, apart in tested if apart.p is not None]
        adjusted = iter(holm(known))
        found += [
            Pair(metric, one, two, apart, None if apart.p is None else next(adjusted))
            for one, two, apart in tested
        ]
    return found


def _paired(
    first: tuple[Sample, tuple[str, ...]], second: tuple[Sample, tuple[str, ...]]
) -> Difference | None:
    """On the seeds that both have; None where they share none."""
    both = [name for name in first[1] if name in second[1]]
    if not both:
        return None
    one, two = (sample.of([names.index(name) for name in both]) for sample, names in (first, second))
    return difference(one, two)


def _mean_level(methods: Sequence[Method], who: str, metric: str) -> float | None:
    values = [level(run.results, who, metric) for method in methods for run in method.runs]
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


# -- budgets -----------------------------------------------------------------------------------


def _common_budgets(methods: Sequence[Method]) -> tuple[float | None, float | None]:
    """The largest updates and seconds of distillation that every run reached."""
    runs = [run for method in methods for run in method.runs]
    updates = [run.updates for run in runs]
    seconds = [_seconds(run.results) for run in runs]
    return (
        None if None in updates else float(min(value for value in updates if value is not None)),
        None if None in seconds else min(value for value in seconds if value is not None),
    )


def _seconds(results: object) -> float | None:
    found = results.get("cost", {}).get("seconds", {}).get("distil")  # type: ignore[attr-defined]
    return None if found is None else float(found)


def _budget(method: Method, judge: str, common: tuple[float | None, float | None]) -> Budget:
    seconds = [_seconds(run.results) for run in method.runs]
    tokens = [run.results.get("cost", {}).get("tokens") for run in method.runs]
    made = _mean([None if run.updates is None else float(run.updates) for run in method.runs])
    at_updates, at_seconds, by_then = [], [], []
    for run in method.runs:
        curve, clock = run.curves.get(f"valid/{judge}", []), run.curves.get("time/seconds", [])
        at_updates.append(_at(curve, common[0]))
        reached = _at([(second, update) for update, second in clock], common[1])
        if reached is None and clock and common[1] is not None and common[1] >= clock[-1][1]:
            reached = clock[-1][0]  # the clock is read at training's lines, a little before the end
        by_then.append(reached)
        at_seconds.append(_at(curve, reached))
    return Budget(
        updates=None if made is None else round(made),
        seconds=_mean(seconds),
        tokens=_mean([None if of_run is None else float(sum(of_run.values())) for of_run in tokens]),
        at_updates=_mean(at_updates),
        at_seconds=_mean(at_seconds),
        updates_by_then=_mean(by_then),
    )


def _at(curve: Curve, place: float | None) -> float | None:
    """A curve read at a place between two of its points; None outside of it."""
    if place is None or not curve:
        return None
    places, values = zip(*curve, strict=True)
    if not places[0] <= place <= places[-1] + 1e-9:
        return None
    return float(np.interp(place, places, values))


def _mean(values: Sequence[float | None]) -> float | None:
    """Of all runs or of none: a mean over some of them would compare unlike with like."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
