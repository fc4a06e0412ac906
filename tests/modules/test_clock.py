"""Where the time of an update goes."""

import time
from pathlib import Path

from amd_lightning.modules.clock import PARTS, Clock
from tests.modules.harness import module, train


def test_seconds_an_update_by_part() -> None:
    now = 0.0
    ticking = Clock(lambda: now)
    assert ticking.read() == {}
    for _ in range(2):
        with ticking.update():
            with ticking("generation"):
                now += 3.0
            now += 1.0
            for _ in range(2):
                with ticking("distance"):
                    now += 0.5
        now += 2.0
    found = ticking.read()
    expected = {"time/generation": 3.0, "time/distance": 1.0, "time/rest": 1.0, "time/between": 1.0}
    assert {name: seconds for name, seconds in found.items() if seconds} == expected
    with ticking.update():  # the time since the last update, although that was read
        now += 1.0
    assert ticking.read()["time/between"] == 2.0


def test_the_parts_of_a_run_add_up(tmp_path: Path) -> None:
    """All but what stands beside the updates is in a part; every part of this method takes some time."""
    some = module("residual", 0.5, updates=4)
    some.clock = Clock(time.process_time)  # other work on the machine does not count
    logged = train(some, tmp_path).logged[-1]
    parts = {part: logged[f"time/{part}"] for part in PARTS}
    assert all(seconds > 0.0 for seconds in parts.values())
    assert logged["time/rest"] < 0.2 * sum(parts.values())
