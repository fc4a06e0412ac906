"""A run whose two processes a batch system started, without one: told to stop, queued again, gone on with."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amd_lightning.launching import PORTS
from tests.cluster.scheduler import free_port
from tests.test_resume_run import outcome
from tests.test_run import MICRO, in_a_process

RUN = (
    f"{MICRO} optim.student.updates=40 trainer.checkpoint_every=1000 trainer.log_every=1 trainer.devices=2 "
    "evaluation.samples=1 rollout.replay.capacity=8 rollout.replay.refresh=0.5"
)


class Step:
    """Two tasks of srun's in a folder, where scontrol only notes what it was asked."""

    def __init__(self, folder: Path, restarts: int) -> None:
        self.log = folder / f"log_{restarts}"
        outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        step = {
            "SLURM_JOB_ID": str(len(PORTS)),
            "SLURM_RESTART_COUNT": str(restarts),
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_NUM_NODES": "1",
            "MASTER_PORT": str(free_port()),
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        }
        command = [sys.executable, "-m", "amd_lightning.run", *shlex.split(RUN), "hydra.run.dir=run"]
        with self.log.open("w") as out:
            self.tasks = [
                subprocess.Popen(
                    command,
                    cwd=folder,
                    env={**outside, **step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
                    stdout=out,
                    stderr=out,
                )
                for rank in ("0", "1")
            ]

    def comes_to(self, condition: Callable[[], bool], seconds: float = 300.0) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def end(self) -> None:
        for task in self.tasks:
            task.kill()
            task.wait()


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Step]]:
    monkeypatch.setenv("AMD_LIGHTNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/sh\necho $* >> '{tmp_path / 'scontrol.txt'}'\n")
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    begun: list[Step] = []

    def begin(restarts: int) -> Step:
        begun.append(Step(tmp_path, restarts))
        return begun[-1]

    yield begin
    for step in begun:
        step.end()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_one_task_hears_stops_both_and_one_queues_the_job_again(
    steps: Callable[[int], Step], tmp_path: Path
) -> None:
    metrics, asked = tmp_path / "run" / "metrics.csv", tmp_path / "scontrol.txt"
    first = steps(0)
    first.comes_to(lambda: metrics.is_file() and metrics.read_text().count("\n") > 3)
    first.tasks[1].send_signal(signal.SIGUSR1)
    first.comes_to(asked.is_file)
    time.sleep(1.0)
    assert [task.poll() for task in first.tasks] == [None, None]  # they wait for the job's end
    first.end()
    (at,) = re.findall(r"stopped after update (\d+) of 40", first.log.read_text())

    again = steps(1)
    again.comes_to(lambda: None not in [task.poll() for task in again.tasks])
    assert [task.returncode for task in again.tasks] == [0, 0], again.log.read_text()
    assert f"distil: going on after update {at} of 40" in again.log.read_text()
    assert asked.read_text() == f"requeue {len(PORTS)}\n"
    alone = in_a_process(tmp_path, *shlex.split(RUN), "hydra.run.dir=alone")
    assert alone.returncode == 0, alone.stderr
    assert outcome(tmp_path / "run") == outcome(tmp_path / "alone")
