"""The first study: which runs it is made of, in which order, and running what is missing.

    python experiments/first_study/study.py run --data DIR --out runs/first_study --workers 2
    python experiments/first_study/study.py status --out runs/first_study

DIR holds one directory a task (README.md). Every run is `python -m amd_lightning.run` with the overrides
that `command` adds; a run that stopped goes on where it stopped, one that is finished, or whose results
stand in results/ from another machine, is left alone.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

TASKS = ("multi30k", "samsum", "strategyqa", "dolly", "multi30k_long", "samsum_long")
"""Of conf/experiment/first_study, in the order in which they are run. What ends in `long` is the same task
in many updates, the study's second regime."""

METHODS: dict[str, tuple[str, ...]] = {
    "sft": ("objective=sft",),
    "seqkd": ("objective=seqkd",),
    "kd": ("objective=kd",),
    "imitkd": ("objective=imitkd",),
    "minillm": ("objective=minillm",),
    "gkd": ("objective=gkd",),
    "distillm": ("objective=distillm",),
    "tv": ("objective=fdistill_tv",),
    "rkl_mixed": ("objective.distance=rkl", "objective.beta=0.5"),
    "amm_beta0": ("objective=amm", "objective.beta=0"),
    "amm_beta.25": ("objective=amm", "objective.beta=0.25"),
    "amm_beta.5": ("objective=amm", "objective.beta=0.5"),
    "amm_beta.75": ("objective=amm", "objective.beta=0.75"),
    "amm_beta1": ("objective=amm", "objective.beta=1"),
    "amm_learned": ("objective=amm", "critic=learned"),
    "amm_closed_form.1": ("objective=amm_closed_form", "critic.alpha=0.1"),
    "amm_closed_form.25": ("objective=amm_closed_form", "critic.alpha=0.25"),
    "amm_closed_form.5": ("objective=amm_closed_form", "critic.alpha=0.5"),
    "amm.5_beta1": ("objective=amm", "objective.beta=1", "critic.alpha=0.5"),
    "amm_slow_critic_beta1": ("objective=amm", "objective.beta=1"),
    "amm_rising_linear": (
        "objective=amm", "objective.beta=1", "critic.alpha_start=0.01", "critic.alpha_path=linear",
    ),
    "amm_rising.01": ("objective=amm", "objective.beta=1", "critic.alpha_start=0.01"),
    "amm_rising.001": ("objective=amm", "objective.beta=1", "critic.alpha_start=0.001"),
    "amm_closed_form.25_beta1": ("objective=amm_closed_form", "objective.beta=1", "critic.alpha=0.25"),
    "amm_closed_form.5_beta1": ("objective=amm_closed_form", "objective.beta=1", "critic.alpha=0.5"),
    "amm_closed_form.25_beta1_longer": (
        "objective=amm_closed_form", "objective.beta=1", "critic.alpha=0.25", "optim.student.updates=330",
    ),
    "distillm_longer": ("objective=distillm", "optim.student.updates=330"),
}  # fmt: skip
"""Name -> what it adds to the task's experiment. The residual critic where none is named."""

RISING = ("amm_rising_linear", "amm_rising.01", "amm_rising.001")
"""Alpha rises to .25 over the run; the critic is slow and beta 1."""

COMPARED = (
    "sft", "seqkd", "kd", "minillm", "gkd", "distillm", "tv",
    "amm_beta.5", "amm_beta1", "amm_slow_critic_beta1", *RISING, "amm_closed_form.25",
    "amm_closed_form.25_beta1",
)  # fmt: skip
LONG = (
    "sft", "kd", "gkd", "distillm", "tv", "amm_beta.5", "amm_beta1", "amm_slow_critic_beta1", *RISING,
    "amm_closed_form.25_beta1",
)  # fmt: skip
METHODS_OF = {
    "samsum": COMPARED, "strategyqa": COMPARED, "dolly": COMPARED, "multi30k_long": LONG, "samsum_long": LONG,
}  # fmt: skip
"""Not all of METHODS where the first task told what to hold on the others."""

