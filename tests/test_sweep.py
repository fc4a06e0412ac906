"""A sweep from the command line to its summary; what a point does is faked, but for the last test."""

import json
import re
import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from amd_lightning import run
from amd_lightning.config.schema import RunConfig
from amd_lightning.errors import DataError, Interrupted, PointError
from amd_lightning.sweeps.index import Row, Status, SweepIndex
from amd_lightning.sweeps.study import Report
from tests import test_run
from tests.test_run import MICRO, Command, in_a_process

command = test_run.command


class Points:
    """Stands for `run.run`: remembers what ran, and fails where it is told to."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, float, int]] = []
        self.commands: list[str] = []
        self.seen: list[str] = []
        self.failing: dict[int, BaseException] = {}

    def __call__(
        self, config: RunConfig, plain: Mapping[str, Any], command: str, report: Report | None
    ) -> float | None:
        folder = Path(config.output_dir)
        self.ran.append((str(config.objective.distance), config.objective.beta, config.seed))
        self.commands.append(command)
        self.seen.append(" ".join(row.status for row in SweepIndex(folder.parent).rows()))
        if config.seed in self.failing:
            raise self.failing[config.seed]
        who: dict[str, Any] = {"teacher": {}, "student_start": {}, "student": {}}
        objective = {"distance": str(config.objective.distance), "beta": config.objective.beta}
        cost = {"cached": {"teacher": len(self.ran) > 1, "student_start": False, "distil": False}}
        keys = {"teacher": "a", "student_start": "b"}
        results = {**who, "objective": objective, "quality": "rouge_l", "cost": cost, "cache_keys": keys}
        (folder / "results.json").write_text(json.dumps(results))
        return config.objective.beta + config.seed


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Points:
    fake = Points()
    monkeypatch.setattr(run, "run", fake)
    return fake


def rows(folder: str = "sweep") -> list[Row]:
    return SweepIndex(Path(folder)).rows()


SEEDS = "+experiment=samsum -m seed=0,1 hydra.sweep.dir=sweep"


def test_the_index_tells_of_every_point_from_the_start(command: Command, ran: Points) -> None:
    found = command(SEEDS)
    assert (found.status, found.error) == (0, "")
    assert ran.seen == ["running waiting", "done running"]
    assert [row._replace(seconds=None) for row in rows()] == [
        Row(n, f"seed={n}", f"{n}_moment_matching_beta0.5_seed{n}", "done", "rouge_l", n + 0.5, None, hits)
        for n, hits in enumerate(["0/2", "1/2"])
    ]
    assert "sweep: 2 of 2 points done" in found.out
    assert f"All points: {Path('sweep').absolute()}/index.csv" in found.out
    assert not Path("sweep/beta_by_distance.png").exists()


def test_a_failing_point_is_named_and_alone_runs_again(command: Command, ran: Points) -> None:
    ran.failing = {0: DataError("row 7 is\nbroken: mend it")}
    found = command(SEEDS)
    assert found.status == 1
    again = f"sweep_resume={Path('sweep').absolute()}"
    assert found.error == (
        "1 of the sweep's points failed:\n  - 0_moment_matching_beta0.5_seed0: row 7 is broken: mend it\n"
        f"run them again: python -m amd_lightning.run {again}"
    )
    assert "Traceback" not in found.err
    assert [(row.status, row.error) for row in rows()] == [
        ("failed", "row 7 is broken: mend it"),
        ("done", ""),
    ]
    before = rows()
    ran.ran, ran.failing = [], {}
    Path("elsewhere").mkdir()
    Path("sweep").rename("elsewhere/moved")
    found = command("sweep_resume=elsewhere/moved hydra.job.chdir=false")
    assert (found.status, found.error) == (0, "")
    assert ran.ran == [("moment_matching", 0.5, 0)]
    after = rows("elsewhere/moved")
    assert after[1] == before[1]
    assert (after[0].status, after[0].directory, after[0].error) == ("done", before[0].directory, "")
    assert not Path("sweep").exists()


def test_an_interrupted_sweep_goes_on(command: Command, ran: Points) -> None:
    ran.failing = {0: Interrupted(signal.SIGTERM, 3, 60)}
    found = command(SEEDS)
    assert found.status == 143
    assert (
        "1 of the sweep's points were stopped:\n"
        "  - 0_moment_matching_beta0.5_seed0: SIGTERM after update 3 of 60, saved\n"
        "1 of the sweep's points have not come to an end\nrun them again: "
    ) in found.err
    assert "failed" not in found.err
    assert "sweep: 0 of 2 points done, 1 stopped" in found.out
    assert [row.status for row in rows()] == ["stopped", "waiting"]
    ran.ran, ran.failing = [], {}
    assert command("sweep_resume=sweep").status == 0
    assert [seed for *_, seed in ran.ran] == [0, 1]


def test_a_point_that_ended_with_a_stopped_sweep_was_not_killed_by_itself(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As joblib's processes, which it kills when the sweep's own is told to stop."""

    def told_to_stop() -> None:
        index = SweepIndex(Path("sweep"))
        index._change(index.rows()[0]._replace(status=Status.running, directory="0"))
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(run, "hydra_main", told_to_stop)
    found = command(SEEDS)
    assert found.status == 143
    assert "1 of the sweep's points were stopped:\n  - 0: stopped with the sweep\n" in found.err
    assert "memory" not in found.err


