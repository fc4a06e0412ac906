"""Which runs are one method, and whether they differ in anything but their seeds."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from amd_lightning.analysis.compare.collect import Run
from amd_lightning.analysis.compare.identity import (
    families,
    fill,
    last,
    moves_with_validations,
    said,
    settings_of,
)
from amd_lightning.errors import UserError

METHOD = ("objective.", "critic.", "rollout.", "optim.critic.learning_rate")
"""What a method is made of."""

NO_DIFFERENCE = ("experiment", "output_dir", "resume", "seed", "data.path", "logger.", "cache.")
"""Names and places."""

HARMLESS = (
    "trainer.accelerator trainer.devices trainer.nodes trainer.strategy trainer.teacher trainer.threads "
    "trainer.chunk_tokens trainer.log_every trainer.progress trainer.validate_every "
    "trainer.checkpoint_every trainer.keep_checkpoints trainer.time_budget trainer.profile "
    "evaluation.diagnose_every optim.teacher.micro_batch_size optim.student_start.micro_batch_size "
    "optim.student.micro_batch_size"
).split()
"""Moves rounding and seconds at most; said, not refused."""

STOPPED = "stopped_at"
"""Of results.json: the update at which trainer.time_budget ended a run."""

QUESTIONS = ("data.", "pair.", "evaluation.", "task", "source", "scale")
"""Runs that differ in one of these were asked other questions, or by another teacher."""


@dataclass(frozen=True)
class Method:
    """Runs that differ in their seeds alone.

    Attributes:
        label: what it is called.
        family: the same without its β.
        distance: its distance, as in the configuration.
        beta: its β; None where it is not said.
        runs: by seed.
        replicates: what tells its runs apart: the seed, and what else is averaged over.
    """

    label: str
    family: str
    distance: str
    beta: float | None
    runs: tuple[Run, ...]
    replicates: tuple[str, ...]


def replicate(run: Run, over: Sequence[str] = ()) -> str:
    """The seed, with what else is averaged over."""
    return ", ".join([str(run.seed), *(f"{last(key)} {said(run.setting(key))}" for key in over)])


def methods(
    runs: Sequence[Run], by: Sequence[str] = (), over: Sequence[str] = ()
) -> tuple[list[Method], list[str]]:
    """(methods in the order of their distances and falling β, warnings).

    Args:
        runs: all that are compared.
        by: further knobs that tell methods apart.
        over: knobs that are averaged over as seeds are.

    Raises:
        UserError: runs of one method differ in more than their seeds, a seed is there twice, or methods were
            not asked the same questions.
    """
    for key in [*by, *over]:
        if all(run.setting(key) is None for run in runs):
            raise UserError(f"no run says anything of {key}: name a knob as in config.yaml, data.train_rows")
    known = [settings_of(run, by) for run in runs]
    fill(known)
    groups: dict[str, list[int]] = {}
    for place, settings in enumerate(known):
        groups.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(place)
    names = families([known[places[0]] for places in groups.values()], by)
    found = []
    for family, places in zip(names, groups.values(), strict=True):
        settings = known[places[0]]
        beta = settings.get("objective.beta")
        beta = float(beta) if isinstance(beta, int | float) else None
        label = family if beta is None else f"{family}, β {beta:g}"
        of_method = sorted(
            (runs[place] for place in places), key=lambda run: (run.seed, replicate(run, over))
        )
        found.append(
            Method(
                label,
                family,
                str(settings.get("objective.distance")),
                beta,
                tuple(of_method),
                tuple(replicate(run, over) for run in of_method),
            )
        )
    found.sort(key=lambda method: _place(method, names))
    skipped = (*by, *over)
    for method in found:
        _refuse_differences(method, skipped)
        _refuse_twice(method)
        _refuse_some_stopped(method, skipped)
    return found, [*_differences_between(found, skipped), *_stopped(found)]


def _place(method: Method, names: Sequence[str]) -> tuple[int, float]:
    return names.index(method.family), -1.0 if method.beta is None else -method.beta


# -- what must be the same ----------------------------------------------------------------------


def _values(runs: Iterable[Run], wanted: Callable[[str], bool]) -> dict[str, dict[str, int]]:
    """Knob -> value -> number of runs, for the knobs in which they differ."""
    runs = list(runs)
    keys = {key for run in runs for key in (*run.config, "task", "source", "scale", "updates")}
    found: dict[str, dict[str, int]] = {}
    for key in sorted(filter(wanted, keys)):
        counts: dict[str, int] = {}
        for run in runs:
            value = run.setting(key)
            if key in run.config or value is not None:  # else of a version, or a place, that does not say
                counts[said(value)] = counts.get(said(value), 0) + 1
        if len(counts) > 1:
            found[key] = counts
    return found


def _starts(key: str, heads: Sequence[str]) -> bool:
    return any(key == head or (head.endswith(".") and key.startswith(head)) for head in heads)


def _refuse_differences(method: Method, skipped: Sequence[str]) -> None:
    adaptive = any(moves_with_validations(run) for run in method.runs)

    def matters(key: str) -> bool:
        if key == "trainer.validate_every" and adaptive:
            return key not in skipped
        return not _starts(key, [*METHOD, *NO_DIFFERENCE, *HARMLESS, *skipped])

    found = _values(method.runs, matters)
    if found:
        key = next(iter(found))
        value = next(iter(found[key]))
        raise UserError(
            f"runs of {method.label} differ in more than the seed and are not averaged: {_listed(found)}; "
            f"tell them apart with --by {key}, take some of them with --where {key}={value}, or average over "
            f"it with --over {key}"
        )


def _refuse_twice(method: Method) -> None:
    seen: dict[str, Run] = {}
    for name, run in zip(method.replicates, method.runs, strict=True):
        if name in seen:
            raise UserError(
                f"{method.label} has seed {name} twice, in {seen[name].place} and "
                f"{run.place}: name one of them"
            )
        seen[name] = run


def _refuse_some_stopped(method: Method, skipped: Sequence[str]) -> None:
    """Seeds that made all updates are not averaged with one that trainer.time_budget ended; where it ended
    all of them, the time is what they were to have in common."""
    stopped = [run for run in method.runs if run.stopped]
    if 0 < len(stopped) < len(method.runs) and STOPPED not in skipped:
        run = stopped[0]
        raise UserError(
            f"{method.label}: seed {run.seed} was stopped by trainer.time_budget after {run.updates} of "
            f"{run.results.get('updates')} updates, others of its seeds were not ({run.place}): let it go on "
            f"(resume=DIR with more trainer.time_budget), leave it out, or average all the same with "
            f"--over {STOPPED}"
        )


def _stopped(found: Sequence[Method]) -> list[str]:
    """What is said of runs that did not make all their updates."""
    told = [
        f"{method.label} {' and '.join(str(run.updates) for run in method.runs if run.stopped)} of "
        f"{method.runs[0].results.get('updates')}"
        for method in found
        if any(run.stopped for run in method.runs)
    ]
    return [f"Stopped by trainer.time_budget before their last update: {'; '.join(told)}."] if told else []


def _differences_between(found: Sequence[Method], skipped: Sequence[str]) -> list[str]:
    runs = [run for method in found for run in method.runs]
    questions = _values(
        runs, lambda key: _starts(key, QUESTIONS) and not _starts(key, [*HARMLESS, *skipped, *NO_DIFFERENCE])
    )
    if questions:
        key = next(iter(questions))
        value = next(iter(questions[key]))
        raise UserError(
            f"these runs were not asked the same questions and are not compared: {_listed(questions)}; take "
            f"some of them with --where {key}={value}, or say that you mean it with --by {key}"
        )
    others = _values(
        runs, lambda key: not _starts(key, [*METHOD, *QUESTIONS, *NO_DIFFERENCE, *HARMLESS, *skipped])
    )
    warnings = []
    if others:
        warnings.append(f"Methods differ in more than what they are: {_listed(others)}.")
    if named := _values(runs, lambda key: key in skipped):
        warnings.append(f"Told apart or averaged over, as asked: {_listed(named)}.")
    if harmless := _values(runs, lambda key: _starts(key, HARMLESS)):
        warnings.append(f"Differences that move rounding and seconds at most: {_listed(harmless)}.")
    return [*warnings, *_versions(runs), *_yardstick(runs)]


def _versions(runs: Sequence[Run]) -> list[str]:
    """What is said of code and libraries that differ."""
    counts: dict[str, dict[str, int]] = {}
    for run in runs:
        commit = run.results.get("git_commit")
        told = {"git commit": None if commit is None else str(commit)[:9] + "+changes" * ("+" in str(commit))}
        for name, value in (told | dict(run.results.get("versions", {}))).items():
            if value is not None:
                counts.setdefault(name, {}).setdefault(str(value), 0)
                counts[name][str(value)] += 1
    differing = {name: values for name, values in counts.items() if len(values) > 1}
    return [f"Runs were made by different versions: {_listed(differing)}."] if differing else []


def _yardstick(runs: Sequence[Run]) -> list[str]:
    """Whether all runs met the same teacher and test split, by its own metrics."""
    kinds = ("rouge_l", "sampled_rouge_l", "accuracy", "sampled_accuracy", "bleu")
    known = {
        key: {
            f"{run.results['teacher'][key]:.6g}"
            for run in runs
            if run.results["teacher"].get(key) is not None
        }
        for key in kinds
    }
    differing = [key for key, values in known.items() if len(values) > 1]
    if not differing:
        return []
    return [
        f"The teacher's own {', '.join(differing)} differ between runs: it is not one teacher on "
        "one test split."
    ]


def _listed(found: Mapping[str, Mapping[str, int]], most: int = 6) -> str:
    """ "data.train_rows (8000: 3 runs, 100: 1 run), ..."""
    parts = []
    for key, counts in list(found.items())[:most]:
        values = [f"{value}: {count} run{'s' * (count > 1)}" for value, count in list(counts.items())[:most]]
        more = [f"{len(counts) - most} more"] if len(counts) > most else []
        parts.append(f"{key} ({', '.join([*values, *more])})")
    if len(found) > most:
        parts.append(f"and {len(found) - most} more")
    return ", ".join(parts)