AT_ONE_RATE: dict[str, dict[str, float]] = {
    "multi30k": dict.fromkeys(
        ("amm.5_beta1", "amm_slow_critic_beta1", *RISING, "amm_closed_form.25_beta1",
         "amm_closed_form.5_beta1", "amm_closed_form.25_beta1_longer", "distillm_longer"), 3e-3,
    ),
}  # fmt: skip
"""What was tried after the others had run, at the learning rate that they chose. `longer` ones take on
captions about the seconds that gkd takes for its 200 updates."""

LEARNING_RATES: dict[str, tuple[float, ...]] = {
    "multi30k": (3e-4, 1e-3, 3e-3, 1e-2),
    "samsum": (3e-4, 1e-3, 3e-3, 1e-2),
    "strategyqa": (2e-4, 5e-4, 1e-3, 2e-3),
    "dolly": (2e-4, 5e-4, 1e-3, 2e-3),
    "multi30k_long": (3e-3, 1e-2, 3e-2),
    "samsum_long": (3e-3, 1e-2, 3e-2),
}
"""Every method chooses among these on the validation split, with the first seed: it runs at the two in the
middle (the first two of three), and then at whatever stands beside the best so far. `CLOSE` calls are left
to all seeds."""

CLOSE = 0.05
"""A learning rate whose first seed validates within this share of the best has its other seeds run too, and
the mean decides: one seed and a few hundred responses tell no more."""

CRITICS = {"amm_beta": 3.0, "amm_learned": 3.0, "amm.5_": 3.0, "amm_slow_critic": 1 / 3, "amm_rising": 1 / 3}
"""How many times the student's learning rate the critic's is, by the beginning of the method's name: three
times was the project's default."""

SEEDS = (0, 1, 2)
"""These choose the learning rate; more of them (`--seeds 0 1 2 3 4`) run at it and choose nothing."""

RECORD = Path(__file__).parent / "results"
"""What `collect.py` wrote down of all runs so far, those of other machines too: TASK.csv."""


