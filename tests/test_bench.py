"""The bench's own machinery, with workers that compute nothing: turns, ratios, failures, tables."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SPEED = Path(__file__).resolve().parents[1] / "experiments" / "speed"

WORKER = """
import sys, time
sys.path.insert(0, {folder!r})
from protocol import Gate
gate, turns, log = Gate(), 0, open(sys.argv[3], "a")
print("chatter")
while True:
    gate.between_updates()
    turns += 1
    log.write(sys.argv[1])
    log.flush()
    if turns == int(sys.argv[2]):
        raise SystemExit("a worker's last words")
"""


def loaded(path: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(SPEED / "bench"), *sys.path])
    return loaded(SPEED / "bench.py")


def made(bench: ModuleType, folder: Path, rounds: int = 2, quick: bool = True) -> Any:
    """A bench whose results stay in the folder."""
    options = bench.argparse.Namespace(quick=quick, rounds=rounds, updates=2, threads=1)
    some = bench.Bench(options, folder)
    some.path = folder / "results.json"
    return some


def worker(folder: Path, name: str, last: int = -1) -> list[str]:
    """The command of a worker; it ends with its update number `last`."""
    script = folder / "worker.py"
    script.write_text(WORKER.format(folder=str(SPEED / "bench")))
    return [sys.executable, str(script), name, str(last), str(folder / "turns")]


def test_workers_take_turns(bench: ModuleType, tmp_path: Path) -> None:
    some = made(bench, tmp_path)
    found = some.take_turns("a / b", {name: worker(tmp_path, name) for name in "ab"})
    # A warm-up each, then two updates in turn, twice; what began after the last one is killed.
    assert (tmp_path / "turns").read_text() == "ab" + 2 * "aabb"
    for one in found.values():
        assert len(one["wall_seconds"]) == len(one["cpu_seconds"]) == 2
        assert one["seconds"] is one["cpu_seconds"]
        assert one["peak_mib"] > 0.0


def test_a_worker_that_ends_says_why_and_takes_the_others_along(bench: ModuleType, tmp_path: Path) -> None:
    some = made(bench, tmp_path)
    with pytest.raises(RuntimeError, match=r"the worker b ended(.|\n)*last words"):
        some.take_turns("group", {"a": worker(tmp_path, "a"), "b": worker(tmp_path, "b", last=3)})


def test_a_worker_that_never_answers_is_ended(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["protocol"], "LIMIT_S", 0.5)
    silent = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(RuntimeError, match="the worker a ended"):
        made(bench, tmp_path).take_turns("group", {"a": silent})


def test_a_ratio_is_of_the_same_round(bench: ModuleType) -> None:
    found = {
        "a": {"seconds": [1.0, 6.0, 2.0], "peak_mib": 100.0},
        "b": {"seconds": [2.0, 8.0, 8.0], "peak_mib": 400.0},
    }
    assert bench.judged(bench.Contest("a / b", "a", "b", "time", 0.5), found) == {
        "ratio": 0.5,
        "spread": [0.25, 0.75],
        "target": 0.5,
        "reached": True,
    }
    memory = bench.judged(bench.Contest("a / b", "a", "b", "memory"), found)
    assert (memory["ratio"], memory["reached"]) == (0.25, None)


def test_every_group_is_there_and_cut_down_when_quick(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.Bench, "pair", lambda self, *sizes: "pair_" + "_".join(map(str, sizes)))
    whole, quick = (made(bench, tmp_path, quick=quick) for quick in (False, True))
    heads = {name.split(",")[0] for name in whole.groups()}
    assert heads == {"trl_8k", "trl_50k", "bare", "methods", "arithmetic", "growth"}
    assert set(quick.groups()) == set(whole.groups())
    for which, first, last in (("stored", "kd", "amm 1"), ("sampled", "gkd", "amm 0")):
        group = whole.methods_group(which)
        assert next(iter(group.workers)) == first
        assert {contest.ours for contest in group.contests} == set(group.workers) - {first}
        assert list(quick.methods_group(which).workers) == [first, last]
    targets = {
        contest.name: contest.target
        for which in ("stored", "sampled")
        for contest in whole.methods_group(which).contests
        if contest.target
    }
    assert targets == {"amm 1 / kd": 1.1, "amm .5 / gkd": 1.15}
    assert [len(points) for points in quick.axes().values()] == [2, 2, 2, 2]
    assert "152000" in " ".join(whole.axes()["vocabulary"][152_000]())


def test_growth_is_over_the_first_value(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = made(bench, tmp_path)
    monkeypatch.setattr(some, "axes", lambda: {"batch": {8: lambda: ["a"], 16: lambda: ["b"]}})
    given = {
        "batch 8": {"seconds": [1.0, 2.0], "peak_mib": 100.0},
        "batch 16": {"seconds": [2.0, 6.0], "peak_mib": 150.0},
    }
    monkeypatch.setattr(some, "take_turns", lambda group, workers: given)
    some.growth("batch")
    lines = json.loads(some.path.read_text())["growth, batch"]["comparisons"]
    assert [line["ratio"] for line in lines.values()] == [1.0, 2.5]
    assert (lines["batch 16"]["memory_ratio"], lines["batch 16"]["value"]) == (1.5, 16)
    bench.report(some.results, tmp_path)
    assert "| 16 | 2.50 | 2.00 to 3.00 | 1.50 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "bench.png").stat().st_size > 0


def test_the_tables_of_the_readme_are_the_benchs(bench: ModuleType, tmp_path: Path) -> None:
    report = loaded(SPEED / "bench" / "report.py")
    results = json.loads((SPEED / "results.json").read_text())
    page = (SPEED / "README.md").read_text()
    assert report.inserted(page, report.table(results)) == page
    assert (SPEED / "table.md").read_text() == report.table(results)
    with pytest.raises(ValueError, match="put them around"):
        report.inserted("no marks", "tables")


def test_groups_that_do_not_exist_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(SPEED / "bench.py"), "--quick", "--only", "nothing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no group nothing: arithmetic, bare, growth" in done.stderr


def test_groups_keep_their_order_whichever_was_run_last(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.Bench, "pair", lambda self, *sizes: "pair")
    some = made(bench, tmp_path)
    for group in ("growth, batch", "bare", "trl_8k"):
        some.keep(group, {}, {})
    assert list(json.loads(some.path.read_text())) == ["trl_8k", "bare", "growth, batch"]
