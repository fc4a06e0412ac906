"""trainer.profile=true: where the time and the memory of a few updates went.

Writes `folder/trace.json.gz` (chrome://tracing, https://ui.perfetto.dev), and `profile.csv` and `profile.md`
with a line a part of an update (`modules/clock.py`). Updates after these run as ever.
"""

import csv
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile

from amd_lightning.modules.clock import PARTS

SKIPPED, PROFILED = 2, 3
"""Updates before the profile, which warm up, and in it; our choice: a trace holds every operation."""

COLUMNS = ("part", "seconds", "share", "device_seconds", "allocated_mib")


class Profile(Callback):
    """Profiles the updates from the third to the fifth that this process makes.

    Args:
        folder: where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen = 0
        self._profile: Any = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._seen == SKIPPED and trainer.is_global_zero:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, profile_memory=True)
            self._profile.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seen += 1
        if self._profile is not None and self._seen == SKIPPED + PROFILED:
            self._write()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._profile is not None:  # fewer updates than that
            self._write()

    def _write(self) -> None:
        self._profile.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self.folder / "trace.json.gz"))
        rows = part_rows(self._profile.key_averages())
        self._profile = None
        with (self.folder / "profile.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([COLUMNS, *rows])
        (self.folder / "profile.md").write_text(markdown(rows), encoding="utf-8")


def part_rows(events: Any) -> list[tuple[str, float, float, float, float]]:
    """A row a part, all of them by update: see `COLUMNS`.

    Args:
        events: a profile's averages by name.
    """
    by_name = {event.key: event for event in events}
    whole = by_name["update"]
    updates = whole.count
    rows = []
    for part in PARTS:
        if (event := by_name.get(part)) is not None:
            rows.append(_row(part, event, updates, whole.cpu_time_total))
    spent = sum(row[1] for row in rows)
    total = _row("update", whole, updates, whole.cpu_time_total)
    rest = max(0.0, total[1] - spent)
    allocated = sum(row[4] for row in rows)
    rows.append(("rest", rest, rest / total[1], 0.0, total[4] - allocated))
    return [*rows, total]


def _row(name: str, event: Any, updates: int, whole: float) -> tuple[str, float, float, float, float]:
    seconds = event.cpu_time_total / 1e6 / updates
    device = event.device_time_total / 1e6 / updates
    # What was allocated less what was freed: what a part leaves behind for those after it.
    kept = (event.cpu_memory_usage + event.device_memory_usage) / 2**20 / updates
    return name, seconds, event.cpu_time_total / whole, device, kept


def markdown(rows: list[tuple[str, float, float, float, float]]) -> str:
    """The rows as a table."""
    lines = [
        "Where an update's time and memory went (the profiler itself slows it down).\n",
        "| part | CPU, s | share | device, s | memory kept, MiB |",
        "|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {name} | {seconds:.4f} | {share:.0%} | {device:.4f} | {kept:+.1f} |"
        for name, seconds, share, device, kept in rows
    ]
    return "\n".join(lines) + "\n"
