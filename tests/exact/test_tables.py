"""The scripts that print what the exact testbed holds: on a tiny world, and against what is kept of them."""

import sys

import pytest
import torch

from experiments.exact import reach, tables

from .estimators import right_forms, setting, wrong_forms
from .family import FAMILY
from .testbed import World, low_rank_features, random_logits

ERRORS = {"I1", "I2", "I4", "I5", "I6", "I11", "I15"}
"""Identities whose cell is an error."""
NONE_IN = {"I7", "I8", "I14"}
"""Those whose cell counts violations."""


def cells(printed: str) -> dict[str, list[str]]:
    """The rows of the tables in a text, by their first cell."""
    rows = [line.strip("|").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_the_tables_of_a_tiny_world(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["tables", "--vocabulary", "3", "--horizon", "3", "--seeds", "3"])
    monkeypatch.setattr(tables, "DRAWS", 200)
    tables.main()
    found = cells(capsys.readouterr().out)
    for name in tables.IDENTITIES:
        values = found[name][1:]
        assert len(values) == 2
        if name in ERRORS:
            assert all(float(value) < 1e-13 for value in values), name
        if name in NONE_IN:
            assert all(value.startswith("0 in ") for value in values), name
    assert all(value.endswith("; lower") for value in found["I16"][1:])
    assert all(float(value) < 1e-13 for name in FAMILY for value in found[name])
    pull = {name: [float(value) for value in found[name]] for name in ("ridge (α .5, λ 2)", "sign")}
    assert pull["ridge (α .5, λ 2)"][2] < 0.1 * pull["sign"][2]


def test_more_steps_lower_what_is_descended_and_no_gap_beats_that_of_equal_policies() -> None:
    world = World(3, 3, eos=0)
    log_p, features = random_logits(world, 0).log_softmax(-1), low_rank_features(world, 0, 1)
    start = torch.zeros(1, 3, dtype=log_p.dtype)
    few, many = (
        reach.reached(world, log_p, reach.optimise(world, log_p, features, start, objective, steps))
        for objective, steps in ((reach.OBJECTIVES["kl, β = 1"], 1), (reach.OBJECTIVES["kl, β = 1"], 60))
    )
    assert 0.0 < many.kl < few.kl
    assert reach.reached(world, log_p, log_p)[:4] == (0.0, 0.0, 0.0, 0.0)
    rows = list(reach.rows(world, teachers=2, rank=1, steps=3))
    assert [row[0] for row in rows] == list(reach.OBJECTIVES)
    assert rows[0][1] == "1.00 (1.00 to 1.00)"


def test_what_is_kept_has_every_row() -> None:
    kept = cells((tables.HERE / "README.md").read_text(encoding="utf-8"))
    case = setting("eos", "gap")
    rows = [*tables.IDENTITIES, *FAMILY, *right_forms(case), *wrong_forms(case), *reach.OBJECTIVES]
    assert [name for name in rows if name not in kept] == []
