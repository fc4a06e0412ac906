"""The rules of a pair: what is wrong between its knobs, and which of them a run would ignore."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from amd_lightning.config.choices import AttnImplementation, Init
from amd_lightning.config.schema import RunConfig

PYPI = "pypi:"


def pair_problems(config: RunConfig) -> Iterator[str]:
    """Every rule between a pair's knobs that is broken, one line each."""
    pair, optim, accelerator = config.pair, config.optim, config.trainer.accelerator
    for name, model in (("teacher", pair.teacher), ("student", pair.student)):
        if model.lora.rank > 0 and model.path is None:
            yield (
                f"pair.{name}.lora.rank={model.lora.rank} needs pair.{name}.path: adapters stand beside the "
                "weights of a model that is loaded"
            )
        if model.lora.rank > 0 and config.trainer.precision == "bf16-true":
            yield (
                f"pair.{name}.lora.rank={model.lora.rank} with trainer.precision=bf16-true would round the "
                "adapters' steps away; set trainer.precision=bf16-mixed "
                f"(pair.{name}.dtype=bfloat16 keeps the base small)"
            )
        if not model.lora.target_modules:
            yield f"pair.{name}.lora.target_modules=[] names no layer; all-linear is every one but the head"
        flash = model.attn_implementation is AttnImplementation.flash_attention_2
        if flash and (model.dtype != "bfloat16" or accelerator == "cpu"):
            yield (
                f"pair.{name}.attn_implementation=flash_attention_2 needs pair.{name}.dtype=bfloat16 and a "
                "GPU (trainer.accelerator=gpu)"
            )
    if pair.teacher.quantization is not None:
        if optim.teacher.updates > 0:
            yield (
                f"pair.teacher.quantization={pair.teacher.quantization} needs optim.teacher.updates=0: "
                "weights in so few bits cannot be trained"
            )
        if accelerator == "cpu":
            yield (
                f"pair.teacher.quantization={pair.teacher.quantization} needs a GPU (trainer.accelerator=gpu)"
            )
    if pair.student.path is None and pair.student.init is Init.layers:
        yield from _layer_problems(config)


def _layer_problems(config: RunConfig) -> Iterator[str]:
    layers = config.pair.student.layers
    if (layers.count is None) == (layers.indices is None):
        yield (
            "pair.student.init=layers needs either pair.student.layers.count or pair.student.layers.indices"
        )
    for name, indices in (("indices", layers.indices), ("encoder_indices", layers.encoder_indices)):
        if indices is not None and not _ascends(indices):
            yield f"pair.student.layers.{name}={list(indices)} must ascend, without repetition"
    if config.pair.teacher.quantization is not None:
        yield (
            f"pair.student.init=layers cannot copy a teacher with quantization="
            f"{config.pair.teacher.quantization}; load a student (pair.student.path=DIR)"
        )


def _ascends(indices: Sequence[int]) -> bool:
    return bool(indices) and all(low < high for low, high in pairwise(indices))


def pair_ignoring_rules(config: RunConfig) -> Iterator[tuple[Any, ...]]:
    """As `rules._ignoring_rules`: (whether it holds, the knob or section that is ignored, why)."""
    pair, optim = config.pair, config.optim
    for name, model in (("teacher", pair.teacher), ("student", pair.student)):
        path = f"pair.{name}.path={model.path}"
        from_wheel = model.path is not None and model.path.startswith(PYPI)
        for key in ("revision", "trust_remote_code", "allow_pickle"):
            yield model.path is None or from_wheel, f"pair.{name}.{key}", path.replace("None", "null")
        for key in ("alpha", "dropout", "target_modules"):
            yield model.lora.rank == 0, f"pair.{name}.lora.{key}", f"pair.{name}.lora.rank=0"
    for key in ("lora", "gradient_checkpointing"):
        still = optim.teacher.updates == 0
        yield still, f"pair.teacher.{key}", "optim.teacher.updates=0, which trains no teacher"
    student = pair.student
    for key in ("init", "layers"):
        yield student.path is not None, f"pair.student.{key}", f"pair.student.path={student.path}"
    yield student.init is not Init.layers, "pair.student.layers", f"pair.student.init={student.init}"
    yield student.init is Init.layers, "pair.student.architecture", "pair.student.init=layers"
