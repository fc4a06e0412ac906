"""Jobs on a real SLURM that lose their place, are queued again, and end as if nothing had befallen them."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amd_lightning.sweeps.index import INDEX, Row, Status, SweepIndex
from tests.cluster.scheduler import NoSchedulerError, said, slurm, wait_for
from tests.test_resume_run import outcome
from tests.test_run import MICRO, in_a_process

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

UPDATES = 60
BEGUN = 5
"""Updates after which a run loses its place."""
START_S = 400
"""Until it has come there, on a machine that is busy."""
RUN = (
    f"{MICRO} optim.student.updates={UPDATES} trainer.checkpoint_every=1000 trainer.log_every=1 "
    "evaluation.samples=1 rollout.replay.capacity=8 rollout.replay.refresh=0.5"
)
"""A run that by itself saves nothing before its end."""
QUEUE = ("squeue", "-o", "%.6i %.9P %.10j %.10T %.14R")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of commands that find a SLURM, and of runs that share a cache."""
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AMD_LIGHTNING_CACHE", str(folder / "cache"))
        patched.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))
        try:
            with slurm(folder / "daemons") as found:
                yield found
        except NoSchedulerError as error:
            pytest.skip(str(error))


def updates(folder: Path) -> int:
    """How many stand in a run's metrics.csv."""
    file = folder / "metrics.csv"
    return file.read_text().count("\n") - 1 if file.exists() else 0


def take_place(environment: dict[str, str], cpus: int) -> str:
    """A short job that others have to make room for; its command line."""
    line = f"sbatch -p high -c {cpus} -J urgent -o /dev/null --wrap='sleep 3'"
    assert "Submitted" in said(environment, *shlex.split(line))
    return line


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("options", ["--signal=USR1@60", ""], ids=["told", "killed after its grace time"])
def test_a_job_of_sbatch_goes_on_when_it_is_queued_again(
    options: str, ranks: int, environment: dict[str, str], tmp_path: Path
) -> None:
    """With two ranks, each is a task of srun."""
    devices = f"trainer.devices={ranks}"
    (tmp_path / "job.sh").write_text(
        f"#!/bin/bash\nsrun {sys.executable} -m amd_lightning.run {RUN} {devices} hydra.run.dir=run\n"
    )
    job = Job(f"{options} -n {ranks} -c {2 // ranks}", tmp_path, environment)
    folder = tmp_path / "run"
    assert job.comes_to(lambda: updates(folder) >= BEGUN or not job.state, START_S), text(job.log)
    job.seen.append(f"$ {take_place(environment, 2)}")
    assert job.comes_to(lambda: job.state == "PENDING", 120), text(job.log)
    assert not (folder / "results.json").exists()
    assert job.comes_to(lambda: not job.state, 600), text(job.log)
    (tmp_path / "transcript.txt").write_text("\n\n".join([*job.seen, text(job.log)]))
    assert (folder / "results.json").exists(), text(job.log)
    (at,) = re.findall(r"distil: going on after update (\d+) of", text(folder / "run.log"))
    assert BEGUN <= int(at) < UPDATES
    assert text(job.log).count(f"job {job.number} is queued again") == bool(options)
    waiting = "waiting for the batch system to end this process"
    assert text(job.log).count(waiting) == (not options)
    as_if_alone(folder, devices)


