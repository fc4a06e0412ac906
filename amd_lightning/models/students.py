"""A student that starts as some of its teacher's layers, with the teacher's embeddings, final norm and head
(Sanh et al. 2019, arXiv 1910.01108; Shleifer & Rush 2020, arXiv 2010.13002)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from amd_lightning.errors import ModelError
from amd_lightning.models.adapters import is_tied

DEPTHS = {
    "encoder": ("encoder_layers", "num_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers"),
    "": ("num_hidden_layers",),
}
"""What a config calls the number of layers of a stack; "" is a decoder-only model's one stack."""


@dataclass(frozen=True)
class Layers:
    """Which of the teacher's layers: so many, spread evenly, or exactly these; an encoder's like the
    decoder's where nothing else is said."""

    count: int | None = None
    indices: Sequence[int] | None = None
    encoder_indices: Sequence[int] | None = None

    def of(self, stack: str, depth: int) -> list[int]:
        """The indices to take of a stack that has `depth` layers."""
        own = self.encoder_indices if stack == "encoder" else None
        indices = self.indices if own is None else own
        found = list(indices) if indices is not None else spread(self.count or 1, depth)
        if (found and found[-1] >= depth) or len(found) > depth:
            raise ModelError(
                f"pair.student.layers asks for layers {found}, and the teacher's {stack or 'stack'} has "
                f"{depth}, counted from 0; take fewer"
            )
        return found


def spread(count: int, depth: int) -> list[int]:
    """`count` of `depth` layers, evenly from first to last; a half rounds up: 3 of 12 are 0, 6, 11."""
    step = (depth - 1) / max(1, count - 1)
    return [int(place * step + 0.5) for place in range(count)]


def from_layers(teacher: PreTrainedModel, layers: Layers) -> PreTrainedModel:
    """A new model of the teacher's kind: its weights, without the layers that are left out.

    Where the layers of a T5 share what its first one holds (the relative position bias), the student's first
    layer holds it, whichever it was.

    Raises:
        ModelError: the layers are not there, or the model is not built as one stack of layers, or two.
    """
    stacks = _stacks(teacher)
    if layers.encoder_indices is not None and "encoder" not in stacks:
        raise ModelError(
            f"{type(teacher).__name__} has no encoder; leave pair.student.layers.encoder_indices out"
        )
    chosen = {name: layers.of(stack, len(blocks)) for stack, (name, blocks) in stacks.items()}
    config = shortened(teacher.config, layers)
    if "encoder" in stacks and len(chosen[stacks["encoder"][0]]) < len(chosen[stacks["decoder"][0]]):
        raise ModelError(
            "pair.student.layers leaves an encoder with fewer layers than the decoder, with which "
            "transformers cannot generate; set pair.student.layers.encoder_indices to as many at least"
        )
    student = type(teacher)(config)
    if is_tied(student) and not is_tied(teacher):
        head = student.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
    nn.Module.to(student, teacher.dtype)
    weights = teacher.state_dict()
    student.load_state_dict({key: _source(key, weights, chosen) for key in student.state_dict()})
    return student.eval()


def shortened(config: PreTrainedConfig, layers: Layers) -> PreTrainedConfig:
    """A teacher's config with the layers that its student keeps.

    Raises:
        ModelError: the layers are not there.
    """
    found = copy.deepcopy(config)
    for stack in ("encoder", "decoder") if config.is_encoder_decoder else ("",):
        depth = getattr(config, _depth(config, stack))
        _set_depth(found, stack, layers.of(stack, depth), depth)
    return found


def _depth(config: object, stack: str) -> str:
    """The field that holds a stack's number of layers."""
    return next(name for name in DEPTHS[stack] if hasattr(config, name))


def _stacks(model: PreTrainedModel) -> dict[str, tuple[str, nn.ModuleList]]:
    """ "encoder" and "decoder", or "" alone -> the name and the layers of the stack."""
    found: dict[str, tuple[str, nn.ModuleList]] = {}
    outermost: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in outermost):
            outermost.append(name)
            parts = name.split(".")
            stack = next((part for part in ("encoder", "decoder") if part in parts), "")
            found[stack if model.config.is_encoder_decoder else ""] = name, module
    expected = {"encoder", "decoder"} if model.config.is_encoder_decoder else {""}
    if set(found) != expected or len(outermost) != len(expected):
        raise ModelError(
            f"pair.student.init=layers does not know {type(model).__name__}, whose lists of layers are "
            f"{', '.join(outermost)}; load a student (pair.student.path=DIR)"
        )
    return found


def _set_depth(config: object, stack: str, chosen: Sequence[int], depth: int) -> None:
    """The new number of layers, and what the config lists for each of them (Qwen's `layer_types`)."""
    setattr(config, _depth(config, stack), len(chosen))
    for key, value in list(vars(config).items()):
        if "layer" in key and isinstance(value, list) and len(value) == depth:
            setattr(config, key, [value[index] for index in chosen])


def _source(key: str, weights: dict[str, Tensor], chosen: dict[str, list[int]]) -> Tensor:
    """The teacher's weight for one of the student's."""
    for name, indices in chosen.items():
        if key.startswith(f"{name}."):
            place, _, rest = key.removeprefix(f"{name}.").partition(".")
            own, shared = f"{name}.{indices[int(place)]}.{rest}", f"{name}.0.{rest}"
            return weights[own] if own in weights else weights[shared]
    return weights[key]


def build_student(teacher: PreTrainedModel, layers: Layers, dtype: str) -> PreTrainedModel:
    """`from_layers`, in a number type of its own."""
    student: PreTrainedModel = nn.Module.to(from_layers(teacher, layers), getattr(torch, dtype))
    return student
