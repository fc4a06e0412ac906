"""The index of a sweep: what every point is, where it runs, how it stands and what it came to.

    FOLDER/index.csv         a row a point, written anew at every change (under a lock, by rename), so that it
                             can be read at any time
    FOLDER/sweep.json        the command line, from which the sweep goes on
    FOLDER/.locks/           index: held while the index is written; N: by the process that runs point N

Any number of processes, on any number of machines that share the directory, run points at the same time.
"""

import csv
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from amd_lightning.errors import Interrupted, Preempted, Pruned, UserError

INDEX, COMMAND, LOCKS = "index.csv", "sweep.json", ".locks"
INTERRUPTED = "interrupted"
KILLED = "its process ended without a word (killed, or out of memory?); its run.log says how far it came"
STOPPED = "stopped with the sweep"


class Status(StrEnum):
    """How a point stands."""

    waiting = "waiting"
    running = "running"
    done = "done"
    failed = "failed"
    pruned = "pruned"  # given up for those that do better
    stopped = "stopped"  # by a signal, to it or to the sweep; it goes on with the sweep
    requeued = "requeued"  # stopped by a batch system, in whose queue its job stands again


class Row(NamedTuple):
    """A point of a sweep.

    Attributes:
        overrides: those that tell it from the other points.
        directory: of its run, below the sweep's own.
        metric, value: what the run returns to a sweeper.
        found: how many of its artifacts were in the cache, of how many.
        error: why it failed, or what stopped it, in one line.
    """

    point: int
    overrides: str
    directory: str = ""
    status: str = Status.waiting
    metric: str = ""
    value: float | None = None
    seconds: float | None = None
    found: str = ""
    error: str = ""


class Measured(NamedTuple):
    """What a point came to; see `Row`."""

    metric: str
    value: float | None
    found: str