class Job:
    """A job of sbatch, `job.sh` in a folder, and what was seen of it."""

    def __init__(self, options: str, folder: Path, environment: dict[str, str]) -> None:
        self.environment = environment
        self.log = folder / "job.log"
        line = f"sbatch --requeue {options} --open-mode=append --output=job.log --parsable job.sh"
        self.seen = [f"$ cat job.sh; {line}", text(folder / "job.sh")]
        self.number = said(environment, *shlex.split(line), cwd=folder)

    @property
    def state(self) -> str:
        """As squeue has it; "" when it has ended."""
        return said(self.environment, "squeue", "-h", "-j", self.number, "-o", "%T")

    def comes_to(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether it came true in time; the queue is looked at on the way."""

        def look() -> bool:
            if (queue := said(self.environment, *QUEUE)) != self.seen[-1]:
                self.seen.append(queue)
            return condition()

        return wait_for(look, seconds)


def as_if_alone(folder: Path, *overrides: str) -> None:
    """A run's directory holds what a run that nothing befell leaves."""
    alone = folder.parent / "alone"
    found = in_a_process(folder.parent, *shlex.split(RUN), *overrides, f"hydra.run.dir={alone}", seconds=600)
    assert found.returncode == 0, found.stderr
    assert outcome(folder) == outcome(alone)


class Watched:
    """A sweep on SLURM in a process of its own, and what was seen of it."""

    def __init__(self, line: str, folder: Path, environment: dict[str, str]) -> None:
        self.environment = environment
        self.seen = [f"$ python -m amd_lightning.run {line}"]
        self.index = SweepIndex(folder / "sweep")
        self.log = folder / "sweep.log"
        with self.log.open("w") as out:
            command = [sys.executable, "-m", "amd_lightning.run", *shlex.split(line)]
            self.process = subprocess.Popen(
                command, cwd=folder, env={**os.environ, **environment}, stdout=out, stderr=out
            )

    def look(self) -> None:
        """At the queue, if it has changed."""
        queue = said(self.environment, *QUEUE)
        if queue != self.seen[-1]:
            self.seen.append(queue)

    def rows(self, status: Status) -> list[Row]:
        return [row for row in self.index.rows() if row.status == status]

    def trains(self, count: int) -> bool:
        """Whether so many points do, or all is over."""
        self.look()
        running = [updates(self.index.folder / row.directory) for row in self.rows(Status.running)]
        return self.process.poll() is not None or (len(running) == count and min(running) >= BEGUN)

    def one_is_queued_again(self) -> bool:
        self.look()
        return bool(self.rows(Status.requeued))

    def has_ended(self) -> bool:
        self.look()
        return self.process.poll() is not None


@pytest.mark.parametrize("tasks, seeds", [(1, 4), (2, 2)])
def test_a_sweep_on_an_array_outlives_the_preemption_of_a_point(
    tasks: int, seeds: int, environment: dict[str, str], tmp_path: Path
) -> None:
    """Two points at once, each on a CPU, or one on both, each of which is a rank's."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install -e '.[cluster]'")
    launcher = "gpus_per_node=0 cpus_per_task=1 mem_gb=1 partition=main timeout_min=60"
    options = " ".join(f"hydra.launcher.{option}" for option in launcher.split())
    if tasks > 1:
        options += f" hydra.launcher.tasks_per_node={tasks}"
    devices = f"trainer.devices={tasks}"
    swept = f"seed={','.join(map(str, range(seeds)))}"
    line = f"{RUN} {devices} -m {swept} hydra.sweep.dir=sweep cluster=slurm {options}"
    sweep = Watched(line, tmp_path, environment)
    try:
        assert wait_for(lambda: sweep.trains(2 // tasks), START_S), text(sweep.log)
        sweep.seen.append(f"$ {take_place(environment, tasks)}")
        assert wait_for(sweep.one_is_queued_again, 120), text(sweep.log)
        (hit,) = sweep.rows(Status.requeued)
        sweep.seen.append(text(sweep.index.folder / INDEX))
        assert wait_for(sweep.has_ended, 900), text(sweep.log)
    finally:
        sweep.process.kill()
        sweep.process.wait()
    folder = sweep.index.folder / hit.directory
    sweep.seen += [text(folder / "run.log"), text(sweep.index.folder / INDEX), text(sweep.log)]
    (tmp_path / "transcript.txt").write_text("\n\n".join(sweep.seen))
    assert sweep.process.returncode == 0, text(sweep.log)
    assert [row.status for row in sweep.index.rows()] == [Status.done] * seeds
    again = [
        row.point
        for row in sweep.index.rows()
        if "distil: going on after update" in text(sweep.index.folder / row.directory / "run.log")
    ]
    assert again == [hit.point]
    as_if_alone(folder, devices, hit.overrides)
