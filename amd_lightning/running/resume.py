"""What a run does with a directory that an earlier one left: begins, goes on, has nothing to do, or refuses.

Here stand the rules of `resume=`; how training comes back from a checkpoint is `training/state.py`.
"""

import json
import logging
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from filelock import FileLock, Timeout

from amd_lightning.errors import Interrupted, UserError
from amd_lightning.sweeps.points import plain_key
from amd_lightning.training.checkpoint_files import FOLDER, all_last
from amd_lightning.training.preemption import interruption, is_first_process

log = logging.getLogger(__name__)

FREE = (
    "output_dir resume logger cache trainer.progress trainer.threads trainer.time_budget "
    "trainer.checkpoint_every trainer.keep_checkpoints trainer.devices trainer.nodes "
    "trainer.strategy trainer.teacher"
).split()
"""Knobs and sections that may change while a run is interrupted: they say how it is shown and where it lies.
(threads and devices: other sums are rounded otherwise, and other devices draw from other streams.)"""

LOCK = ".lock"
"""In the run's directory; held by the process that runs there."""
COMMENT = "# command: "
"""How config.yaml begins: "# command: python -m amd_lightning.run ..."."""

UPDATES = "optim.student.updates"
SHOWN = 12
"""Differences that are listed."""


class Start(NamedTuple):
    """Where a run begins.

    Attributes:
        folder: the run's directory.
        checkpoint: what training goes on from, a file or the folder of checkpoints; None begins anew.
        finished: results.json, where there is nothing to do.
    """

    folder: Path
    checkpoint: Path | None = None
    finished: Mapping[str, Any] | None = None


def start(wanted: str, folder: Path, config: Mapping[str, Any]) -> Start:
    """Where a run with this configuration begins.

    Args:
        wanted: "auto", "never", or the path of a run's directory or of a checkpoint.
        folder: the directory that Hydra gave the run.
        config: plain values, as they are written to config.yaml.

    Raises:
        UserError: the directory holds another run, or one where none is wanted; there is nothing at the path.
    """
    if wanted == "never":
        if _holds_a_run(folder):
            raise UserError(
                f"resume=never, but {folder} holds a run: choose another hydra.run.dir, or leave resume=auto"
            )
        return Start(folder)
    if wanted == "auto":
        return _gone_on(folder, folder / FOLDER, config) if _holds_a_run(folder) else Start(folder)
    path = Path(wanted).expanduser().absolute()
    if not path.exists():
        raise UserError(f"resume={wanted}: there is no such directory or checkpoint")
    home = path if path.is_dir() else path.parent.parent
    if not (home / "config.yaml").is_file():
        raise UserError(f"resume={wanted}: {home} is no run's directory, it has no config.yaml")
    return _gone_on(home, home / FOLDER if path.is_dir() else path, config)


# -- the command that began it -------------------------------------------------------------------------


def with_command(command: str, config: str) -> str:
    """config.yaml's text with the command in its first line: a run that is killed leaves it behind."""
    return f"{COMMENT}{' '.join(command.splitlines())}\n{config}"


def completed(arguments: Sequence[str]) -> list[str]:
    """A command line that names no experiment beside `resume=PATH`, with the rest of the command that began
    the run; what it says itself holds. Any other command line as it is."""
    asked = [text for text in arguments if text.startswith("resume=")]
    beside = [text for text in arguments if text not in asked]
    wanted = asked[0].partition("=")[2].strip("'\"") if len(asked) == 1 else "auto"
    if wanted in ("auto", "never") or any(text.startswith(("+", "~")) for text in beside):
        return list(arguments)
    path = Path(wanted).expanduser()
    before = _began_by(path if path.is_dir() else path.parent.parent)
    said = {plain_key(text) for text in beside}
    return [*(text for text in before if plain_key(text) not in said), *arguments]


def _began_by(folder: Path) -> list[str]:
    """The overrides in a run's config.yaml; none where an earlier version wrote it."""
    try:
        with (folder / "config.yaml").open(encoding="utf-8") as file:
            first = file.readline()
    except (OSError, UnicodeDecodeError):
        return []  # told of when the run is looked at
    return shlex.split(first.removeprefix(COMMENT))[3:] if first.startswith(COMMENT) else []


def _holds_a_run(folder: Path) -> bool:
    """Whether there is something to go on from, or a result."""
    return (folder / "results.json").is_file() or bool(all_last(folder / FOLDER))


