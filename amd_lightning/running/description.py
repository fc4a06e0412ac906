"""What was run, as results.json and the loggers have it: from a configuration to plain values."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from amd_lightning.config.choices import CriticKind, Distance, Writer
from amd_lightning.config.rules import LEARNING, PARAMETER_OF, uses_off_policy
from amd_lightning.config.schema import RunConfig


def describe(config: RunConfig, command: str) -> dict[str, Any]:
    """What was run, for results.json: runs whose descriptions differ in their seeds alone are comparable."""
    return {
        "task": config.data.task,
        "experiment": config.experiment,
        "scale": config.scale,
        "source": str(config.data.source),
        "pair": config.pair.name,
        "objective": _objective(config),
        "rollout": _rollout(config),
        "learning_rate": config.optim.student.learning_rate,
        "updates": config.optim.student.updates,
        "seed": config.seed,
        "pair_seed": config.pair.seed,
        "command": command,
    }


def objective_name(config: RunConfig) -> str:
    """Distance, critic and beta, and what else makes an objective of them: the same for all its seeds."""
    objective, rollout = config.objective, config.rollout
    name = f"{objective.distance}"
    if objective.distance is Distance.moment_matching:
        name += f"_{config.critic.kind}"
        name += "" if config.critic.alpha_start is None else " rising"
    name += f" beta {objective.beta:g}"
    learns_from_own = objective.beta < 1.0
    parts = {
        "adaptive": learns_from_own and objective.adaptive_beta.step > 0.0,
        "replay": learns_from_own and (rollout.replay.capacity > 0 or rollout.reuse > 1),
        f"gamma {objective.horizon.gamma:g}": learns_from_own and objective.horizon.gamma > 0.0,
        f"kernel {objective.kernel.weight:g}": learns_from_own and objective.kernel.weight > 0.0,
        f"sft {objective.sft_weight:g}": objective.sft_weight > 0.0,
        f"{rollout.off_policy} responses": uses_off_policy(objective)
        and rollout.off_policy is Writer.teacher,
    }
    return " ".join([name, *(part for part, there in parts.items() if there)])


def _objective(config: RunConfig) -> dict[str, Any]:
    """The objective's knobs, without those that this run ignores."""
    objective = _plain(config.objective)
    ignored = {key for key, distances in PARAMETER_OF.items() if config.objective.distance not in distances}
    ignored |= {"horizon"} if config.objective.horizon.gamma == 0.0 else set()
    ignored |= {"kernel"} if config.objective.kernel.weight == 0.0 else set()
    ignored |= {"adaptive_beta"} if config.objective.adaptive_beta.step == 0.0 else set()
    ignored |= {"sft_weight"} if config.objective.sft_weight == 0.0 else set()
    found = {key: value for key, value in objective.items() if key not in ignored}
    if config.objective.distance is Distance.moment_matching:
        kind = config.critic.kind
        critic = _plain(config.critic)
        if critic["alpha_start"] is None:
            del critic["alpha_start"], critic["alpha_path"]
        if kind in LEARNING:
            found["critic"] = {**critic, "learning_rate": config.optim.critic.learning_rate}
        else:
            closed = ("kind", "alpha", "alpha_start", "alpha_path", "ridge")
            known = closed if kind is CriticKind.closed_form else ("kind",)
            found["critic"] = {key: critic[key] for key in known if key in critic}
    return found


def _rollout(config: RunConfig) -> dict[str, Any]:
    """The rollouts' knobs, without those that are off."""
    rollout = config.rollout
    off = {"replay": rollout.replay.capacity == 0, "reuse": rollout.reuse == 1}
    off["teacher_top_k"] = rollout.teacher_top_k is None
    return {key: value for key, value in _plain(rollout).items() if not off.get(key, False)}


def _plain(section: Any) -> dict[str, Any]:
    """A section of the configuration as plain values."""
    plain = OmegaConf.to_container(OmegaConf.structured(section), enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def without_secrets(plain: Mapping[Any, Any]) -> dict[str, Any]:
    """The configuration with the values of keys that name a secret replaced."""

    def cleaned(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {inner: cleaned(str(inner), item) for inner, item in value.items()}
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            return [cleaned(key, item) for item in value]
        words = ("api_key", "apikey", "password", "secret")
        secret = any(word in key.lower() for word in words) or key.lower().endswith("token")
        return "***" if secret and value is not None else value

    return {str(key): cleaned(str(key), value) for key, value in plain.items()}
