"""The processes of a run on several devices: started, joined, and ended together."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amd_lightning import ranks
from amd_lightning.errors import Pruned, RankError, UserError
from amd_lightning.running import launching
from amd_lightning.running.launching import Place, joined_outside, others_started, outside

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def work(name: str) -> str:
    return f"tests.ranks_work:{name}"


def test_one_device_starts_nobody() -> None:
    with others_started(1, False, work("fails")):
        assert (ranks.rank(), ranks.world_size(), ranks.local_world_size()) == (0, 1, 1)


def test_three_ranks_work_together(tmp_path: Path) -> None:
    with others_started(3, False, work("adds"), str(tmp_path)):
        assert (ranks.rank(), ranks.world_size()) == (0, 3)
        assert ranks.totals([1.0, 0.0]) == [3.0, 3.0]
        # By itself, rank 0 is the only one, and may take its time.
        assert ranks.first_alone(lambda: slowly(ranks.world_size)) == 1
    assert ranks.world_size() == 1
    assert (tmp_path / "rank_1").read_text() == "[3.0, 3.0] 1 1"
    assert (tmp_path / "rank_2").read_text() == "[3.0, 3.0] 1 2"


def slowly(work: Callable[[], int]) -> int:
    time.sleep(0.5)
    return work()


def give_up() -> None:
    ranks.totals([1.0, 0.0])
    ranks.first_alone(lambda: 1)
    raise Pruned("rouge_l", 1.0, 2)


def meet_twice() -> None:
    ranks.totals([1.0])
    ranks.totals([1.0])  # for which nobody is there


@pytest.mark.parametrize(
    "name, words",
    [
        ("killed", r"process 1 of the run \(from 0\) was killed by signal 9, and the others with it"),
        ("fails", "failed, the others ended with it: ZeroDivisionError: a bug of rank 1"),
        ("refuses", "the disk of rank 1 is full; free some space"),
    ],
)
def test_a_rank_that_dies_ends_the_others_with_its_error(name: str, words: str) -> None:
    started = time.monotonic()
    with pytest.raises(RankError, match=words), others_started(2, False, work(name)):
        meet_twice()
    assert time.monotonic() - started < 60.0


def test_a_run_that_is_given_up_is_nobodys_death(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(Pruned), others_started(2, False, work("adds"), str(tmp_path)):
        give_up()
    assert time.monotonic() - started < 19.0  # of which it used to wait 20 for a death


def test_a_rank_that_dies_ends_one_that_never_looks(tmp_path: Path) -> None:
    """An exchange that hangs, as NCCL's may, is ended by force after a while."""
    script = (
        "import time; from amd_lightning.running import launching; launching.GRACE_S = 1.0\n"
        "with launching.others_started(2, False, 'tests.ranks_work:fails'): time.sleep(1000.0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "ZeroDivisionError: a bug of rank 1" in done.stderr.splitlines()[-1]
    assert 'raise ZeroDivisionError("a bug of rank 1")' in done.stderr  # with where it was


def test_the_others_end_with_a_rank_0_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from amd_lightning.running.launching import others_started\n"
        f"with others_started(2, False, 'tests.ranks_work:waits', {str(tmp_path)!r}): time.sleep(1000.0)"
    )
    first = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60.0
    while not (tmp_path / "pid").is_file() and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(0.2)
    other = int((tmp_path / "pid").read_text())
    first.kill()
    first.wait()
    while _lives(other) and time.monotonic() < until + 30.0:
        time.sleep(0.1)
    assert not _lives(other)


def _lives(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_an_error_of_rank_0_is_its_own() -> None:
    with pytest.raises(UserError, match="of rank 0"), others_started(2, False, work("adds"), "/nowhere"):
        raise UserError("of rank 0")


SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
}


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, None),
        (SRUN, Place(3, 4, 1, 2)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script's own process, one of one
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        (TORCHRUN, Place(1, 2, 1, 2)),
    ],
)
def test_who_started_this_process(
    variables: dict[str, str], expected: Place | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert outside() == expected


def test_ranks_that_do_not_add_up_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"trainer\.nodes=2 needs"), joined_outside(1, 2, False):
        pass
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    expected = r"set trainer\.devices=2 trainer\.nodes=2"
    with pytest.raises(UserError, match=expected), joined_outside(4, 1, False):
        pass


@pytest.mark.slow
def test_torchrun_starts_them(tmp_path: Path) -> None:
    """Every process is told where to meet by torchrun."""
    script = tmp_path / "work.py"
    script.write_text(
        "from amd_lightning.running.launching import joined_outside\nfrom tests.ranks_work import adds\n"
        f"with joined_outside(2, 1, False):\n    adds({str(tmp_path)!r})\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*command, "--standalone", str(script)], check=True, timeout=120, env=environment)
    assert (tmp_path / "rank_0").read_text() == "[2.0, 1.0] of rank 1 0"
    assert (tmp_path / "rank_1").read_text() == "[2.0, 1.0] of rank 1 1"


def test_the_time_that_is_left_is_under_a_minute() -> None:
    assert launching.GRACE_S < 60.0
