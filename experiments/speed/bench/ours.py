"""A worker of the bench: a run as `python -m amd_lightning.run` makes it, Lightning, loggers and all.

    python experiments/speed/bench/ours.py PAIR OUTPUT [OVERRIDE ...]

It goes through the run's own pipeline; a callback, the last one to be called, waits between two updates.
"""

import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from protocol import Gate

from amd_lightning import conf_dir
from amd_lightning.build import build
from amd_lightning.cli import validated
from amd_lightning.modules.clock import Clock
from amd_lightning.pipeline import Pipeline
from amd_lightning.running.allocator import keep_freed_memory
from amd_lightning.training import distillation
from amd_lightning.training.fitting import quiet_libraries

ENDLESS = 1_000_000


class Waits(Callback):
    """Hands over to the gate between two updates.

    Parts of an update are told in the seconds that the driver compares: the process's own on one thread.
    """

    def __init__(self, gate: Gate, threads: int) -> None:
        self.gate = gate
        self.now = time.process_time if threads == 1 else time.perf_counter
        self.parts: list[dict[str, float]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.clock = Clock(self.now)
        self.gate.between_updates()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        clock = getattr(pl_module, "clock", None)
        if clock is not None and (read := clock.read()):
            self.parts = [*self.parts[-19:], read]
            self.gate.extra["parts"] = {
                name.removeprefix("time/"): statistics.median(parts[name] for parts in self.parts)
                for name in read
                if name != "time/between"  # which the driver's turns are part of, here
            }
        self.gate.between_updates()


def main() -> None:
    """Run until the driver ends it."""
    pair, output, *overrides = sys.argv[1:]
    gate = Gate()
    keep_freed_memory()  # as one_run.py does
    own_fit = distillation.fit

    def fit(*arguments: Any, callbacks: Any, **options: Any) -> None:
        own_fit(*arguments, callbacks=[*callbacks, Waits(gate, torch.get_num_threads())], **options)

    distillation.fit = fit
    given = [
        "+experiment=samsum",
        "logger=csv",
        "data.source=files",
        f"data.path={pair}",
        "data.template=chat",
        f"pair.teacher.path={pair}/teacher",
        f"pair.student.path={pair}/student",
        "optim.teacher.updates=0",
        "optim.student_start.updates=0",
        f"optim.student.updates={ENDLESS}",
        "optim.student.batch_size=8",
        "data.train_rows=null",
        "data.valid_rows=1",
        "data.test_rows=1",
        "data.max_prompt_tokens=64",
        "data.max_response_tokens=64",
        "evaluation.samples=1",
        "trainer.validate_every=0",
        f"trainer.checkpoint_every={ENDLESS}",
        f"output_dir={output}",
        *overrides,
    ]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("config", given)
    config = validated(composed, given, refuse_ignored=False)
    plain = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    Path(output).mkdir(parents=True, exist_ok=True)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    quiet_libraries()
    Pipeline(build(config, plain)).run()


if __name__ == "__main__":
    main()
