"""The rules of a run on several devices."""

from collections.abc import Iterator
from typing import Any

from amd_lightning.config.schema import RunConfig


def device_problems(config: RunConfig) -> Iterator[str]:
    """What is wrong, one line each."""
    trainer, rollout = config.trainer, config.rollout
    size = trainer.devices * trainer.nodes
    batch_size = config.optim.student.batch_size
    if batch_size % size:
        yield (
            f"optim.student.batch_size={batch_size} is not divisible by the {size} devices, each of which "
            "takes as many prompts of every batch"
        )
    if size == 1 or trainer.strategy != "sharded":
        return
    if config.pair.student.lora.rank:
        yield (
            "trainer.strategy=sharded trains no adapters; set trainer.strategy=ddp, or "
            "pair.student.lora.rank=0"
        )
    if trainer.teacher == "sharded":
        if config.pair.teacher.quantization is not None:
            yield "trainer.teacher=sharded spreads no quantized weights; set trainer.teacher=replicated"
        if rollout.teacher_share and config.objective.beta < 1.0:
            yield (
                "trainer.teacher=sharded cannot draw tokens together with the student; set "
                "rollout.teacher_share=0 or trainer.teacher=replicated"
            )


def device_ignoring_rules(config: RunConfig) -> Iterator[tuple[Any, ...]]:
    """See `rules._ignoring_rules`."""
    trainer = config.trainer
    one = trainer.devices * trainer.nodes == 1
    for key in ("strategy", "teacher"):
        yield one, f"trainer.{key}", "trainer.devices=1"
    yield trainer.strategy != "sharded", "trainer.teacher", f"trainer.strategy={trainer.strategy}"
