"""Kill -9 a short run at random moments, take it up again, and compare with the run that was left alone.

    python experiments/resume/kills.py [--kills 20] [--out experiments/resume/README.md]
    python experiments/resume/kills.py --set trainer.accelerator=gpu    # where there is a GPU

Every attempt is a process of its own (a fork of this one, which has the libraries in memory), killed from
outside: some at a moment drawn uniformly over the distillation, some as soon as a drawn update is in its
generation, its critic steps, or its checkpoint. The command that is run again is the same one.
"""

import argparse
import csv
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import RawArray
from pathlib import Path
from typing import Any

OPTIONS = [
    "+experiment=samsum",
    "data.train_rows=64",
    "data.valid_rows=8",
    "data.test_rows=8",
    "data.max_prompt_tokens=64",
    "data.max_response_tokens=16",
    "data.long_responses=truncate",
    "pair.tokenizer.vocabulary_size=400",
    "optim.teacher={updates: 20, batch_size: 8, learning_rate: 1e-2, warmup_updates: 1}",
    "optim.student_start={updates: 10, batch_size: 8, learning_rate: 1e-2, warmup_updates: 0}",
    "optim.student={updates: 30, batch_size: 8, learning_rate: 1e-2, warmup_updates: 2}",
    *(
        f"pair.{who}.architecture={{d_model: {width}, d_kv: 8, d_ff: 32, num_heads: 2, num_layers: 1, "
        "num_decoder_layers: 1}"
        for who, width in (("teacher", 32), ("student", 16))
    ),
    "objective.beta=0.5",
    "critic=residual",
    "rollout.replay.capacity=16",
    "rollout.replay.refresh=0.5",
    "trainer.validate_every=10",
    "trainer.log_every=1",
    "trainer.checkpoint_every=4",
    "trainer.threads=1",
    "trainer.progress=off",
    "logger=csv",
]
UPDATES = 30
PHASES = ("outside", "generation", "critic steps", "rest of the update", "validation", "checkpoint")

# Shared with the child: the phase that it is in, the update that it makes, whether it has begun to distil.
STATE = RawArray("i", 3)


def watched(owner: Any, name: str, phase: str) -> None:
    """Say in STATE when a method is running; nested ones come back to the outer phase."""
    own = getattr(owner, name)

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        before, STATE[0] = STATE[0], PHASES.index(phase)
        try:
            return own(self, *arguments, **named)
        finally:
            STATE[0] = before

    setattr(owner, name, call)


def prepare() -> None:
    """Import everything once, and put the watches in."""
    import torch

    from amd_lightning.modules.adversarial import AdversarialModule
    from amd_lightning.modules.base import DistillationModule
    from amd_lightning.rollouts import BackendSampler
    from amd_lightning.training.tracking import LastCheckpoint, Validate

    torch.set_num_threads(1)
    watched(BackendSampler, "__call__", "generation")
    watched(AdversarialModule, "critic_steps", "critic steps")
    watched(Validate, "_validate", "validation")
    watched(LastCheckpoint, "_save", "checkpoint")
    own = DistillationModule.training_step

    def step(self: Any, *arguments: Any) -> None:
        if isinstance(self, AdversarialModule):
            STATE[1], STATE[2] = self.update + 1, 1
        own(self, *arguments)

    DistillationModule.training_step = step  # type: ignore[method-assign]
    watched(DistillationModule, "training_step", "rest of the update")


def attempt(folder: Path, kill: Callable[[], bool] | None) -> tuple[int, float]:
    """Run the command in a child; kill it when `kill` says so. (status, seconds of distillation)."""
    STATE[0] = STATE[1] = STATE[2] = 0
    child = os.fork()
    if child == 0:
        silence = os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        from amd_lightning import run

        sys.argv = ["run.py", *OPTIONS, f"hydra.run.dir={folder}"]
        try:
            run.main()
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 1)
        os._exit(0)
    begun = None
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), time.monotonic() - (begun or time.monotonic())
        begun = begun or (time.monotonic() if STATE[2] else None)
        if kill is not None and begun is not None and kill():
            os.kill(child, signal.SIGKILL)
            kill = None
        time.sleep(0.0005)


def left(folder: Path) -> tuple[bytes, list[dict[str, str]], Any]:
    """The student's weights; metrics.csv and results.json without their clocks."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    results = json.loads((folder / "results.json").read_text())
    measured = [{**results[who], "seconds": None} for who in ("student", "teacher")]
    kept = [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]
    return (folder / "student" / "model.safetensors").read_bytes(), kept, measured


def newest_update(folder: Path) -> str:
    """Of the checkpoint that the next attempt goes on from."""
    from amd_lightning.training.state import newest

    found = newest(folder / "checkpoints")
    return "none" if found is None else str(found[1]["progress"]["update"])


def moment(number: int, seconds: float, draw: random.Random) -> tuple[str, Callable[[], bool]]:
    """What the kill of this number is aimed at, in words, and what says when."""
    aim = number % 5
    if aim < 2:
        after = draw.uniform(0.0, seconds)
        begun: list[float] = []

        def in_time() -> bool:
            begun.append(time.monotonic())
            return begun[-1] - begun[0] >= after

        return f"{after:.2f} s", in_time
    phase, update = {2: "generation", 3: "critic steps", 4: "checkpoint"}[aim], draw.randint(1, UPDATES - 2)

    def in_phase() -> bool:
        return STATE[0] == PHASES.index(phase) and STATE[1] >= update

    return f"{phase}, update {update} or later", in_phase


def main() -> None:
    """Print the table, and write it below the heading of a README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a README whose table is replaced")
    parser.add_argument("--set", nargs="+", default=[], help="overrides of all: trainer.accelerator=gpu")
    options = parser.parse_args()
    OPTIONS.extend(options.set)
    root = Path(tempfile.mkdtemp(prefix="kills_"))
    os.environ["AMD_LIGHTNING_CACHE"] = str(root / "cache")
    prepare()
    for name in ("first", "again", "alone"):  # the first one fills the cache
        status, seconds = attempt(root / name, None)
        assert status == 0, (root / f"{name}.log").read_text()
    alone = left(root / "alone")
    words = ["same" if a == b else "DIFFERS" for a, b in zip(left(root / "again"), alone, strict=True)]
    print(f"left alone twice (weights, metrics.csv, results): {', '.join(words)}", flush=True)
    lines = [
        "| kill | aimed at | struck in | update | went on after | weights | metrics.csv | results |",
        "|---|---|---|---|---|---|---|---|",
    ]
    failures, draw = 0, random.Random(options.seed)
    for number in range(1, options.kills + 1):
        status, misses = 0, 0
        while status != -signal.SIGKILL:  # one that came too late is no kill: another moment is drawn
            aim, kill = moment(number, seconds, draw)
            folder = root / f"{number}_{misses}"
            status, _ = attempt(folder, kill)
            misses += 1
        struck = (PHASES[STATE[0]], STATE[1])
        update = newest_update(folder)
        status, _ = attempt(folder, None)
        same = [a == b for a, b in zip(left(folder), alone, strict=True)] if status == 0 else [False] * 3
        failures += not all(same)
        words = ["same" if equal else "DIFFERS" for equal in same]
        lines.append(f"| {number} | {aim} | {struck[0]} | {struck[1]} | {update} | {' | '.join(words)} |")
        print(lines[-1], flush=True)
    table = "\n".join(lines) + "\n"
    if options.out:
        text = options.out.read_text()
        options.out.write_text(text.partition("<!-- table -->")[0] + "<!-- table -->\n" + table)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