@dataclass(frozen=True)
class Point:
    """One run of the study."""

    task: str
    method: str
    learning_rate: float
    seed: int

    @property
    def place(self) -> str:
        """Its directory, below the study's."""
        return f"{self.task}/{self.method}/lr{self.learning_rate:g}/seed{self.seed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("run", "status"))
    parser.add_argument("--data", type=Path, help="directory with one directory a task")
    parser.add_argument("--out", type=Path, default=Path("runs/first_study"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--set", nargs="+", default=[], help="overrides of every run: trainer.accelerator=gpu"
    )
    parser.add_argument("--hours", type=float, default=float("inf"), help="start no run after so many")
    options = parser.parse_args(arguments)
    if options.what == "status":
        show(options)
        return 0
    if options.data is None:
        parser.error("run needs --data DIR")
    return run(options)


# -- what there is to do --------------------------------------------------------------------------


def points(options: argparse.Namespace) -> Iterator[Point]:
    """All runs known so far, by task: learning rates on the first seed, the best and close ones on others.

    A method's further seeds are known once its first has run at all of its learning rates.
    """
    first, *others = options.seeds
    for task in options.tasks:
        methods = methods_of(task, options)
        tried = {method: rates(options.out, task, method, first) for method in methods}
        for place in range(len(LEARNING_RATES[task])):
            for method in methods:
                if place < len(tried[method]):
                    yield Point(task, method, tried[method][place], first)
        for seed in others:
            for method in methods:
                for rate in contenders(options.out, task, method, options.seeds, seed):
                    yield Point(task, method, rate, seed)


def methods_of(task: str, options: argparse.Namespace) -> list[str]:
    """The methods of a task, or those of them that the command line asks for."""
    return [method for method in known_methods(task) if not options.methods or method in options.methods]


def known_methods(task: str) -> list[str]:
    """All methods of a task, in their order."""
    return list(METHODS_OF.get(task, METHODS))


def grid_of(task: str, method: str) -> tuple[float, ...]:
    """The learning rates that a method may choose from."""
    only = AT_ONE_RATE.get(task, {}).get(method)
    return LEARNING_RATES[task] if only is None else (only,)


def rates(out: Path, task: str, method: str, seed: int) -> list[float]:
    """The learning rates that a method has tried with `seed`, or is to try next, in that order."""
    grid = grid_of(task, method)
    scores: dict[float, float] = {}
    asked = list(grid[max(len(grid) // 2 - 1, 0) :][:2])
    while asked:
        for rate in asked:
            score = validated(out, Point(task, method, rate, seed))
            if score is None:
                return [*scores, *(rate for rate in asked if rate not in scores)]
            scores[rate] = score
        best = grid.index(max(scores, key=scores.__getitem__))
        asked = [rate for rate in grid[max(best - 1, 0) : best + 2] if rate not in scores]
    return list(scores)


def contenders(out: Path, task: str, method: str, seeds: Sequence[int], seed: int) -> list[float]:
    """The learning rates that a further seed is to run at; none before the first seed has run at all of its.

    All that are close to the best where the seed is one that chooses, the chosen one where it is not.
    """
    tried = rates(out, task, method, seeds[0])
    scores = scores_at(out, task, method, tried, seeds[0])
    if None in scores.values():
        return []
    if seed not in judges(seeds):
        best = chosen(out, task, method, seeds)
        return [] if best is None else [best]
    return close(scores)


def close(scores: Mapping[float, float | None]) -> list[float]:
    """Of learning rates and what they validated at, the best and those close to it, the best first."""
    known = {rate: score for rate, score in scores.items() if score is not None}
    best = max(known.values(), default=0.0)
    return sorted(
        (rate for rate, score in known.items() if score >= (1.0 - CLOSE) * best),
        key=lambda rate: -known[rate],
    )


def chosen(out: Path, task: str, method: str, seeds: Sequence[int]) -> float | None:
    """The learning rate that validates best; None before all that decides it has run: the neighbours of the
    first seed's best, and of several close ones every seed that chooses."""
    scores = scores_at(out, task, method, rates(out, task, method, seeds[0]), seeds[0])
    rivals = close(scores)
    if None in scores.values():
        return None
    points = [Point(task, method, rate, seed) for rate in rivals for seed in judges(seeds)]
    if len(rivals) > 1 and any(validated(out, point) is None for point in points):
        return None
    return best_so_far(out, task, method, seeds)


def best_so_far(out: Path, task: str, method: str, seeds: Sequence[int]) -> float | None:
    """The learning rate that validates best of those that have run, None where none has: the first seed's
    best, or of the close ones that have run with all seeds that choose the one with the best mean."""
    rivals = close(scores_at(out, task, method, rates(out, task, method, seeds[0]), seeds[0]))
    means: dict[float, float] = {}
    for rate in rivals:
        points = [Point(task, method, rate, seed) for seed in judges(seeds)]
        scores = [score for point in points if (score := validated(out, point)) is not None]
        if len(scores) == len(points):
            means[rate] = statistics.fmean(scores)
    if rivals and rivals[0] in means:
        return max(means, key=means.__getitem__)
    return rivals[0] if rivals else None


def judges(seeds: Sequence[int]) -> list[int]:
    """Those of the seeds that choose learning rates; the first one where none of `SEEDS` is asked for."""
    return [seed for seed in seeds if seed in SEEDS] or list(seeds[:1])


def scores_at(
    out: Path, task: str, method: str, tried: Sequence[float], seed: int
) -> dict[float, float | None]:
    """What each of these learning rates validated at, None where it has not run."""
    return {rate: validated(out, Point(task, method, rate, seed)) for rate in tried}


def validated(out: Path, point: Point) -> float | None:
    """What a run's learning rate is judged by, from the run itself or the record; None before it has run."""
    results = finished(out / point.place)
    if results is not None:
        return float(results["validation"][metric_of(results)])
    return recorded(RECORD).get(point)


@lru_cache
def recorded(record: Path) -> dict[Point, float]:
    """Runs whose validation is written down."""
    return {point_of(row): float(row["value"]) for row in rows_of(record) if row["split"] == "valid"}


def rows_of(record: Path) -> list[dict[str, str]]:
    """All that is written down, task by task."""
    rows = []
    for task in TASKS:
        path = record / f"{task}.csv"
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows += list(csv.DictReader(file))
    return rows


def point_of(row: dict[str, str]) -> Point:
    """The run that a row of the record is of."""
    return Point(row["task"], row["method"], float(row["learning_rate"]), int(row["seed"]))


def metric_of(results: dict[str, Any]) -> str:
    """The metric of sampled responses that a task's learning rates are chosen by."""
    return {"iwslt": "sampled_bleu", "strategyqa": "sampled_accuracy"}.get(results["task"], "sampled_rouge_l")


def finished(folder: Path) -> dict[str, Any] | None:
    """results.json of a run that came to its end."""
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


# -- doing it -------------------------------------------------------------------------------------


def command(point: Point, options: argparse.Namespace) -> list[str]:
    """The command of a run."""
    overrides = [*METHODS[point.method], f"seed={point.seed}"]
    overrides.append(f"optim.student.learning_rate={point.learning_rate:g}")
    for beginning, ratio in CRITICS.items():
        if point.method.startswith(beginning):
            overrides.append(f"optim.critic.learning_rate={ratio * point.learning_rate:g}")
    data = options.data / point.task.removesuffix("_long")
    return [
        sys.executable, "-m", "amd_lightning.run", f"+experiment=first_study/{point.task}", *overrides,
        f"data.path={data}", "logger=csv", "trainer.progress=lines",
        f"hydra.run.dir={options.out / point.place}", *options.set,
    ]  # fmt: skip


Launch = Callable[[list[str], IO[str]], int]


def launched(words: list[str], log: IO[str]) -> int:
    """Run a command to its end, its output in `log`; the exit status."""
    return subprocess.run(words, stdout=log, stderr=log, check=False).returncode


def run(options: argparse.Namespace, launch: Launch = launched) -> int:
    """Run what is missing, `workers` at a time; the number of runs that failed."""
    began, change = time.monotonic(), threading.Condition()
    taken: set[Point] = set()
    under_way: set[Point] = set()
    failed: list[Point] = []

    def following() -> Point | None:
        """What to run next; waits where that hangs on a run that is under way."""
        with change:
            while time.monotonic() - began < 3600 * options.hours:
                for point in points(options):
                    if point not in taken and validated(options.out, point) is None:
                        taken.add(point)
                        under_way.add(point)
                        return point
                if not under_way:
                    return None
                change.wait()
            return None

    def work() -> None:
        while (point := following()) is not None:
            try:
                attempt(point)
            finally:  # whatever befell it, nobody is to wait for it
                with change:
                    under_way.discard(point)
                    change.notify_all()

    def attempt(point: Point) -> None:
        folder = options.out / point.place
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with (folder / "console.log").open("a", encoding="utf-8") as log:
            code = launch(command(point, options), log)
        if code or finished(folder) is None:
            failed.append(point)
        said = "failed, see console.log" if point in failed else "finished"
        print(f"{point.place}: {said} after {time.monotonic() - start:.0f} s", flush=True)

    workers = [threading.Thread(target=work) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(failed)


def show(options: argparse.Namespace) -> None:
    """How many runs of each task are finished, and what has been chosen."""
    for task in options.tasks:
        methods = methods_of(task, options)
        best = {method: chosen(options.out, task, method, options.seeds) for method in methods}
        wanted = len(methods) * (3 + len(options.seeds) - 1)  # three learning rates, a fourth now and then
        paths = (options.out / task).glob("*/*/*/results.json")
        here = {str(path.parent.relative_to(options.out)) for path in paths}
        done = len(here | {point.place for point in recorded(RECORD) if point.task == task})
        print(
            f"{task}: {done} of about {wanted} runs; learning rates "
            + str({m: r for m, r in best.items() if r})
        )


if __name__ == "__main__":
    sys.exit(main())
