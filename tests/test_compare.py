"""The command `python -m amd_lightning.compare`: what it writes, and what it says of what it cannot do."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from amd_lightning.compare import main


def run_folder(folder: Path, seed: int, **objective: Any) -> Path:
    """As little as a finished run can be: no responses, no curves."""
    folder.mkdir(parents=True)
    level = {"tv_on": 0.1 + seed / 100, "rouge_l": 50.0 + seed}
    results = {
        "teacher": {"tv_on": 0.0, "rouge_l": 90.0},
        "student_start": {"tv_on": 0.3, "rouge_l": 30.0},
        "student": level,
        "task": "samsum",
        "seed": seed,
        "objective": {"distance": "kl", "beta": 1.0, **objective},
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "optim": {"student": {"updates": 5}}}))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two methods, two seeds, and a run that has not ended."""
    for seed in (0, 1):
        run_folder(tmp_path / "sweep" / f"kl{seed}", seed)
        run_folder(tmp_path / "sweep" / f"js{seed}", seed, distance="js")
    (tmp_path / "sweep" / "open").mkdir()
    (tmp_path / "sweep" / "open" / "config.yaml").write_text("seed: 3\n")
    return tmp_path / "sweep"


def refused(*arguments: object) -> str:
    """What is said of a command that fails: one line, and status 1."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    said = str(caught.value.code)
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


def test_runs_without_responses_or_curves_are_compared(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(sweep), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert f"skipped, not finished: {sweep / 'open'}" in said
    assert "4 runs of 2 methods" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    tables = {"runs.csv", "runs.parquet", "summary.csv", "summary.md", "summary.tex", "pairs.csv"}
    assert names == tables | {"report.html", "figures"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"python -m amd_lightning.compare {sweep}" in page
    assert "Not finished and left out" in page
    assert 'id="responses"' not in page


def test_a_report_to_share_has_no_text_of_the_data_and_no_directory(sweep: Path, tmp_path: Path) -> None:
    for folder in sweep.glob("*[01]"):
        results = json.loads((folder / "results.json").read_text())
        results["command"] = f"python -m amd_lightning.run +experiment=first/samsum data.path={sweep}/texts"
        (folder / "results.json").write_text(json.dumps(results))
        row = {"who": "student", "id": "1", "prompt": "Whose words?", "references": ["Theirs."]}
        (folder / "predictions.jsonl").write_text(json.dumps(row | {"response": "Mine.", "kind": "greedy"}))
    pages = {}
    for options in ([], ["--shareable"]):
        main([str(sweep), "--out", str(tmp_path / "out"), *options])
        pages[bool(options)] = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for text in ("Whose words?", "Theirs.", "Mine.", str(tmp_path)):
        assert text in pages[False]
        assert text not in pages[True]
    assert "lie beside it" in pages[False]
    assert "lie beside it" not in pages[True]
    assert "python -m amd_lightning.run +experiment=first/samsum data.path=…/texts" in pages[True]
    assert "Not finished and left out: …/open." in pages[True]


def test_some_of_the_runs(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(sweep), "--where", "seed=1.0", "--metric", "tv_on", "--out", str(tmp_path / "out")])
    assert "2 runs of 2 methods" in capsys.readouterr().out


def test_every_mistake_is_one_line(sweep: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "is no folder" in refused(tmp_path / "nowhere", *out)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no finished run in" in refused(empty, *out)
    assert "(1 not finished)" in refused(sweep / "open", *out)
    assert "required: RUN_OR_SWEEP" in refused()
    assert "unrecognized arguments: --bogus" in refused(sweep, "--bogus")
    assert "is no KEY=VALUE" in refused(sweep, "--where", "seed", *out)
    assert "none of 4 runs" in refused(sweep, "--where", "seed=7", *out)
    assert "they have: rouge_l, tv_on" in refused(sweep, "--metric", "bleu", *out)
    assert "they are: JS, β 1; KL, β 1" in refused(sweep, "--against", "AMMD", *out)
    assert "write wandb:ENTITY/PROJECT" in refused("wandb:nothing", *out)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    assert "cannot write to" in refused(sweep, "--out", tmp_path / "file")


def test_runs_that_must_not_be_averaged_are_refused(sweep: Path, tmp_path: Path) -> None:
    folder = run_folder(sweep / "kl2", 2)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 2, "optim": {"student": {"updates": 9}}}))
    said = refused(sweep, "--out", tmp_path / "out")
    assert "optim.student.updates (5: 2 runs, 9: 1 run)" in said
    assert "--by optim.student.updates" in said


def test_the_module_is_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "amd_lightning.compare", "--help"], capture_output=True, text=True, check=True
    )
    assert "RUN_OR_SWEEP" in done.stdout
    assert "wandb:ENTITY/PROJECT" in done.stdout