class SweepIndex:
    """The index in a sweep's directory, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @property
    def exists(self) -> bool:
        """Whether a sweep has begun here."""
        return (self.folder / COMMAND).exists()

    def begin(self, arguments: Sequence[str], swept: Sequence[str], points: Sequence[str]) -> None:
        """Write down a new sweep.

        Args:
            arguments: of the command line.
            swept: the keys of the overrides that tell points apart.
            points: those overrides of every point, in order; empty where only the sweeper knows them.

        Raises:
            UserError: there is a sweep already.
            OSError: the directory cannot be written.
        """
        (self.folder / LOCKS).mkdir(parents=True, exist_ok=True)
        with self._lock("index"):
            if (self.folder / INDEX).exists():
                raise UserError(
                    f"{self.folder} holds a sweep already: go on with it, sweep_resume={self.folder}, "
                    "or choose another directory with hydra.sweep.dir=DIR"
                )
            command = json.dumps({"arguments": list(arguments), "swept": list(swept)}, indent=2)
            (self.folder / COMMAND).write_text(command + "\n", encoding="utf-8")
            self._write([Row(number, words) for number, words in enumerate(points)])

    def go_on(self, points: Sequence[str]) -> None:
        """Let what is missing, failed or was stopped run again.

        Raises:
            UserError: the sweep has other points now than when it began.
        """
        with self._lock("index"):
            rows = self.rows()
            if points and [row.overrides for row in rows] != list(points):
                raise UserError(
                    f"the sweep in {self.folder} would have other points now (has a file in conf/sweep "
                    "changed?): start a new sweep"
                )
            ended = (Status.done, Status.pruned)
            kept = [row.status in ended or self.is_claimed(row.point) for row in rows]
            self._write(
                [
                    row if keep else Row(row.point, row.overrides, row.directory)
                    for row, keep in zip(rows, kept, strict=True)
                ]
            )

    def command(self) -> Mapping[str, Any]:
        """`arguments` and `swept` of `begin`.

        Raises:
            UserError: no sweep is here.
        """
        try:
            found = json.loads((self.folder / COMMAND).read_text(encoding="utf-8"))
            return {"arguments": list(found["arguments"]), "swept": list(found["swept"])}
        except FileNotFoundError as error:
            raise UserError(
                f"{self.folder} holds no sweep (no {COMMAND}): name the directory of one, its hydra.sweep.dir"
            ) from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{self.folder / COMMAND} is damaged ({error}): restore it, or start anew"
            ) from error

    def rows(self) -> list[Row]:
        """All points, by number.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / INDEX
        if not path.exists():
            return []
        try:
            with path.open(encoding="utf-8", newline="") as file:
                return [_row(cells) for cells in csv.DictReader(file)]
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(
                f"{path} is damaged ({error}): restore it, or start the sweep anew in another directory"
            ) from error

    def run(self, point: int, overrides: str, directory: str, make: Callable[[], Measured]) -> float | None:
        """Run a point, unless the index has it as done; the index tells of it all along.

        Args:
            point: its number.
            overrides, directory: as in `Row`.
            make: the run itself. Whatever it raises is noted, and raised.

        Returns:
            The value of the metric; None where it was given up.

        Raises:
            UserError: another process runs the point.
        """
        with self._claimed(point):
            if row := self.has_done(point, overrides, directory):
                return row.value
            new = Row(point, overrides, directory, Status.running)
            self._change(new)
            started = time.perf_counter()
            try:
                measured = make()
            except Pruned as error:
                gone = new._replace(status=Status.pruned, metric=error.metric, value=error.value)
                self._change(gone._replace(seconds=time.perf_counter() - started))
                return None
            except BaseException as error:
                status, words = _ended_by(error)
                seconds = time.perf_counter() - started
                self._change(new._replace(status=status, seconds=seconds, error=words))
                raise
            seconds = time.perf_counter() - started
            self._change(new._replace(status=Status.done, seconds=seconds, **measured._asdict()))
            return measured.value

    def has_done(self, point: int, overrides: str, directory: str) -> Row | None:
        """The row of a point that need not run; None where it has to."""
        row = next((row for row in self.rows() if row.point == point), None)
        finished = (self.folder / directory / "results.json").exists()
        done = row is not None and row.overrides == overrides and row.status == Status.done
        return row if done and finished else None

    def failed(self, point: int, words: str) -> None:
        """Note why a point that was to be queued again is not."""
        row = next(row for row in self.rows() if row.point == point)
        self._change(row._replace(status=Status.failed, error=words))

    def end(self, stopped: bool = False) -> list[Row]:
        """All points, when nobody waits for them any more: those that no process runs have failed.

        Args:
            stopped: whether a signal ended the sweep: a launcher then kills the processes of its points, and
                those were stopped with it.
        """
        status, words = (Status.stopped, STOPPED) if stopped else (Status.failed, KILLED)
        for row in self.rows():
            if row.status == Status.running and not self.is_claimed(row.point):
                self._change(row._replace(status=status, error=words))
        return self.rows()

    def is_claimed(self, point: int) -> bool:
        """Whether a process runs the point."""
        try:
            with self._lock(str(point), wait=False):
                return False
        except Timeout:
            return True

    @contextmanager
    def _claimed(self, point: int) -> Iterator[None]:
        try:
            lock = self._lock(str(point), wait=False)
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"another process runs point {point} of {self.folder}: wait for it or end it"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _lock(self, name: str, wait: bool = True) -> FileLock:
        (self.folder / LOCKS).mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / LOCKS / name, timeout=-1 if wait else 0)

    def _change(self, changed: Row) -> None:
        with self._lock("index"):
            rows = {row.point: row for row in self.rows()} | {changed.point: changed}
            self._write(sorted(rows.values()))

    def _write(self, rows: Sequence[Row]) -> None:
        temporary = self.folder / f"{INDEX}.tmp"
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Row._fields)
            for row in rows:
                seconds = None if row.seconds is None else round(row.seconds, 1)
                writer.writerow(row._replace(status=str(row.status), seconds=seconds))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.folder / INDEX)


def _row(cells: Mapping[str, str]) -> Row:
    def number(name: str) -> float | None:
        return float(cells[name]) if cells[name] else None

    words = {name: cells[name] for name in ("overrides", "directory", "metric", "found", "error")}
    status = Status(cells["status"])
    return Row(
        point=int(cells["point"]), status=status, value=number("value"), seconds=number("seconds"), **words
    )


def _ended_by(error: BaseException) -> tuple[Status, str]:
    """How a point stands that raised this, and what to say of it."""
    if isinstance(error, Preempted):
        return Status.requeued, ""
    if isinstance(error, KeyboardInterrupt):
        stopped = error if isinstance(error, Interrupted) else Interrupted()
        saved = f" after update {stopped.update} of {stopped.updates}, saved"
        return Status.stopped, signal.Signals(stopped.signum).name + ("" if stopped.update is None else saved)
    return Status.failed, one_line(error) if isinstance(error, Exception) else INTERRUPTED


def one_line(error: Exception) -> str:
    """What to say of a point's error; a bug's with its kind."""
    words = " ".join(str(error).split())
    return words if isinstance(error, UserError) else f"{type(error).__name__}: {words}"
