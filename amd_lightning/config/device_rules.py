"""The rules of the machine a run is made on: several devices, a GPU shared with vLLM, compiled models."""

from collections.abc import Iterator
from typing import Any

from amd_lightning.config.choices import Backend, Family, Init
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
    yield from _vllm_problems(config, size)
    yield from _compile_problems(config, size)
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


def _vllm_problems(config: RunConfig, size: int) -> Iterator[str]:
    trainer, student = config.trainer, config.pair.student
    if config.rollout.backend is not Backend.vllm or config.objective.beta == 1.0:
        return
    asked = "rollout.backend=vllm"
    if trainer.accelerator == "cpu":
        yield f"{asked} needs a GPU; set trainer.accelerator=gpu, or rollout.backend=hf"
    if size > 1:
        yield f"{asked} writes on one device, not {size}; set trainer.devices=1, or rollout.backend=hf"
    built = config.pair.teacher if student.init is Init.layers else student
    if student.path is None and built.path is None and built.architecture.family is Family.t5:
        yield f"{asked} writes with causal models only, not T5; choose another pair, or rollout.backend=hf"
    if student.lora.rank:
        yield f"{asked} takes no adapters; set pair.student.lora.rank=0, or rollout.backend=hf"
    if config.rollout.teacher_share:
        yield f"{asked} cannot mix in the teacher; set rollout.teacher_share=0, or rollout.backend=hf"


def _compile_problems(config: RunConfig, size: int) -> Iterator[str]:
    if not config.trainer.compile:
        return
    if size > 1:
        yield f"trainer.compile=true trains on one device, not {size}; leave it out, or set trainer.devices=1"
    for name, model in (("teacher", config.pair.teacher), ("student", config.pair.student)):
        if model.lora.rank:
            yield f"trainer.compile=true compiles no adapters; leave it out, or set pair.{name}.lora.rank=0"
        if model.gradient_checkpointing:
            yield (
                "trainer.compile=true goes with no gradient checkpointing; leave it out, or set "
                f"pair.{name}.gradient_checkpointing=false"
            )
    if config.pair.teacher.quantization is not None:
        yield "trainer.compile=true compiles no quantized teacher; leave it out, or pair.teacher.quantization"


def device_ignoring_rules(config: RunConfig) -> Iterator[tuple[Any, ...]]:
    """See `rules._ignoring_rules`."""
    trainer = config.trainer
    one = trainer.devices * trainer.nodes == 1
    for key in ("strategy", "teacher"):
        yield one, f"trainer.{key}", "trainer.devices=1"
    yield trainer.strategy != "sharded", "trainer.teacher", f"trainer.strategy={trainer.strategy}"
    yield trainer.accelerator == "cpu", "trainer.deterministic", "trainer.accelerator=cpu"
    backend = config.rollout.backend
    yield backend is not Backend.vllm, "rollout.vllm_memory_share", f"rollout.backend={backend}"
