"""A plan as tables for a terminal, and as plain values."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table

from amd_lightning.planning.advice import changes, devices_that_fit, largest_micro_batch
from amd_lightning.planning.compute import flops
from amd_lightning.planning.memory import Memory, Workload, memory

GB = 10**9


class Stage(NamedTuple):
    """A training stage of a run.

    Attributes:
        name: for the tables.
        work: on one device, the whole batch.
        updates: how many.
        student, optimiser: the configuration's sections of the policy that learns and of its optimizer.
    """

    name: str
    work: Workload
    updates: int
    student: str
    optimiser: str


class Layout(NamedTuple):
    """On how many devices, and how they share."""

    name: str
    devices: int
    sharded: bool

    def of(self, work: Workload) -> Memory:
        """What one of the devices holds."""
        return memory(work if self.devices == 1 else work.on(self.devices, self.sharded))


def layouts(work: Workload, devices: int) -> list[Layout]:
    """One device; and where there are more, a copy on each, and shards. A CPU's processes share one memory,
    so there the machine is all."""
    if work.on_cpu:
        return [Layout("this machine", 1, False)]
    more = [Layout(f"{devices} copies", devices, False), Layout(f"{devices} shards", devices, True)]
    return [Layout("1 device", 1, False), *(more if devices > 1 else [])]


def plain(stages: Sequence[Stage], capacity: int, devices: int) -> dict[str, Any]:
    """Everything in numbers: parameters, tokens and operations an update, bytes, and what fits."""
    return {
        "capacity_bytes": capacity,
        "stages": [
            {
                "name": stage.name,
                "updates": stage.updates,
                "parameters": parameters(stage),
                "tokens_per_update": tokens(stage),
                "flops_per_update": flops(stage.work),
                "memory": [
                    {
                        "devices": layout.devices,
                        "sharded": layout.sharded,
                        "peak_bytes": layout.of(stage.work).peak,
                        "fits": layout.of(stage.work).peak <= capacity,
                        "stays": layout.of(stage.work).stays,
                        "phases": layout.of(stage.work).phases,
                    }
                    for layout in layouts(stage.work, devices)
                ],
                "advice": list(advice(stage, capacity)),
            }
            for stage in stages
        ],
    }


def parameters(stage: Stage) -> dict[str, int]:
    """Of each model and of what learns."""
    work = stage.work
    found = {stage.student: work.student.parameters + (work.adapters.parameters if work.adapters else 0)}
    if work.teacher:
        found["teacher"] = work.teacher.parameters + work.teacher_adapters
    if work.critics:
        found["critics"] = work.critics.count * work.critics.parameters
    return {**found, "trainable": work.trainable}


def tokens(stage: Stage) -> dict[str, int]:
    """An update's, at the full lengths."""
    work = stage.work
    each = work.batch_size * work.response_tokens
    found = {
        "prompt": work.batch_size * work.prompt_tokens,
        "response, off-policy": each * work.off_responses,
        "response, on-policy": each * work.on_responses,
    }
    return {name: count for name, count in found.items() if count}


def advice(stage: Stage, capacity: int) -> Iterator[str]:
    """One line each: what makes it fit, or the largest micro-batch that does."""
    work, peak = stage.work, memory(stage.work).peak
    if peak <= capacity:
        largest = largest_micro_batch(work, capacity)
        if largest > work.micro_batch_size:
            yield f"room for optim.{stage.optimiser}.micro_batch_size={largest}"
        return
    for change in changes(work, capacity):
        option = change.option.format(student=f"pair.{stage.student}", stage=stage.optimiser)
        yield f"{option}: {_gb(change.peak)}{', fits' if change.peak <= capacity else ''}"
    if work.on_cpu:
        return
    enough = devices_that_fit(work, capacity)
    yield (
        f"{enough[0]} devices, sharded: {_gb(enough[1])} each, fits" if enough else "no 64 devices hold it"
    )


def render(stages: Sequence[Stage], capacity: int, devices: int, title: str) -> RenderableType:
    """The tables."""
    parts: list[RenderableType] = [title, _sizes(stages)]
    for stage in stages:
        on = layouts(stage.work, devices)
        parts += ["", _memory_table(stage, capacity, on), *_verdict(stage, capacity, on)]
    return Group(*parts)


def _sizes(stages: Sequence[Stage]) -> Table:
    table = Table("", *(f"{stage.name}" for stage in stages), title="An update", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for title, of in (("parameters", parameters), ("tokens", tokens)):
        _rows(table, title, [of(stage) for stage in stages], _count)
    operations = [flops(stage.work) for stage in stages]
    _rows(table, "TFLOP", [{**parts, "in all": sum(parts.values())} for parts in operations], _tera)
    table.add_row("updates", *(f"{stage.updates:,}" for stage in stages))
    return table


def _rows(table: Table, title: str, columns: Sequence[dict[str, int]], words: Any) -> None:
    names = list(dict.fromkeys(name for column in columns for name in column))
    table.add_row(title, style="italic")
    for name in sorted(names, key=lambda name: name in ("trainable", "in all")):
        table.add_row(f"  {name}", *(words(column[name]) if name in column else "" for column in columns))
    table.add_section()


def _memory_table(stage: Stage, capacity: int, on: Sequence[Layout]) -> Table:
    """Part by part, GB on one device."""
    table = Table(f"{stage.name}: GB", *(layout.name for layout in on))
    for column in table.columns[1:]:
        column.justify = "right"
    found = [layout.of(stage.work) for layout in on]
    _rows(table, "stays", [each.stays for each in found], _bare_gb)
    for phase in found[0].phases:
        _rows(table, f"while: {phase}", [each.phases[phase] for each in found], _bare_gb)
    table.add_row("peak, in", *(each.largest_phase for each in found))
    table.add_row(f"peak of {capacity / GB:.4g}", *(_bare_gb(each.peak) for each in found), style="bold")
    return table


def _verdict(stage: Stage, capacity: int, on: Sequence[Layout]) -> list[str]:
    lines = []
    for layout in on:
        peak = layout.of(stage.work).peak
        word = "fits" if peak <= capacity else "DOES NOT FIT"
        lines.append(f"{layout.name}: {word} ({_gb(peak)} of {capacity / GB:.4g} GB)")
    return [*lines, *(f"  {line}" for line in advice(stage, capacity))]


def _gb(size: int) -> str:
    return f"{_bare_gb(size)} GB"


def _bare_gb(size: int) -> str:
    """Small models are told apart too."""
    return f"{size / GB:.2f}" if size >= 0.1 * GB else f"{size / GB:.3f}"


def _count(number: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.2f}{letter}"
    return f"{number:,}"


def _tera(number: int) -> str:
    return f"{number / 10**12:,.2f}"
