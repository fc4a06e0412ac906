"""The entry: `python -m amd_lightning.run +experiment=samsum`.

Composes a configuration with Hydra, runs its stages, and leaves results, figures and the student in the
run's directory. Returns the validation metric that a sweeper optimises.
"""

import logging
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amd_lightning import conf_dir
from amd_lightning.cli import check_command_line, knobs, one_line, validated
from amd_lightning.config.schema import RunConfig
from amd_lightning.errors import (
    ConfigError,
    Interrupted,
    NonFiniteError,
    PointError,
    Preempted,
    Pruned,
    UserError,
)
from amd_lightning.running.description import without_secrets
from amd_lightning.running.directory import remove_empty
from amd_lightning.running.launching import outside
from amd_lightning.running.one_run import NO_DIRECTORY, run
from amd_lightning.running.resume import completed, unfinished_beside
from amd_lightning.sweeps.index import Measured, SweepIndex
from amd_lightning.sweeps.index import one_line as point_error
from amd_lightning.sweeps.search import report_of
from amd_lightning.sweeps.study import Report, has_study
from amd_lightning.sweeps.sweep import begin, end, label, measured, own, resumed
from amd_lightning.training import preemption

log = logging.getLogger("amd_lightning")


def main() -> None:
    """Run what the command line says; an error that the user can mend is one line, and status 1."""
    # The flag first, wherever it stood: Hydra's parser loses overrides that stand on both sides of it.
    arguments = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    sys.argv[1:] = arguments
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(knobs() + "\n")
        return
    # Hydra then raises what a run raises, and it is said once, here, rather than wrapped.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    index = None
    try:
        arguments, go_on = resumed(completed(arguments))
        check_command_line(arguments)
        sys.argv[1:], index = begin(arguments, go_on)
        with _terminated_as_interrupted():
            hydra_main()
        if _refusals:
            raise _refusals[0]
        if index is not None and (complaints := end(index)):
            sys.exit("error: " + "\n".join(complaints))
    except KeyboardInterrupt as stopped:
        signum = getattr(stopped, "signum", signal.SIGINT)
        if words := getattr(stopped, "words", Interrupted.words):
            sys.stderr.write(f"{words}\n")
        if index is not None:
            sys.stderr.write("\n".join(end(index, stopped=True)) + "\n")
        if isinstance(stopped, Preempted):
            _queued_again(stopped)
        sys.exit(128 + signum)  # as shells have it
    except Exception as error:
        complaints = end(index) if index is not None else []
        words = _in_words(error)
        if words is None:
            raise
        sys.exit("error: " + "\n".join(complaints or [str(words)]))


def _queued_again(stopped: Preempted) -> None:
    try:
        preemption.queue_again(stopped)
    except UserError as error:
        sys.exit(f"error: {error}")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Within, SIGTERM ends the run as Ctrl-C does; by itself it would leave nothing said."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_words(error: Exception) -> str | None:
    """What to say of an error; None for a bug of ours, which keeps its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return one_line(error)
    if type(error).__module__.startswith("submitit."):  # a job that was refused, or ended without a word
        return point_error(error)
    if isinstance(error, OSError) and not _begun:
        return NO_DIRECTORY.format(error)
    return None


# What Hydra, which calls `hydra_main`, does not hand back to `main`.
_begun: list[str] = []
_refusals: list[UserError] = []


@hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")
def hydra_main(composed: DictConfig) -> float | None:
    """One run, or one point of a sweep."""
    state = HydraConfig.get()
    overrides = list(state.overrides.task)
    folder = Path(state.runtime.output_dir)
    _begun.append(folder.name)
    single = state.mode is RunMode.RUN

    def make(report: Report | None = None) -> tuple[RunConfig, float | None]:
        config = validated(composed, overrides, refuse_ignored=single)
        if not single and outside() is not None and preemption.SUBMITIT not in os.environ:
            raise ConfigError(
                ["a sweep is started by one process: give each point its own with trainer.devices=N"]
            )
        _refuse_two_places(config.resume, list(state.overrides.hydra), single)
        plain = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
        assert isinstance(plain, dict)
        kept = [override for override in own(overrides) if not override.startswith("resume=")]
        if single and preemption.restarted() and config.resume == "auto" and preemption.is_first_process():
            config.resume = str(unfinished_beside(folder, without_secrets(plain)) or "auto")
        return config, run(config, plain, shlex.join(["python", "-m", "amd_lightning.run", *kept]), report)

    try:
        if single:
            return make()[1]
        index = SweepIndex(Path(state.sweep.dir))
        if not index.exists:
            return make()[1]
        report = report_of(index.folder, state.job.num, str(composed.evaluation.metric))
        return _point(index, state.job.num, overrides, folder, lambda: make(report))
    except UserError as error:
        if not single:
            raise
        _refusals.append(error)  # raised here, Hydra would print the overrides before main's one line
        return None
    finally:
        if single or preemption.is_first_process():  # the ranks of a point have one directory
            remove_empty(folder)


def _point(
    index: SweepIndex,
    number: int,
    overrides: Sequence[str],
    folder: Path,
    make: Callable[[], tuple[RunConfig, float | None]],
) -> float | None:
    """One point of a sweep; whatever it raises comes out as what can travel between processes."""

    def all_of_it() -> Measured:
        try:
            config, value = make()
        except NonFiniteError as error:
            if not has_study(index.folder):
                raise
            raise Pruned("", None, 0) from error  # what a search is to learn, and no accident
        return measured(folder, config.evaluation.metric, value)

    try:
        words = label(overrides, index.command()["swept"])
        directory = str(folder.relative_to(index.folder))
        if preemption.is_first_process():
            return index.run(number, words, directory, all_of_it)
        if not index.has_done(number, words, directory):  # as another rank, which keeps no account of it
            make()
        return None
    except Preempted as stopped:
        if preemption.SUBMITIT not in os.environ:
            raise  # the job is the whole sweep's
        try:
            preemption.queue_again(stopped)
        except Exception as error:
            index.failed(number, point_error(error))
            raise PointError(point_error(error)) from None
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()  # Hydra keeps the first point's alone, for the end of the sweep
        raise PointError(point_error(error)) from None


def _refuse_two_places(resume: str, hydra_overrides: Sequence[str], single: bool) -> None:
    """A path of `resume` says where the run goes on; so may nothing else.

    Raises:
        ConfigError: something else does.
    """
    if resume in ("auto", "never"):
        return
    if not single:
        raise ConfigError([f"resume={resume} is one run's; a sweep goes on by hydra.sweep.dir=DIR"])
    if any(override.startswith("hydra.run.dir=") for override in hydra_overrides):
        raise ConfigError([f"hydra.run.dir would be ignored with resume={resume}; leave one of them out"])


if __name__ == "__main__":
    main()
