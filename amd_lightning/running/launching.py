"""The processes of a run on several devices: started here, or by torchrun or srun.

With trainer.devices=N the process that the user started is rank 0. It starts the others when its own checks
are through, hands them the configuration (so no command line is run twice, and a point of a sweep can have
ranks as well as a run), and watches them: when one dies, all end, with its error shown. The others end with
rank 0 as soon as the pipe to it closes, whatever closed it. torchrun and srun start every rank themselves and
end all when one dies (srun with --kill-on-bad-exit).
"""

import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from amd_lightning.errors import Pruned, RankError, UserError

GRACE_S = 30.0
"""How long a rank may take to notice that another died; then it is ended where it stands."""
LAST_S = 60.0
"""How long the others may take to end after rank 0 has nothing left to do."""

DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What a terminal and a batch system send to all processes: rank 0 acts on it, in its own time, and ends the
others. While they train together, `stopping` hears every rank."""
PORTS = range(15000, 25000)
"""Where the tasks of a SLURM job meet, by its number, unless MASTER_PORT says where; Lightning's choice."""


class Place(NamedTuple):
    """Which of the processes of a run this one is."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def outside() -> Place | None:
    """The place that torchrun or srun gave this process; None where it was started by itself."""
    have = os.environ.get
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return Place(
            *(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        )
    size = int(have("SLURM_STEP_NUM_TASKS", "1"))  # of srun's step: a batch script's own process has none
    if size > 1 and "SLURM_PROCID" in os.environ:
        nodes = int(have("SLURM_STEP_NUM_NODES", have("SLURM_NNODES", "1")))
        return Place(int(os.environ["SLURM_PROCID"]), size, int(have("SLURM_LOCALID", "0")), size // nodes)
    return None


@contextmanager
def joined_outside(devices: int, nodes: int, gpu: bool) -> Iterator[Place | None]:
    """Within, a rank that torchrun or srun started works with the others.

    Raises:
        UserError: they are not as many as trainer.devices and trainer.nodes say.
    """
    place = outside()
    if place is None or place.size == 1:
        if nodes > 1:
            raise UserError(
                f"trainer.nodes={nodes} needs a process for every device, started by torchrun or srun"
            )
        yield None
        return
    if (place.local_size, place.size) != (devices, devices * nodes):
        raise UserError(
            f"{place.size} processes were started, {place.local_size} on this machine: set "
            f"trainer.devices={place.local_size} trainer.nodes={place.size // place.local_size}"
        )
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    from amd_lightning import ranks

    if "TORCHELASTIC_RUN_ID" not in os.environ:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        # Not the object itself: it refuses sbatch's plain --ntasks.
        hosts = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "127.0.0.1"))
        os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(hosts))
        os.environ.setdefault("MASTER_PORT", str(PORTS.start + int(os.environ["SLURM_JOB_ID"]) % len(PORTS)))
        os.environ.update(
            LOCAL_RANK=str(place.local_rank),
            LOCAL_WORLD_SIZE=str(place.local_size),
        )
    store, _, _ = next(iter(rendezvous("env://", place.rank, place.size)))
    with ranks.joined(PrefixStore("amd_lightning", store), place.rank, place.size, gpu=gpu):
        yield place


@contextmanager
def others_started(devices: int, gpu: bool, work: str, *arguments: Any) -> Iterator[None]:
    """Within, this process is rank 0 of `devices`, and each of the others does `work(*arguments)`.

    Args:
        work: "module:function", its arguments can be pickled.

    Raises:
        RankError: one of the others died, and that is why this one could not go on.
    """
    if devices == 1 or outside() is not None:
        yield
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from amd_lightning import ranks

    if sys.platform == "linux":  # a host's name may lead to an address that is not its own; all are here
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = TCPStore("127.0.0.1", 0, devices, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        job = pickle.dumps((work, arguments, gpu, folder))
        processes = [_started(rank, devices, store.port, job) for rank in range(1, devices)]
        watch = _Watch(processes, Path(folder))
        try:
            try:
                with ranks.joined(store, 0, devices, gpu=gpu):
                    yield
            except Exception as error:
                its_own = isinstance(error, UserError | Pruned)  # which all ranks come to, or this one alone
                watch.wait_for_a_death(seconds=0.0 if its_own else 20.0)
                if watch.dead is not None and not its_own:
                    raise RankError(watch.dead) from error
                raise
            watch.wait_for_all(LAST_S)
        finally:
            watch.end()


def _started(rank: int, size: int, port: int, job: bytes) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # The same modules, wherever this process found them.
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "amd_lightning.running.launching"],
        stdin=subprocess.PIPE,
        stdout=2,
        env=environment,
    )
    assert process.stdin is not None
    process.stdin.write(len(job).to_bytes(8) + job)
    process.stdin.flush()  # it stays open: its end is this process's
    return process


class _Watch:
    """Ends this process, in the end by force, when one of the others has died.

    Attributes:
        dead: what to say of the first that died; None before.
    """

    def __init__(self, processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
        self.processes = processes
        self.folder = folder
        self.dead: str | None = None
        self._over = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._over.wait(0.2):
            if self._a_death() and not self._over.wait(GRACE_S):
                sys.stderr.write(f"error: {self.dead}\n")
                sys.stderr.flush()
                self._kill()
                os._exit(1)

    def _a_death(self) -> bool:
        for place, process in enumerate(self.processes, start=1):
            said = self.folder / f"error_{place}"
            if self.dead is None and (process.poll() or said.is_file()):
                self.dead = self._words(place, process.returncode, said)
        return self.dead is not None

    def _words(self, rank: int, status: int | None, said: Path) -> str:
        if said.is_file():
            return f"process {rank} of the run (from 0) failed, the others ended with it: {said.read_text()}"
        how = (
            f"was killed by signal {-status}"
            if status is not None and status < 0
            else f"ended with status {status}"
        )
        return f"process {rank} of the run (from 0) {how}, and the others with it"

    def wait_for_a_death(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._a_death() and time.monotonic() < until:
            time.sleep(0.05)

    def wait_for_all(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                return

    def end(self) -> None:
        self._over.set()
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        self.wait_for_all(5.0)
        self._kill()

    def _kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


# -- what the others run -----------------------------------------------------------------------------


def main() -> None:
    """A rank that `others_started` started: its work comes through the pipe that ends it, too."""
    size = int.from_bytes(sys.stdin.buffer.read(8))
    work, arguments, gpu, folder = pickle.loads(sys.stdin.buffer.read(size))
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    for number in DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from amd_lightning import ranks

    rank, ranks_ = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), ranks_, is_master=False)
    try:
        with ranks.joined(store, rank, ranks_, gpu=gpu):
            try:
                module, _, name = work.partition(":")
                getattr(importlib.import_module(module), name)(*arguments)
            except Exception as error:  # said before the group is left, which the others will see as a loss
                words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                _say(Path(folder) / f"error_{rank}", words)
                raise
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError:
        sys.exit(1)


def _say(path: Path, words: str) -> None:
    if path.parent.is_dir():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(" ".join(words.split())[:500], encoding="utf-8")
        temporary.rename(path)


def _end_with_rank_0() -> None:
    while os.read(0, 1):  # not through Python's buffer, whose lock a normal end would wait for
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
