"""How methods stand on a task, in the tables that README.md shows, and how far one leads another by seed.

`collect.py` writes the former between README.md's marks (`<!-- standing: TASK -->` to the next
`<!-- end -->`), the latter into tables.md.
"""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from choosing import Choice
from grid import SEEDS

from amd_lightning.analysis.compare.collect import Run
from amd_lightning.analysis.compare.comparison import Comparison
from amd_lightning.analysis.compare.measures import measure_of
from amd_lightning.analysis.compare.methods import Method
from amd_lightning.analysis.compare.tables import number

MARK, END = "<!-- standing: {} -->", "<!-- end -->"
DEFAULTS = ("amm_beta.5", "amm_slow_critic_beta.5")
"""Moment matching as `objective=amm` has it, which other kinds of it are compared with too."""

DISTANCES = {"tv_off": "TV off", "tv_on": "TV on", "kl_off": "KL off", "rkl_on": "reverse KL on"}


def standing(out: Path, task: str, found: Comparison) -> str:
    """A row a method, the best sampled quality on the test split first: mean ± standard deviation of the
    training seeds, means alone of what is no quality, and the least of the seeds' seconds."""
    sampled, greedy = (measure_of(key).title for key in (found.judge, found.judge.removeprefix("sampled_")))
    names = ["method", "learning rate", "seeds", "validation, sampled", sampled, greedy]
    names += [*DISTANCES.values(), "tokens", "seconds"]
    rows = sorted(found.methods, key=lambda method: -mean_of(method.runs, "student", found.judge))
    return "\n".join(
        [
            f"| {' | '.join(names)} |",
            "|---|" + "--:|" * (len(names) - 1),
            *(_row(out, task, method, found.judge) for method in rows),
        ]
    )


def _row(out: Path, task: str, method: Method, judge: str) -> str:
    runs, digits = method.runs, measure_of(judge).decimals
    waits = "" if Choice(out, task, method.label, SEEDS).chosen else " (so far)"
    cells = [method.label, f"{runs[0].results['learning_rate']:g}{waits}", str(len(runs))]
    cells.append(number(mean_of(runs, "validation", judge), digits))
    for metric in (judge, judge.removeprefix("sampled_")):
        values = [run.results["student"][metric] for run in runs]
        spread = f" ± {number(statistics.stdev(values), digits)}" if len(values) > 1 else ""
        cells.append(number(statistics.fmean(values), digits) + spread)
    for metric in DISTANCES:
        cells.append(number(mean_of(runs, "student", metric), 3 if metric.startswith("tv") else 2))
    cells.append(number(mean_of(runs, "student", "response_tokens"), 1))
    cells.append(f"{min(run.results['cost']['seconds']['distil'] for run in runs):.0f}")
    return f"| {' | '.join(cells)} |"


def mean_of(runs: Sequence[Run], split: str, metric: str) -> float:
    """Of the seeds; split: `student` (the test split) or `validation`."""
    return statistics.fmean(run.results[split][metric] for run in runs)


def into(readme: str, task: str, table: str) -> str:
    """README.md's text with the task's table between its marks.

    Raises:
        ValueError: it has no such marks.
    """
    before, mark, after = readme.partition(MARK.format(task) + "\n")
    _, end, rest = after.partition("\n" + END)
    if not mark or not end:
        raise ValueError(f"README.md has no {MARK.format(task)} with an {END} behind it")
    return before + mark + table + end + rest


def led_by_seed(found: Comparison) -> Iterator[str]:
    """Lines: a row a kind of moment matching, a column each other method; both splits' means."""
    seeded = [method for method in found.ranked() if len(method.runs) > 1]
    own = [method for method in seeded if method.label.startswith("amm")]
    others = [method for method in seeded if method not in own or method.label in DEFAULTS]
    if not own or not others:
        return
    title = measure_of(found.judge).title
    yield f"\n{title}, how far the row is ahead, paired by training seed: mean (standard error; each seed);"
    yield "the mean on validation.\n"
    yield "| | " + " | ".join(method.label for method in others) + " |"
    yield "| :-- |" + " --: |" * len(others)
    for method in own:
        cells = [lead(method, other, found.judge) for other in others]
        yield f"| {method.label} | {' | '.join(cells)} |"


def lead(method: Method, other: Method, judge: str) -> str:
    """`0.38 (0.08; 0.54, 0.32, 0.28); 0.08`, or a dash where fewer than two seeds are shared."""
    pairs = [
        (run.results, rival.results) for run in method.runs for rival in other.runs if run.seed == rival.seed
    ]
    if method is other or len(pairs) < 2:
        return "–"
    test = [mine["student"][judge] - theirs["student"][judge] for mine, theirs in pairs]
    valid = [mine["validation"][judge] - theirs["validation"][judge] for mine, theirs in pairs]
    error = statistics.stdev(test) / len(test) ** 0.5
    told = (statistics.fmean(test), error, statistics.fmean(valid), *test)
    mean, error_text, validation, *each = (number(value, measure_of(judge).decimals) for value in told)
    return f"{mean} ({error_text}; {', '.join(each)}); {validation}"