def test_a_sweep_by_name_needs_no_flag_and_draws_its_map(command: Command, ran: Points) -> None:
    line = "+experiment=samsum +sweep=beta_by_distance objective.distance=kl,rkl objective.beta=0,1"
    found = command(f"{line} cluster=local hydra.sweep.dir=sweep")
    assert (found.status, found.error) == (0, "")
    assert ran.ran == [(distance, beta, 0) for distance in ("kl", "rkl") for beta in (0.0, 1.0)]
    assert [row.overrides for row in rows()][1] == "objective.distance=kl objective.beta=1"
    assert f"beta x distance: {Path('sweep').absolute()}/beta_by_distance.png" in found.out
    assert Path("sweep/beta_by_distance.png").exists()
    # What made a point makes it again by itself, not the sweep.
    own = "python -m amd_lightning.run objective.distance=kl objective.beta=0 +experiment=samsum"
    assert ran.commands[0] == own


def test_a_sweeps_directory_may_be_its_default(command: Command, ran: Points) -> None:
    assert command("+experiment=samsum -m seed=0").status == 0
    (folder,) = Path("runs/samsum").iterdir()
    assert re.fullmatch(r"sweep_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    assert [row.status for row in rows(str(folder))] == ["done"]


def test_what_cannot_go_on_is_refused(command: Command, ran: Points) -> None:
    found = command("sweep_resume=nowhere")
    assert found.status == 1
    assert found.error.startswith(f"{Path('nowhere').absolute()} holds no sweep")
    assert not Path("nowhere").exists()
    assert command(SEEDS).status == 0
    found = command("sweep_resume=sweep objective.beta=1 +sweep=beta cluster=local")
    assert [line.partition(":")[0] for line in found.error.splitlines()[1:]] == [
        "  - objective.beta=1",
        "  - +sweep=beta",
    ]
    found = command(SEEDS)
    assert found.error.startswith(f"{Path('sweep').absolute()} holds a sweep already: go on with it")
    assert len(ran.ran) == 2
    found = command("-m seed=0 hydra.sweep.dir=/proc/nowhere")
    assert found.error.startswith("the run's directory cannot be used")


@pytest.mark.parametrize(
    "launcher, words",
    [
        ("slurm trainer.devices=2 hydra.launcher.tasks_per_node=2 hydra.launcher.nodes=2", "make them equal"),
        (
            "slurm hydra.launcher.tasks_per_node=2",
            "it has trainer.devices=1 trainer.nodes=1: make them equal",
        ),
        ("slurm trainer.nodes=2", "it has trainer.devices=1 trainer.nodes=2: make them equal"),
        ("submitit_local hydra.launcher.tasks_per_node=2", "leave it out, trainer.devices=2 starts them"),
    ],
)
def test_other_tasks_than_a_point_has_devices_are_refused(
    launcher: str, words: str, command: Command, ran: Points
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install -e '.[cluster]'")
    found = command(f"{SEEDS} optim.student.batch_size=8 cluster={launcher}")
    assert words in found.error
    assert not Path("sweep").exists()


@pytest.mark.parametrize("there", [(), ("srun",), ("srun", "sbatch")])
def test_slurm_where_there_is_none_is_refused_before_anything_is_written(
    there: tuple[str, ...], command: Command, ran: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install -e '.[cluster]'")
    monkeypatch.setattr("shutil.which", lambda name, **_: f"/bin/{name}" if name in there else None)
    if len(there) == 2:
        monkeypatch.setattr(run, "hydra_main", lambda: None)
        assert "needs SLURM" not in command(f"{SEEDS} cluster=slurm").error
        assert Path("sweep/index.csv").exists()
        return
    found = command(f"{SEEDS} cluster=slurm")
    assert (found.status, found.out) == (1, "")
    assert found.error == (
        "cluster=slurm needs SLURM's srun and sbatch, and they are not on this machine's PATH: run it on a "
        "login node, or try it with cluster=submitit_local"
    )
    assert not any(Path().iterdir())


def test_another_rank_of_a_point_keeps_no_account(
    command: Command, ran: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a task of submitit's on SLURM; rank 0 runs a point that is not done, and so does it."""
    assert command(SEEDS).status == 0
    done = rows()
    index = SweepIndex(Path("sweep"))
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_PROCID", "1")
    ran.ran.clear()
    made: list[int] = []

    def make() -> tuple[RunConfig, float | None]:
        made.append(1)
        raise DataError("of both ranks")

    directory = Path("sweep", done[0].directory).absolute()
    assert run._point(index, 0, ["seed=0"], directory, make) is None
    with pytest.raises(PointError, match="of both ranks"):
        run._point(index, 1, ["seed=7"], directory, make)
    assert (made, rows()) == ([1], done)


@pytest.mark.slow
def test_two_processes_share_what_stands_before_distillation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install -e '.[cluster]'")
    monkeypatch.setenv("AMD_LIGHTNING_CACHE", str(tmp_path / "cache"))
    line = f"{MICRO} evaluation.samples=1 +sweep=beta objective.beta=0.5,1 cluster=joblib"
    found = in_a_process(tmp_path, *shlex.split(line), "hydra.sweep.dir=sweep")
    assert found.returncode == 0, found.stderr
    points = rows(str(tmp_path / "sweep"))
    assert [row.status for row in points] == ["done", "done"]
    files = [tmp_path / "sweep" / row.directory / "results.json" for row in points]
    results = [json.loads(file.read_text()) for file in files]
    keys = results[0]["cache_keys"]
    assert keys == results[1]["cache_keys"]
    made = {name: sum(not result["cost"]["cached"][name] for result in results) for name in keys}
    assert made == dict.fromkeys(keys, 1)  # each once, by one of the two
    hits = [int(row.found.split("/")[0]) for row in points]
    assert (sum(hits), {row.found.split("/")[1] for row in points}) == (len(keys), {str(len(keys))})
