"""A run as a job of SLURM, by itself (sbatch) or through Hydra's submitit launcher: stopped and queued again.

SIGUSR1 or SIGUSR2 says that the job is about to be stopped, and is to be queued again. Training comes to the
end of its update first and saves (`stopping.py`); whatever else is under way is dropped at once, since it is
made again. Then the run unwinds, and last of all its job is put back (`queue_again`).

SIGTERM says that the job is about to be stopped, and not why. The state is saved, and the process waits:
SLURM queues a preempted job again only if it had to kill it; one that ends by itself counts as finished.
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from amd_lightning.errors import Interrupted, Preempted, UserError

log = logging.getLogger(__name__)

AGAIN = (signal.SIGUSR1, signal.SIGUSR2)
"""Those that have a job queued again: SLURM users ask for the first, submitit for the second."""
PATIENCE_S = 3600.0
"""How long a process waits to be killed; our choice, above any grace that a partition may give."""
SUBMITIT = "SUBMITIT_EXECUTOR"


def in_a_job() -> bool:
    """Whether this process belongs to a job that can be queued again."""
    return SUBMITIT in os.environ or "SLURM_JOB_ID" in os.environ


def signals() -> tuple[signal.Signals, ...]:
    """Those that stop a run because a batch system says so; none outside of one."""
    return AGAIN if in_a_job() else ()


def restarted() -> bool:
    """Whether this job ran before."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def is_first_process() -> bool:
    """Whether this process, of those that are one run, speaks for all: it alone locks, and queues again."""
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "RANK", "LOCAL_RANK"))


def interruption(number: int, update: int | None = None, updates: int | None = None) -> Interrupted:
    """What a signal raises, see `Interrupted`."""
    kind = Preempted if in_a_job() and number != signal.SIGINT else Interrupted
    return kind(number, update, updates)


@contextmanager
def heard() -> Iterator[None]:
    """Within, a job's signals raise `Preempted` at once; while it trains, `Stopping` takes them over."""
    if not in_a_job() or threading.current_thread() is not threading.main_thread():
        yield
        return
    own = os.getpid()
    raised = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if os.getpid() == own and not raised:  # a forked worker gets it, too
            raised = True
            raise interruption(number)

    numbers = (*AGAIN, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            # By default the next one would end a process that is on its way to queue itself again.
            left = number in AGAIN and handler == signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if left else handler)


def wait_for_the_end(stopped: Interrupted) -> Interrupted:
    """What was stopped. In a job and after SIGTERM it waits to be killed, and comes back if the batch system
    wants the job queued again after all, or after `PATIENCE_S`.

    Raises:
        KeyboardInterrupt: it is not to wait.
    """
    if not isinstance(stopped, Preempted) or stopped.signum in AGAIN:
        return stopped
    log.warning("%s; waiting for the batch system to end this process", stopped.words)
    stopped.signum = _wait() or stopped.signum
    return stopped


def _wait() -> int | None:
    """Wait to be killed; a signal of `AGAIN` that comes in place of that."""
    found: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        found.append(number)

    before = {number: signal.signal(number, note) for number in AGAIN}
    deadline = time.monotonic() + PATIENCE_S
    try:
        while not found and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return found[0] if found else None


def queue_again(stopped: Preempted) -> NoReturn:
    """Have the batch system queue this job again, and end the process.

    Raises:
        UserError: it refuses.
        Exception: of submitit's, its job was stopped too often.
    """
    if stopped.signum in AGAIN:
        if SUBMITIT in os.environ:
            number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")
            handler = signal.getsignal(number)
            if callable(handler):
                handler(number, None)  # it writes down what is to run, queues that, and exits
        elif is_first_process():
            _requeue(os.environ["SLURM_JOB_ID"])
        _wait()  # the processes of a job end together, by its hand
    raise SystemExit(128 + stopped.signum)


def _requeue(job: str) -> None:
    try:
        found = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"job {job} cannot be queued again: {error}") from error
    if found.returncode:
        words = " ".join(found.stderr.split())
        raise UserError(f"job {job} is not queued again ({words}): submit it anew, with sbatch --requeue")
    log.warning("job %s is queued again", job)
