"""The profile of a few updates."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from amd_lightning.modules.clock import PARTS
from amd_lightning.training.profiling import Profile
from tests.modules.harness import module, train


@pytest.mark.parametrize("updates", [6, 4], ids=["longer", "shorter than the profile"])
def test_a_profile_names_every_part(updates: int, tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    train(module("residual", 0.5, updates=updates), tmp_path, callbacks=[Profile(folder)])
    with (folder / "profile.csv").open() as file:
        rows = {row["part"]: row for row in csv.DictReader(file)}
    assert set(rows) == {*PARTS, "rest", "update"} - {"between"}
    seconds = {part: float(row["seconds"]) for part, row in rows.items()}
    whole = seconds.pop("update")
    assert sum(seconds.values()) == pytest.approx(whole)
    assert min(seconds.values()) >= 0.0
    named = {
        event.get("name")
        for event in json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    }
    assert {"generation", "student_backward"} <= named
    assert len((folder / "profile.md").read_text().splitlines()) == len(rows) + 4
