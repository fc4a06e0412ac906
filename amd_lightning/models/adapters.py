"""LoRA (Hu et al. 2022, arXiv 2106.09685): low-rank adapters that learn in place of a model's weights.

peft's adapters inside a transformers model: the model stays what it was, and nobody but this file knows.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from amd_lightning.errors import ModelError

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of a peft folder."""
PREFIX = "base_model.model."
"""What peft puts before the names of a model's layers."""


@dataclass(frozen=True)
class Lora:
    """Adapters to train.

    Attributes:
        rank: of the update, at least 1.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapters' input while training.
        target_modules: ends of the names of the layers that get one; "all-linear" alone for every linear
            layer but the head (as in QLoRA: Dettmers et al. 2023, arXiv 2305.14314).
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]


def add_adapters(model: PreTrainedModel, lora: Lora) -> None:
    """Put adapters into the model and freeze everything else. They begin as zero: the model computes what it
    did. Their weights, float32 whatever the model's type, are drawn from torch's global random stream.

    Raises:
        ModelError: no layer of that name, or the head while it shares its weights with the embeddings.
    """
    from peft import LoraConfig

    targets: Any = list(lora.target_modules)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a scale, which peft only divides
        lora_dropout=lora.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2's
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    try:
        model.add_adapter(config)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"lora.target_modules={list(lora.target_modules)} does not fit {type(model).__name__}: {reason}; "
            "name layers as the model does, or all-linear"
        ) from error
    if is_tied(model) and _has_adapter(model.get_output_embeddings()):
        raise ModelError(
            f"lora.target_modules={list(lora.target_modules)} takes in the head, which shares its weights "
            "with the embeddings: merging would change both; leave it out"
        )
    _in_float32(model)


def load_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Put the adapters of a peft folder into their base, to be trained further.

    Raises:
        ModelError: they are no LoRA, not in safetensors, or belong to another model.
    """
    from peft import LoraConfig, PeftConfig, set_peft_model_state_dict

    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"the adapters {folder} have no {WEIGHTS}; save them again with a recent peft")
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ModelError(f"the adapters {folder} are {config.peft_type}, not LoRA; merge them with peft")
    config.inference_mode = False
    model.add_adapter(config)
    stored = {name.removeprefix(PREFIX): value for name, value in load_file(folder / WEIGHTS).items()}
    found: Any = set_peft_model_state_dict(model, stored)
    missing = [name for name in found.missing_keys if "lora_" in name]
    if missing or found.unexpected_keys:
        raise ModelError(
            f"the adapters {folder} do not fit {type(model).__name__}: {len(missing)} of its weights are "
            f"missing and {len(found.unexpected_keys)} are too many; give the base that they were trained on"
        )
    _in_float32(model)


def save_adapters(model: PreTrainedModel, folder: Path, base: str, revision: str | None) -> None:
    """The adapters alone, a peft folder that names its base."""
    from peft import get_peft_model_state_dict

    config: Any
    (config,) = model.peft_config.values()
    config.base_model_name_or_path, config.revision = base, revision
    config.save_pretrained(str(folder))
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(
        {PREFIX + name: value.detach().contiguous() for name, value in weights.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether the model has adapters in it."""
    return any(_has_adapter(module) for module in model.modules())


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy without adapters that computes what the model does: W + (alpha / rank)·B·A in W's place."""
    model = copy.deepcopy(model)
    merge(model)
    return model


def merge(model: PreTrainedModel) -> None:
    """Add the adapters to the weights that they stand beside, and take them out."""
    layers: list[tuple[str, BaseTunerLayer]] = [
        (name, module) for name, module in model.named_modules() if _has_adapter(module)
    ]
    for name, layer in layers:
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    model._hf_peft_config_loaded = False
    if layers:
        del model.peft_config
    model.requires_grad_(True)


def is_adapter(folder: Path) -> bool:
    """Whether a folder is a peft folder."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> tuple[str, str | None]:
    """The base that a peft folder names, and its revision.

    Raises:
        ModelError: the folder names no base, or one that is a folder and is not there.
    """
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{folder / CONFIG} is no JSON object ({error}): save the adapters again") from error
    if not base:
        raise ModelError(f"the adapters {folder} name no base; set base_model_name_or_path in their {CONFIG}")
    if base.startswith((".", "/", "~")) and not Path(base).expanduser().is_dir():
        raise ModelError(
            f"the adapters {folder} belong on the model folder {base}, which is not there; put it back or "
            f"change base_model_name_or_path in their {CONFIG}"
        )
    return base, revision


def is_tied(model: PreTrainedModel) -> bool:
    """Whether head and embeddings share their weights."""
    head, embeddings = (_base(model.get_output_embeddings()), _base(model.get_input_embeddings()))
    return head is not None and embeddings is not None and head.weight is embeddings.weight


def learning_names(model: PreTrainedModel) -> Sequence[str]:
    """Names of the parameters that learn."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _has_adapter(module: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def _base(module: Any) -> Any:
    return module.get_base_layer() if _has_adapter(module) else module


def _in_float32(model: PreTrainedModel) -> None:
    """Adapters learn with steps that bfloat16 would round away."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
