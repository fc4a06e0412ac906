"""A SLURM of one node on this machine for the time of a test: its daemons, their settings, its commands."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
PLACES = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
START_S = 15.0
GRACE_S = 15
"""How long a preempted job may go on."""

# A job on `high` takes the place of one on `main`, which is told (by the signal it asked for, or SIGTERM),
# killed after the grace time, and queued again; then it waits until its credential has expired.
SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=5,bf_interval=5
SchedulerParameters=sched_interval=5,bf_interval=5
ReturnToService=2
KillWait=5
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1024 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class NoSchedulerError(Exception):
    """The daemons cannot run here; the message says why."""


def found(name: str) -> str:
    """The path of a daemon."""
    path = shutil.which(name, path=PLACES)
    if path is None:
        raise NoSchedulerError(f"{name} is not installed (Debian: apt-get install slurm-wlm munge)")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Within, a SLURM runs; gives the environment in which its commands find it.

    Raises:
        NoSchedulerError: the daemons are not there, or do not start.
    """
    munged, slurmctld, slurmd = (found(name) for name in DAEMONS)
    if os.geteuid() != 0:
        raise NoSchedulerError("slurmd runs as root only")
    for name in ("ctld", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").touch(0o600)
    (folder / "munge.key").write_bytes(os.urandom(128))
    host = socket.gethostname().partition(".")[0]
    settings = SETTINGS.format(
        host=host, folder=folder, ctld_port=free_port(), d_port=free_port(), grace=GRACE_S
    )
    config = folder / "slurm.conf"
    config.write_text(settings.lstrip())
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    environment = {**outside, "SLURM_CONF": str(config)}
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    commands = [
        [munged, "--foreground", "--force", *(f"--{key}={folder}/munge.{end}" for key, end in files.items())],
        [slurmctld, "-D", "-f", str(config)],
        [slurmd, "-D", "-f", str(config), "-N", host],
    ]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{Path(command[0]).name}.out").open("wb") as out:
                daemons.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
            if command[0] == munged:
                wait_for(lambda: (folder / "munge.socket").exists(), START_S)
        if not wait_for(lambda: "idle" in said(environment, "sinfo", "-h", "-o", "%T"), START_S):
            raise NoSchedulerError(f"the daemons of SLURM do not start: {_last_words(folder)}")
        yield environment
        said(environment, "scancel", "--user=root", "--signal=KILL", "--full")
        said(environment, "scancel", "--user=root")
        wait_for(lambda: not said(environment, "squeue", "-h"), 2 * GRACE_S)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10.0)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def said(environment: dict[str, str], *command: str, cwd: Path | None = None) -> str:
    """What a command writes to stdout."""
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout.strip()


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def _last_words(folder: Path) -> str:
    """The last line that a daemon called an error."""
    logs = [*folder.glob("*.out"), *folder.glob("*.log")]
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if "error" in line.lower() or "fatal" in line]
    return (errors or lines or ["they say nothing"])[-1].strip()
