"""A sweep from its command line to its summary; `index.py` keeps account of the points in between."""

import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from amd_lightning import conf_dir
from amd_lightning.analysis.runs import read_results
from amd_lightning.cli import runs_something
from amd_lightning.errors import ConfigError, UserError
from amd_lightning.sweeps import launched
from amd_lightning.sweeps.index import Measured, Row, Status, SweepIndex
from amd_lightning.sweeps.points import composed, parsed, plain_key, points, sweeping
from amd_lightning.sweeps.search import SWEEPER, best_point, register
from amd_lightning.training import preemption

RESUME = "sweep_resume"
OF_THE_SWEEP = ("sweep", "cluster")
"""Groups that say which points there are and where they run, and nothing of what a point is."""


def resumed(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The command line with that of the sweep that is to go on in place of `sweep_resume=DIR`, and whether
    there is such a sweep.

    Raises:
        ConfigError: what stands beside it would make other points.
        UserError: no sweep is there.
    """
    asked = [text for text in arguments if plain_key(text) == RESUME]
    if not asked:
        return list(arguments), False
    beside = [text for text in arguments if text not in asked]
    where = [text for text in beside if plain_key(text) == "cluster" or plain_key(text).startswith("hydra")]
    wrong = [
        f"{text}: {RESUME}=DIR runs the points of DIR as they were; leave it out, or start a new sweep"
        for text in beside
        if text not in (*where, "-m", "--multirun")
    ]
    if len(asked) > 1:
        wrong.append(f"{RESUME} is given {len(asked)} times: one sweep at a time")
    if wrong:
        raise ConfigError(wrong)
    folder = Path(asked[0].partition("=")[2].strip("'\"")).expanduser()
    index = SweepIndex(folder)
    return _with(index.command()["arguments"], *where, _in_folder(index.folder)), True


def begin(arguments: Sequence[str], go_on: bool) -> tuple[list[str], SweepIndex | None]:
    """Write down the sweep of a command line that was checked; nothing where it only asks for one.

    Args:
        arguments: of the command line, `resumed`.
        go_on: whether it is a sweep that began before.

    Returns:
        The arguments with the sweep's directory among them, and its index; None where it is no sweep.

    Raises:
        UserError: the directory holds another sweep, or its scheduler is not on this machine.
        OSError: the directory cannot be used.
    """
    line = get_args_parser().parse_args(list(arguments))
    if line.cfg and line.resolve:  # Hydra knows the directory of a run that begins, and this one never will
        return _with(arguments, "output_dir=${hydra:run.dir}"), None
    if not runs_something(line):
        return list(arguments), None
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        multirun, of_file = sweeping(line.overrides, line.multirun, line.config_dir)
        if not multirun:
            return list(arguments), None
        fixed = [text for text in line.overrides if not parsed(text).is_sweep_override()]
        of_all = composed(fixed, line.config_dir)
        hydra = of_all.hydra
        index = SweepIndex(Path(hydra.sweep.dir))
        found = [parsed(text) for text in (*of_file, *line.overrides)]
        swept = list(dict.fromkeys(one.get_key_element() for one in found if one.is_sweep_override()))
        sweeper = OmegaConf.select(hydra, "runtime.choices")["hydra/sweeper"]
        if sweeper == SWEEPER and find_spec("optuna") is None:
            raise UserError("+sweep=optuna needs optuna: pip install -e '.[optuna]'")
        if sweeper == SWEEPER:
            register()
        if problems := list(launched.problems(of_all)):
            raise ConfigError(problems)
        launched.require_scheduler(of_all)
        known = sweeper == "basic"
        labels = [label(point, swept) for point in points([*of_file, *line.overrides], True)] if known else []
    requeued = preemption.restarted() and index.exists and index.command()["arguments"] == list(arguments)
    if go_on or requeued:
        index.go_on(labels)
    else:
        index.begin(arguments, swept, labels)
    return _with(arguments, _in_folder(index.folder)), index


def label(overrides: Sequence[str], swept: Sequence[str]) -> str:
    """The overrides that tell a point from the others, as one text."""
    return shlex.join(text for text in overrides if text.partition("=")[0] in swept)


def own(overrides: Sequence[str]) -> list[str]:
    """The overrides of one point that make it by itself, as a single run."""
    return [text for text in overrides if plain_key(text) not in OF_THE_SWEEP]


def measured(folder: Path, metric: str, value: float | None) -> Measured:
    """What a finished run came to; `metric` may be "auto", the task's own."""
    results = read_results(folder)
    keys, cached = results.get("cache_keys", {}), results.get("cost", {}).get("cached", {})
    hits = sum(bool(cached.get(name)) for name in keys)
    name = str(results.get("quality", metric)) if metric == "auto" else metric
    return Measured(name, value, f"{hits}/{len(keys)}" if keys else "")


def end(index: SweepIndex, stopped: bool = False) -> list[str]:
    """The summary on the terminal, and pictures in the sweep's directory.

    Args:
        stopped: whether a signal ended the sweep.

    Returns:
        What to say of it as an error, one line for each point that failed, was stopped or never ran; [] if
        there is none.
    """
    from rich.console import Console

    from amd_lightning.analysis.sweeps import draw_heat_map, sweep_table

    rows = index.end(stopped)
    swept = index.command()["swept"]
    console = Console()
    console.print(sweep_table(rows))
    if {"objective.beta", "objective.distance"} <= set(swept):
        path = draw_heat_map(index.folder, rows)
        if path:
            console.print(f"beta x distance: {path}", markup=False, soft_wrap=True)
    if best := best_point(index.folder, rows):
        console.print(best, markup=False, soft_wrap=True)
    console.print(f"All points: {index.folder / 'index.csv'}", markup=False, soft_wrap=True)
    return _complaints(index, rows)


def _complaints(index: SweepIndex, rows: Sequence[Row]) -> list[str]:
    lines = []
    for status, verb in ((Status.failed, "failed"), (Status.stopped, "were stopped")):
        found = [f"  - {row.directory or row.point}: {row.error}" for row in rows if row.status == status]
        lines += [f"{len(found)} of the sweep's points {verb}:", *found] if found else []
    if rest := sum(row.status in (Status.waiting, Status.running, Status.requeued) for row in rows):
        lines.append(f"{rest} of the sweep's points have not come to an end")
    if not lines:
        return []
    return [*lines, f"run them again: python -m amd_lightning.run {RESUME}={shlex.quote(str(index.folder))}"]


def _with(arguments: Sequence[str], *overrides: str) -> list[str]:
    """The arguments with overrides behind their own; Hydra's parser wants all of them in one place."""
    own = get_args_parser().parse_args(list(arguments)).overrides
    place = len(arguments) - list(reversed(arguments)).index(own[-1]) if own else len(arguments)
    return [*arguments[:place], *overrides, *arguments[place:]]


def _in_folder(folder: Path) -> str:
    """The override that puts a sweep there."""
    text = str(folder).replace("'", r"\'")
    if "${" in text:
        raise UserError(f"the sweep's directory {folder} reads as an interpolation: choose another one")
    return f"hydra.sweep.dir='{text}'"