def _gone_on(folder: Path, checkpoint: Path, config: Mapping[str, Any]) -> Start:
    before = _read(folder / "config.yaml")
    if changed := list(refused_changes(before, config)):
        more = [f"... and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
        raise UserError(
            "\n  - ".join(
                [
                    f"{folder} holds a run of another configuration; set these back (knob: there -> here), "
                    "or choose another hydra.run.dir:",
                    *changed[:SHOWN],
                    *more,
                ]
            )
        )
    results = _read(folder / "results.json")
    longer = _flat(config).get(UPDATES) != _flat(before).get(UPDATES, _flat(config).get(UPDATES))
    finished = bool(results) and results.get("stopped_at") is None and not longer and checkpoint.is_dir()
    return Start(folder, checkpoint, results if finished else None)


def refused_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The differences that a run cannot go on with, one line each.

    A knob that one of the two does not know is none: its version had no such knob.
    """
    old, new = _flat(before), _flat(now)
    for key in sorted(old.keys() & new.keys()):
        free = any(key == name or key.startswith(name + ".") for name in FREE)
        if free or old[key] == new[key]:
            continue
        line = f"{key}: {_said(old[key])} -> {_said(new[key])}"
        if key != UPDATES:
            yield line
        elif new[key] < old[key]:
            yield f"{line} (fewer than it was begun with)"
        elif reason := _spans_the_run(new):
            yield f"{line} ({reason} spans the whole run: it would have begun otherwise)"
        elif new.get("objective.adaptive_beta.step") and not _validates_after(old[key], new):
            yield (
                f"{line} (objective.adaptive_beta looked at a validation after update {old[key]}, which the "
                "longer run has not: trainer.validate_every does not divide it)"
            )


def _validates_after(update: int, config: Mapping[str, Any]) -> bool:
    every = int(config.get("trainer.validate_every") or 0)
    return every > 0 and update % every == 0


def _spans_the_run(config: Mapping[str, Any]) -> str | None:
    """What depends on the number of updates from the first one on; None for nothing."""
    for name in ("student", "critic"):
        schedule = config.get(f"optim.{name}.schedule")
        if schedule != "constant":
            return f"optim.{name}.schedule={schedule}"
    if config.get("objective.distance") == "moment_matching" and config.get("critic.alpha_start") is not None:
        return "critic.alpha_start"
    if config.get("rollout.replay.capacity") and config.get("rollout.replay.decay"):
        return "rollout.replay.decay"
    return None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        found |= _flat(value, name + ".") if isinstance(value, Mapping) else {name: value}
    return found


def _said(value: Any) -> str:
    return str(json.dumps(value) if value is None or isinstance(value, bool) else value)


def _read(path: Path) -> dict[str, Any]:
    """A YAML or JSON file; empty where there is none.

    Raises:
        UserError: it cannot be read.
    """
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: remove the directory, or choose another") from error
    return found if isinstance(found, dict) else {}


# -- one process a directory ---------------------------------------------------------------------------


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within, no other process runs in this directory. The operating system's lock: it goes with its process,
    however that ends.

    Raises:
        UserError: another process runs there.
    """
    if not is_first_process():
        yield
        return
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another process runs in {folder}: wait for it, end it, or choose another hydra.run.dir"
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process runs in this directory."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


# -- what is said ------------------------------------------------------------------------------------


def unfinished_beside(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """The newest unfinished run of this configuration in the directories beside; None where there is none.

    It is told of and not taken up, but by a job that was queued again: the code may have changed since.
    """
    try:
        beside = sorted((path for path in folder.parent.iterdir() if path != folder), reverse=True)
        for path in beside:
            if (path / "results.json").is_file() or not all_last(path / FOLDER) or is_held(path):
                continue
            before = _read(path / "config.yaml")
            same_length = _flat(before).get(UPDATES) == _flat(config).get(UPDATES)
            if before and same_length and not list(refused_changes(before, config)):
                return path
    except (OSError, UserError):
        pass
    return None


def going_on(command: str, folder: Path) -> str:
    """The command line that goes on with a run."""
    return f"{command} {shlex.quote(f'resume={folder}')}"


def how_to_go_on(stopped: KeyboardInterrupt, folder: Path, command: str) -> Interrupted:
    """A run that was stopped, with what to say of it."""
    signum = getattr(stopped, "signum", signal.SIGINT)
    update, updates = getattr(stopped, "update", None), getattr(stopped, "updates", None)
    found = interruption(signum, update, updates)
    found.words = vars(stopped).get("words", found.words)  # of an earlier stage
    if all_last(folder / FOLDER):
        where = "" if update is None else f" after update {update} of {updates}"
        found.words = f"stopped{where}; go on with: {going_on(command, folder)}"
    return found
