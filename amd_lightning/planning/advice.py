"""Where a stage does not fit: what to change, and the peak that it would give."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from amd_lightning.planning.activations import LAYERS
from amd_lightning.planning.memory import Workload, memory
from amd_lightning.planning.shapes import Adapters

LORA_RANK = 16
NOTICEABLE = 0.98
"""A change that leaves more of the peak than this is not worth a line."""


class Change(NamedTuple):
    """A change of the configuration as the command line has it, and the peak on one device after it.

    {student} in the option stands for the section of the policy that learns, {stage} for its optimizer's.
    """

    option: str
    peak: int


def changes(work: Workload, capacity: int) -> list[Change]:
    """What lowers the peak: each change by itself; if none of them fits, as many together as it takes.

    Args:
        work: the whole batch's stage on one device.
        capacity: bytes of a device.
    """
    peak, found = memory(work).peak, []
    useful: list[tuple[str, Callable[[Workload], Workload]]] = []
    for option, apply in _candidates(work):
        changed = apply(work)
        if changed != work and (lower := memory(changed).peak) < NOTICEABLE * peak:
            found.append(Change(option, lower))
            useful.append((option, apply))
    if all(change.peak > capacity for change in found):
        together, options = work, {}
        for option, apply in useful:
            changed = apply(together)
            if memory(changed).peak >= memory(together).peak:
                continue
            together = changed
            options[option.partition("=")[0]] = option  # the later of two values for one knob
            if memory(together).peak <= capacity:
                break
        if len(options) > 1:
            found.append(Change(" ".join(options.values()), memory(together).peak))
    return found


def devices_that_fit(work: Workload, capacity: int, most: int = 64) -> tuple[int, int] | None:
    """The fewest devices (a power of 2) that hold the stage in shards, each one's peak; None over `most`."""
    devices = 2
    while devices <= most:
        peak = memory(work.on(devices, sharded=True)).peak
        if peak <= capacity:
            return devices, peak
        devices *= 2
    return None


def largest_micro_batch(work: Workload, capacity: int) -> int:
    """The largest divisor of the batch that fits as a micro-batch; 0 where none does."""
    fitting = [
        size
        for size in range(1, work.batch_size + 1)
        if work.batch_size % size == 0 and memory(replace(work, micro_batch_size=size)).peak <= capacity
    ]
    return max(fitting, default=0)


def _candidates(work: Workload) -> list[tuple[str, Callable[[Workload], Workload]]]:
    half = max(1, work.micro_batch_size // 2)
    chunk, decoded = min(128, work.chunk_tokens), max(1, work.decoded_prompts // 4)
    return [
        (f"optim.{{stage}}.micro_batch_size={half}", lambda w: replace(w, micro_batch_size=half)),
        ("optim.{stage}.micro_batch_size=1", lambda w: replace(w, micro_batch_size=1)),
        (f"trainer.chunk_tokens={chunk}", lambda w: replace(w, chunk_tokens=chunk)),
        (f"evaluation.batch_size={decoded}", lambda w: replace(w, decoded_prompts=decoded)),
        ("{student}.gradient_checkpointing=true", lambda w: replace(w, checkpointing=True)),
        ("pair.teacher.dtype=bfloat16", lambda w: replace(w, teacher_bytes=min(2, w.teacher_bytes))),
        (f"{{student}}.lora.rank={LORA_RANK}", _with_lora),
        (
            f"{{student}}.lora.rank={LORA_RANK} {{student}}.dtype=bfloat16",
            lambda w: replace(_with_lora(w), student_bytes=min(2, w.student_bytes)),
        ),
    ]


def _with_lora(work: Workload) -> Workload:
    """Adapters on all linear layers but the head, as far as the shape tells their sizes."""
    if work.adapters:
        return work
    shape = work.student
    reads = LAYERS[shape.kind].reads + (1 if shape.gated else 0)
    inputs = reads * shape.width + shape.attention + shape.feed_forward
    encoder, decoder = inputs * shape.encoder_layers, inputs * shape.decoder_layers
    parameters = 2 * LORA_RANK * (encoder + decoder)  # as many outputs as inputs, about
    return replace(work, adapters=Adapters(parameters, encoder, decoder, dropout=False))
