"""The first study: which runs it is made of, in which order, and running what is missing.

    python experiments/first_study/study.py run --data DIR --out runs/first_study --workers 2
    python experiments/first_study/study.py status --out runs/first_study

DIR holds one directory a task (README.md). Every run is `python -m amd_lightning.run` with the overrides
that `command` adds; a run that stopped goes on where it stopped, one that is finished, or whose results
stand in results/ from another machine, is left alone.
"""

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from choosing import RECORD, Choice, finished, recorded, validated
from grid import CRITICS, LEARNING_RATES, METHODS, SEEDS, TASKS, Point, known_methods


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
        choices = {method: Choice(options.out, task, method, options.seeds) for method in methods}
        for place in range(len(LEARNING_RATES[task])):
            for method, choice in choices.items():
                if place < len(choice.tried):
                    yield Point(task, method, choice.tried[place], first)
        for seed in others:
            for method, choice in choices.items():
                for rate in choice.contenders(seed):
                    yield Point(task, method, rate, seed)


def methods_of(task: str, options: argparse.Namespace) -> list[str]:
    """The methods of a task, or those of them that the command line asks for."""
    return [method for method in known_methods(task) if not options.methods or method in options.methods]


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
        best = {method: Choice(options.out, task, method, options.seeds).chosen for method in methods}
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
