"""A run as a batch system's job, without one: signals, who queues it again, and what goes on afterwards."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amd_lightning.errors import Interrupted, Preempted, UserError
from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.training import preemption
from amd_lightning.training.stopping import Stopping
from tests import test_run
from tests.test_run import MICRO, Command

command = test_run.command


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """This process is job 7 of a SLURM whose scontrol writes its arguments to the file."""
    for name in (preemption.SUBMITIT, "SLURM_RESTART_COUNT", "SLURM_PROCID", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(preemption, "PATIENCE_S", 0.0)
    (tmp_path / "bin").mkdir()
    said = tmp_path / "scontrol.txt"
    (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/sh\necho $* >> '{said}'\n")
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return said


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # until the interpreter has called the handler


def test_outside_of_a_job_nothing_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", preemption.SUBMITIT):
        monkeypatch.delenv(name, raising=False)
    assert preemption.signals() == ()
    assert type(preemption.interruption(signal.SIGTERM)) is Interrupted
    before = signal.getsignal(signal.SIGUSR1)
    with preemption.heard(), Stopping().listening():
        assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.parametrize(
    "sent, kept",
    [
        ([signal.SIGUSR1], signal.SIGUSR1),
        ([signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM], signal.SIGUSR2),  # told, then at its end
        ([signal.SIGTERM, signal.SIGUSR2], signal.SIGUSR2),  # some clusters send both
        ([signal.SIGTERM], signal.SIGTERM),
    ],
)
def test_training_ends_its_update_first(sent: list[int], kept: int, job: Path) -> None:
    stopping = Stopping()
    with stopping.listening():
        for number in sent:
            send(number)
        assert stopping.after_update(0.1)
    assert stopping.signum == kept
    assert isinstance(preemption.interruption(kept), Preempted)


def test_a_second_term_does_not_wait(job: Path) -> None:
    stopping = Stopping()
    with stopping.listening():
        send(signal.SIGTERM)
        with pytest.raises(Preempted):
            send(signal.SIGTERM)


def in_a_fork(act: Callable[[], None]) -> int:
    """The status of a forked process that does it."""
    child = os.fork()
    if child == 0:
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_worker_passes_over_what_its_process_is_told(job: Path) -> None:
    stopping = Stopping()

    def both() -> None:
        send(signal.SIGUSR1)
        os._exit(int(stopping.signum is not None))

    with preemption.heard():
        assert in_a_fork(lambda: send(signal.SIGUSR1)) == 0
        with stopping.listening():
            assert in_a_fork(both) == 0


def test_another_stage_is_dropped_at_once(job: Path) -> None:
    before = signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    try:
        with preemption.heard():
            with pytest.raises(Preempted) as stopped:
                send(signal.SIGUSR2)
            send(signal.SIGUSR2)  # while it unwinds
        assert stopped.value.signum == signal.SIGUSR2
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN  # until it has queued itself again
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_sbatchs_job_is_queued_again_by_its_first_process(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        preemption.queue_again(Preempted(signal.SIGUSR1))
    assert ended.value.code == 128 + signal.SIGUSR1
    assert job.read_text() == "requeue 7\n"
    with pytest.raises(SystemExit):
        preemption.queue_again(Preempted(signal.SIGTERM))  # SLURM does so by itself, or it was cancelled
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(SystemExit):
        preemption.queue_again(Preempted(signal.SIGUSR1))
    assert job.read_text() == "requeue 7\n"


def test_a_refusal_is_one_line(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho Job is not\necho held by you >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"^job 7 is not queued again \(held by you\): submit it anew"):
        preemption.queue_again(Preempted(signal.SIGUSR1))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="job 7 cannot be queued again"):
        preemption.queue_again(Preempted(signal.SIGUSR1))


def test_submitits_handler_queues_its_job_again(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(preemption.SUBMITIT, "slurm")
    called: list[Any] = []

    def handler(*given: Any) -> None:
        called.append(given)
        raise SystemExit(-1)

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        with preemption.heard():
            pass
        with pytest.raises(SystemExit) as ended:
            preemption.queue_again(Preempted(signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (called, ended.value.code, job.exists()) == ([(signal.SIGUSR2, None)], -1, False)


@pytest.mark.slow
def test_a_job_goes_on_in_the_directory_that_it_left(
    job: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = AdversarialModule.critic_steps

    def hit(self: AdversarialModule, batch: Any) -> Any:
        if self.update == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return own(self, batch)

    line = f"{MICRO} optim.student.updates=4 trainer.checkpoint_every=9"
    with monkeypatch.context() as patched:
        patched.setattr(AdversarialModule, "critic_steps", hit)
        found = command(line)
    assert found.status == 128 + signal.SIGUSR1, found.err
    assert job.read_text() == "requeue 7\n"
    (left,) = Path("runs").glob("*/*/*")
    assert not (left / "results.json").exists()

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = command(line)
    assert again.status == 0, again.err
    assert re.search("distil: going on after update 2 of 4", again.err)
    assert [*Path("runs").glob("*/*/*")] == [left]
    assert (left / "results.json").exists()
