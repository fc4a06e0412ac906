"""The same maths, the same curve: losses of six updates from a fixed seed.

They pin refactors on one torch version (2.13, CPU); with another one, random streams and kernels may give
other numbers without anything being wrong. To take them anew: run with `-s` after emptying GOLDEN[method].
"""

from pathlib import Path

import pytest
import torch

from tests.modules.harness import module, train

GOLDEN: dict[tuple[str, float], list[float]] = {
    ("residual", 0.5): [1.666216, 1.620809, 1.574693, 1.459231, 1.368157, 1.408488],
    ("closed_form", 0.5): [1.699507, 1.593929, 1.560777, 1.414847, 1.404733, 1.357155],
    ("kl", 0.0): [5.557597, 4.907924, 4.801749, 4.423249, 4.08038, 3.250214],
    ("rkl", 0.5): [6.303418, 5.904623, 6.035453, 5.401543, 4.721224, 4.400226],
    ("nll", 1.0): [6.138773, 5.571343, 4.931541, 2.924471, 2.848806, 2.248569],
}


@pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="pinned on torch 2.13")
@pytest.mark.parametrize("method, beta", GOLDEN)
def test_losses(method: str, beta: float, tmp_path: Path) -> None:
    trained = train(module(method, beta, updates=6), tmp_path)
    losses = [row["train/loss"] for row in trained.logged]
    assert losses == pytest.approx(GOLDEN[method, beta], rel=1e-4)
