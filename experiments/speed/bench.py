"""Ours beside its peers, a bare loop, its own methods and the arithmetic: `make bench`.

    python experiments/speed/bench.py [--quick] [--only GROUP ...] [--threads 1] [--rounds 5] [--updates 3]

Workers (bench/) are processes that make whole updates when they are told to; those of a group take turns,
A-B-A-B, after two updates of warm-up. A ratio is the median over rounds of (seconds of one)/(seconds of the
other) in the same round, its spread the lowest and the highest; seconds are the process's CPU time on one
thread, wall time on more. Memory is a process's highest resident memory, all its libraries included.
`results.json` is written group by group, and a group that is in it is not run again (--again does); table.md,
the tables of README.md and bench.png are made from it. With --quick all of it stays in the folder of the
pairs, and groups are cut down: it shows that the bench runs, and measures nothing. Status 1 where one failed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE / "bench"))

from protocol import Worker  # noqa: E402

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_TOP_PAD_": "67108864",
}
"""As the Makefile sets them for our runs; every worker gets them."""


class Contest(NamedTuple):
    """One line of the table: `ours` over `other`, of "time" or "memory"; the target is the highest ratio."""

    name: str
    ours: str
    other: str
    what: str
    target: float | None = None


class Group(NamedTuple):
    """Workers that take turns, by name, each with its command; and what is compared."""

    workers: dict[str, list[str]]
    contests: Sequence[Contest]


class Bench:
    """Runs groups and keeps their results.

    Args:
        options: of the command line.
        folder: of pairs, logs and runs' outputs.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.quick = options.quick
        self.path = (folder if options.quick else HERE) / "results.json"
        self.results: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    # -- commands of workers -------------------------------------------------------------------

    def pair(self, vocabulary: int, *student: int) -> str:
        """The folder of a pair; made where it isn't there."""
        folder = self.folder / "_".join(map(str, ("pair", vocabulary, *student)))
        if not (folder / "train.jsonl").is_file():
            sizes = [str(number) for number in (vocabulary, 80, *student)]
            subprocess.run(
                [sys.executable, f"{HERE}/bench/pair.py", str(folder), *sizes],
                check=True,
                stderr=subprocess.DEVNULL,
            )
        return str(folder)

    def ours(self, pair: str, *overrides: str) -> list[str]:
        """A run of this project."""
        output = tempfile.mkdtemp(dir=self.folder, prefix="run_")
        fixed = [f"cache.dir={self.folder}/cache", f"trainer.threads={self.options.threads}"]
        return [sys.executable, f"{HERE}/bench/ours.py", pair, output, *fixed, *overrides]

    def trl(self, kind: str, pair: str) -> list[str]:
        """A trainer of TRL."""
        python = ROOT / ".venv-trl" / "bin" / "python"
        output = tempfile.mkdtemp(dir=self.folder, prefix="trl_")
        return [str(python), f"{HERE}/bench/trl_worker.py", kind, pair, output, str(self.options.threads)]

    def bare(self, pair: str) -> list[str]:
        """The plain loop."""
        return [sys.executable, f"{HERE}/bench/bare.py", pair, str(self.options.threads)]

    # -- groups --------------------------------------------------------------------------------

    def groups(self) -> dict[str, Any]:
        """Every group by name, as a function that runs it; --only takes what stands before the comma, too."""
        found: dict[str, Any] = {}
        for words, vocabulary, time_target, memory_target in (
            ("8k", 8192, 0.75, 0.6),
            ("50k", 50_000, 0.5, 0.4),
        ):
            found[f"trl_{words}"] = lambda words=words, v=vocabulary, t=time_target, m=memory_target: (
                self.run(f"trl_{words}", self.trl_group(words, v, t, m))
            )
        found["bare"] = lambda: self.run("bare", self.bare_group())
        for which in ("stored", "sampled"):
            name = f"methods, {which} states"
            found[name] = lambda name=name, which=which: self.run(name, self.methods_group(which))
        found["arithmetic"] = self.arithmetic
        for axis in self.axes():
            found[f"growth, {axis}"] = lambda axis=axis: self.growth(axis)
        return found

    def trl_group(self, words: str, vocabulary: int, time_target: float, memory_target: float) -> Group:
        """On-policy js against TRL's two trainers."""
        pair = self.pair(vocabulary)
        workers = {"ours": self.ours(pair, "objective=gkd", "objective.beta=0")}
        workers |= {kind: self.trl(kind, pair) for kind in ("gkd", "distillation")}
        return Group(
            workers,
            [
                Contest(f"trl gkd {words}, time", "ours", "gkd", "time", time_target),
                Contest(f"trl gkd {words}, memory", "ours", "gkd", "memory", memory_target),
                Contest(f"trl distillation {words}, time", "ours", "distillation", "time", 1.0),
                Contest(f"trl distillation {words}, memory", "ours", "distillation", "memory", 1.0),
            ],
        )

    def bare_group(self) -> Group:
        """Against the same mathematics in a plain loop."""
        pair = self.pair(8192)
        workers = {"ours": self.ours(pair, "objective=gkd", "objective.beta=0"), "bare": self.bare(pair)}
        return Group(
            workers,
            [
                Contest("bare loop 8k, time", "ours", "bare", "time", 1.05),
                Contest("bare loop 8k, memory", "ours", "bare", "memory"),
            ],
        )

    def methods_group(self, which: str) -> Group:
        """Methods at the same sizes: of stored states beside kd, of sampled ones beside gkd. Two groups, for
        the processes of one are in memory together."""
        pair = self.pair(8192)
        ways: dict[str, list[str]]
        if which == "stored":
            ways = {
                "kd": ["objective=kd"],
                "sft": ["objective=sft"],
                "kd cached": ["objective=kd", "rollout.teacher_top_k=64"],
                "amm 1": ["objective=amm", "objective.beta=1"],
            }
        else:
            ways = {
                "gkd": ["objective=gkd"],
                "kd": ["objective=kd"],
                "minillm": ["objective=minillm"],
                "distillm": ["objective=distillm", "trainer.validate_every=1000000"],
                "amm .5": ["objective=amm"],
                "amm 0": ["objective=amm", "objective.beta=0"],
            }
        if self.quick:
            ways = {name: ways[name] for name in list(ways)[:1] + list(ways)[-1:]}
        first, *others = ways
        targets = {"amm 1": 1.1, "amm .5": 1.15}
        contests = [
            Contest(f"{name} / {first}", name, first, "time", targets.get(name)) for name in reversed(others)
        ]
        few = "data.train_rows=256"  # the teacher is written down at all of them
        return Group({name: self.ours(pair, few, *overrides) for name, overrides in ways.items()}, contests)

    # -- running -------------------------------------------------------------------------------

    def take_turns(self, group: str, workers: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
        """name -> its seconds an update in every round, its peak memory, and what else it says."""
        environment = {**MALLOC, "OMP_NUM_THREADS": str(self.options.threads)}
        environment["PYTHONPATH"] = f"{ROOT}:{HERE / 'bench'}"
        running: list[Worker] = []
        try:
            for name, command in workers.items():
                log = self.folder / f"{group}_{name}.log".replace(" ", "_").replace("/", "_")
                kept = self.in_cache()
                running.append(Worker(name, command, environment, log))
                evaluated = self.in_cache() > kept  # the pair, first of all: not to count as memory
                if evaluated and not self.quick:
                    running.pop().close()
                    running.append(Worker(name, command, environment, log))
                running[-1].run(1 if self.quick else 2)
            found: dict[str, dict[str, Any]] = {
                worker.name: {"wall_seconds": [], "cpu_seconds": []} for worker in running
            }
            for round_ in range(self.options.rounds):
                for worker in running:
                    answer = worker.run(self.options.updates)
                    for kind, key in (("wall_seconds", "seconds"), ("cpu_seconds", "cpu_seconds")):
                        found[worker.name][kind].append(statistics.fmean(answer.pop(key)))
                    found[worker.name] |= answer
                print(f"{group}: round {round_ + 1} of {self.options.rounds}", file=sys.stderr, flush=True)
            for one in found.values():  # on one thread other work disturbs a process's own time least
                one["seconds"] = one["cpu_seconds" if self.options.threads == 1 else "wall_seconds"]
            return found
        finally:
            for worker in running:
                worker.close()

    def in_cache(self) -> int:
        """How many files runs have left for the next ones."""
        return sum(1 for _ in (self.folder / "cache").rglob("*"))

    def run(self, name: str, group: Group) -> None:
        """All contests of a group."""
        found = self.take_turns(name, group.workers)
        lines = {contest.name: judged(contest, found) for contest in group.contests}
        self.keep(name, lines, found)

    def keep(self, group: str, lines: dict[str, Any], raw: dict[str, Any]) -> None:
        """Write what was found down."""
        options = {key: getattr(self.options, key) for key in ("threads", "rounds", "updates")}
        self.results[group] = {"options": options, "comparisons": lines, "workers": raw}
        self.in_order()
        for name, line in lines.items():
            print(name, json.dumps(line), flush=True)

    def in_order(self) -> None:
        """Write all that is known down, in the order of the groups, whichever was run last."""
        known = [*(name for name in self.groups() if name in self.results), *self.results]
        self.results = {name: self.results[name] for name in known}
        self.path.write_text(json.dumps(self.results, indent=1) + "\n")

    # -- what is no contest of two -------------------------------------------------------------

    def arithmetic(self) -> None:
        """The indispensable products at the rate that this machine has for them, beside whole updates."""
        from arithmetic import share

        workers = {
            "ours": self.ours(self.pair(8192), "objective=gkd", "objective.beta=0"),
            "products": [sys.executable, f"{HERE}/bench/matmuls.py", str(self.options.threads)],
        }
        found = self.take_turns("arithmetic", workers)
        self.keep("arithmetic", share(found["ours"], found["products"], 8192), found)

    def axes(self) -> dict[str, dict[int, Callable[[], list[str]]]]:
        """axis -> value -> the command of a worker; on-policy js."""

        def js(pair: Callable[[], str], *overrides: str) -> Callable[[], list[str]]:
            return lambda: self.ours(pair(), "objective=gkd", "objective.beta=0", *overrides)

        usual = partial(self.pair, 8192)
        found: dict[str, dict[int, Callable[[], list[str]]]] = {
            "vocabulary": {v: js(partial(self.pair, v)) for v in (8192, 32_000, 152_000)},
            "response": {n: js(usual, f"data.max_response_tokens={n}") for n in (64, 128, 256)},
            "batch": {n: js(usual, f"optim.student.batch_size={n}") for n in (8, 16, 32)},
            "student layers": {n: js(partial(self.pair, 8192, 160, n)) for n in (3, 6, 12)},
        }
        if self.quick:
            return {axis: dict(list(points.items())[:2]) for axis, points in found.items()}
        return found

    def growth(self, axis: str) -> None:
        """Time and memory along one axis, over those of its first value in the same round."""
        values = self.axes()[axis]
        names = {f"{axis} {value}": value for value in values}
        group = f"growth, {axis}"
        found = self.take_turns(group, {name: values[value]() for name, value in names.items()})
        first = next(iter(names))
        lines: dict[str, Any] = {}
        for name, value in names.items():
            time_, memory = (judged(Contest(name, name, first, what), found) for what in ("time", "memory"))
            lines[name] = time_ | {"value": value, "memory_ratio": memory["ratio"]}
        self.keep(group, lines, found)


def judged(contest: Contest, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The ratio of a contest, its spread over rounds, and whether the target is reached."""
    ours, other = found[contest.ours], found[contest.other]
    if contest.what == "memory":
        ratios = [ours["peak_mib"] / other["peak_mib"]]
    else:
        ratios = [a / b for a, b in zip(ours["seconds"], other["seconds"], strict=True)]
    ratio = statistics.median(ratios)
    return {
        "ratio": round(ratio, 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "target": contest.target,
        "reached": None if contest.target is None else ratio <= contest.target,
    }


def main() -> None:
    """Run what was asked for, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two rounds of an update in groups cut down")
    parser.add_argument("--only", nargs="+", default=[], help="groups: trl_8k trl_50k bare methods ...")
    parser.add_argument("--again", action="store_true", help="run groups that have results, too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "amd_lightning_bench")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.updates = 2, 1
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(options, options.folder)
    groups = bench.groups()
    known = {*groups, *(name.split(",")[0] for name in groups)}
    if unknown := set(options.only) - known:
        parser.error(f"no group {', '.join(sorted(unknown))}: {', '.join(sorted(known))}")
    failed = []
    for name, run in groups.items():
        head = name.split(",")[0]
        wanted = not options.only or {name, head} & set(options.only)
        if not wanted or (name in bench.results and not options.again):
            continue
        started = time.perf_counter()
        try:
            run()
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    bench.in_order()
    report(bench.results, options.folder if options.quick else HERE)
    if failed:
        sys.exit(f"error: failed: {'; '.join(failed)}")


def report(results: dict[str, Any], folder: Path) -> None:
    """table.md, bench.png, and the tables of README.md where there is one."""
    from report import draw, inserted, table

    draw(results, folder / "bench.png")
    (folder / "table.md").write_text(table(results))
    readme = folder / "README.md"
    if readme.is_file():
        readme.write_text(inserted(readme.read_text(), table(results)))


if __name__ == "__main__":
    main()
