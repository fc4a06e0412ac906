"""The rules of what a run is carried out with: several devices, vLLM, torch.compile."""

from collections.abc import Iterator
from typing import Any

from amd_lightning.config.choices import Backend, Family
from amd_lightning.config.schema import RunConfig


def device_problems(config: RunConfig) -> Iterator[str]:
    """What is wrong, one line each."""
    trainer, rollout = config.trainer, config.rollout
    if rollout.backend is Backend.vllm and config.objective.beta < 1.0:
        yield from _vllm_problems(config)
    if trainer.compile and trainer.strategy == "sharded":
        yield "trainer.compile does not go with trainer.strategy=sharded; set trainer.compile=false"
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


def _vllm_problems(config: RunConfig) -> Iterator[str]:
    student, trainer = config.pair.student, config.trainer
    instead = "or set rollout.backend=hf"
    if student.path is None and config.pair.teacher.path is None and student.architecture.family is Family.t5:
        yield f"rollout.backend=vllm writes with causal students alone: set pair=llama_demo, {instead}"
    if student.lora.rank:
        yield f"rollout.backend=vllm takes no adapters: set pair.student.lora.rank=0, {instead}"
    if config.rollout.teacher_share:
        yield f"rollout.backend=vllm draws no tokens with the teacher: set rollout.teacher_share=0, {instead}"
    if trainer.devices * trainer.nodes > 1:
        yield f"rollout.backend=vllm runs on one device: set trainer.devices=1, {instead}"


def device_ignoring_rules(config: RunConfig) -> Iterator[tuple[Any, ...]]:
    """See `rules._ignoring_rules`."""
    trainer = config.trainer
    one = trainer.devices * trainer.nodes == 1
    hf = config.rollout.backend is Backend.hf
    yield hf, "rollout.vllm_memory_share", "rollout.backend=hf"
    for key in ("strategy", "teacher"):
        yield one, f"trainer.{key}", "trainer.devices=1"
    yield trainer.strategy != "sharded", "trainer.teacher", f"trainer.strategy={trainer.strategy}"
