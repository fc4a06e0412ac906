"""The index of a sweep: right at any time, whoever writes it."""

import multiprocessing
import pickle
import signal
import time
from pathlib import Path

import pytest

from amd_lightning.errors import DataError, Interrupted, Preempted, UserError
from amd_lightning.sweeps.index import KILLED, Measured, Row, Status, SweepIndex, one_line

FORK = multiprocessing.get_context("fork")


def finish(folder: Path, point: int, value: float = 1.0) -> float | None:
    """Run a point that leaves results."""
    index = SweepIndex(folder)

    def make() -> Measured:
        (folder / str(point)).mkdir(exist_ok=True)
        (folder / str(point) / "results.json").write_text("{}")
        return Measured("rouge_l", value, "1/7")

    return index.run(point, f"seed={point}", str(point), make)


def statuses(folder: Path) -> str:
    return " ".join(row.status for row in SweepIndex(folder).rows())


def begun(folder: Path, count: int) -> SweepIndex:
    index = SweepIndex(folder)
    index.begin(["-m", "seed=..."], ["seed"], [f"seed={seed}" for seed in range(count)])
    return index


def test_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    index = begun(tmp_path, 2)
    assert index.rows()[1] == Row(1, "seed=1")
    finish(tmp_path, 0, value=0.123456789)
    row = index.rows()[0]
    assert row._replace(seconds=None) == Row(
        0, "seed=0", "0", Status.done, "rouge_l", 0.123456789, None, "1/7"
    )
    assert index.command() == {"arguments": ["-m", "seed=..."], "swept": ["seed"]}


def many(folder: Path, points: range) -> None:
    for point in points:
        finish(folder, point, float(point))


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    begun(tmp_path, 24)
    workers = [FORK.Process(target=many, args=(tmp_path, range(start, 24, 3))) for start in range(3)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):  # whole at any moment
        assert len(SweepIndex(tmp_path).rows()) == 24
    assert [(row.status, row.value) for row in SweepIndex(tmp_path).rows()] == [
        (Status.done, float(point)) for point in range(24)
    ]


def hang(folder: Path) -> None:
    SweepIndex(folder).run(0, "seed=0", "0", lambda: time.sleep(60) or Measured("", None, ""))  # type: ignore[func-returns-value]


def test_a_point_belongs_to_one_process_until_that_dies(tmp_path: Path) -> None:
    index = begun(tmp_path, 2)
    worker = FORK.Process(target=hang, args=(tmp_path,))
    worker.start()
    while statuses(tmp_path) != "running waiting":
        time.sleep(0.01)
    assert index.is_claimed(0)
    with pytest.raises(UserError, match="another process runs point 0"):
        finish(tmp_path, 0)
    index.go_on([])
    assert [row.status for row in index.end()] == [Status.running, Status.waiting]
    assert index.end(stopped=True)[0].status == Status.running  # it may yet save
    worker.kill()
    worker.join()
    assert [(row.status, row.error) for row in index.end()] == [(Status.failed, KILLED), (Status.waiting, "")]
    index.go_on(["seed=0", "seed=1"])
    assert index.rows()[0] == Row(0, "seed=0", "0")
    assert finish(tmp_path, 0) == 1.0


def test_what_stops_a_point_is_noted(tmp_path: Path) -> None:
    index = begun(tmp_path, 3)
    errors = [DataError("row 7\nis broken"), ZeroDivisionError("ours"), SystemExit(1)]
    for point, error in enumerate(errors):

        def fail(error: BaseException = error) -> Measured:
            assert index.rows()[point].status == Status.running  # noqa: B023
            raise error

        with pytest.raises(type(error)):
            index.run(point, f"seed={point}", str(point), fail)
    said = [row.error for row in index.rows()]
    assert said == ["row 7 is broken", "ZeroDivisionError: ours", "interrupted"]
    assert statuses(tmp_path) == "failed failed failed"


@pytest.mark.parametrize(
    "error, status, words",
    [
        (KeyboardInterrupt(), Status.stopped, "SIGINT"),
        (Interrupted(signal.SIGTERM), Status.stopped, "SIGTERM"),
        (Interrupted(signal.SIGTERM, 3, 60), Status.stopped, "SIGTERM after update 3 of 60, saved"),
        (Preempted(signal.SIGUSR1, 3, 60), Status.requeued, ""),
    ],
    ids=["Ctrl-C", "not saved", "saved", "by a batch system"],
)
def test_a_point_that_a_signal_stopped_has_not_failed(
    error: KeyboardInterrupt, status: Status, words: str, tmp_path: Path
) -> None:
    index = begun(tmp_path, 1)

    def stop() -> Measured:
        raise error

    with pytest.raises(type(error)):
        index.run(0, "seed=0", "0", stop)
    assert [(row.status, row.error) for row in index.end()] == [(status, words)]
    index.go_on(["seed=0"])
    assert index.rows() == [Row(0, "seed=0", "0")]
    assert finish(tmp_path, 0) == 1.0


def test_what_stopped_a_point_comes_out_of_its_process() -> None:
    error = Preempted(signal.SIGTERM, 3, 60)
    error.words = "go on with: this"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is Preempted
    assert (again.signum, again.update, again.updates, again.words) == (signal.SIGTERM, 3, 60, error.words)


def test_a_finished_point_is_not_run_again(tmp_path: Path) -> None:
    index = begun(tmp_path, 1)
    assert finish(tmp_path, 0, 3.0) == finish(tmp_path, 0, 5.0) == 3.0
    (tmp_path / "0" / "results.json").unlink()  # its files are gone
    assert finish(tmp_path, 0, 5.0) == 5.0
    index.run(0, "seed=9", "0", lambda: Measured("rouge_l", 7.0, ""))  # another point by that number
    assert index.rows()[0].value == 7.0


def test_points_that_only_the_sweeper_knows_come_as_they_run(tmp_path: Path) -> None:
    begun(tmp_path, 0)
    finish(tmp_path, 1)
    finish(tmp_path, 0)
    assert [row.point for row in SweepIndex(tmp_path).rows()] == [0, 1]
    SweepIndex(tmp_path).go_on([])


def test_what_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no sweep"):
        SweepIndex(tmp_path).command()
    index = begun(tmp_path, 1)
    with pytest.raises(UserError, match="holds a sweep already: go on with it, sweep_resume="):
        begun(tmp_path, 1)
    with pytest.raises(UserError, match="would have other points now"):
        index.go_on(["seed=7"])
    (tmp_path / "index.csv").write_text("point,overrides\n0,seed=0\n")
    with pytest.raises(UserError, match=r"index\.csv is damaged"):
        index.rows()
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep\.json is damaged"):
        index.command()
    assert one_line(ValueError("a\n b")) == "ValueError: a b"
