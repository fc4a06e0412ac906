"""What makes a run the method it is: its objective with its critic, and who writes its states."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from amd_lightning.analysis.compare.collect import Run, flat
from amd_lightning.analysis.runs import distance_name

UNKNOWN = "(not said)"
"""The value of a knob in runs of a version that had no such knob."""

ADAPTIVE = "objective.adaptive_beta.step"

OPTIONAL: dict[str, tuple[str, Any]] = {
    "objective.sft_weight": ("objective.sft_weight", 0),
    "objective.horizon.": ("objective.horizon.gamma", 0),
    "objective.kernel.": ("objective.kernel.weight", 0),
    "objective.adaptive_beta.": (ADAPTIVE, 0),
    "objective.critic.alpha_": ("objective.critic.alpha_start", None),
    "rollout.replay.": ("rollout.replay.capacity", 0),
    "rollout.reuse": ("rollout.reuse", 1),
    "rollout.teacher_share": ("rollout.teacher_share", 0),
    "rollout.teacher_top_k": ("rollout.teacher_top_k", None),
}
"""What a method may have or not: how its knobs begin -> the knob that turns it on, and that one's value where
it is off. results.json says nothing of what is off; a version that had no such knob did without it."""

SWITCHES = {knob for knob, _ in OPTIONAL.values()}


def settings_of(run: Run, by: Sequence[str] = ()) -> dict[str, Any]:
    """The objective with its critic, who wrote the responses, and what else was asked for; flat, without what
    is off."""
    found = flat({"objective": run.results.get("objective", {}), "rollout": run.results.get("rollout", {})})
    for head, (switch, off) in OPTIONAL.items():
        if found.get(switch, off) == off:
            found = {key: value for key, value in found.items() if not key.startswith(head)}
    if found.get("objective.beta") == 0 and ADAPTIVE not in found:
        found.pop("rollout.off_policy", None)  # nobody's are used
    else:
        written = "teacher_responses" in run.results.get("cache_keys", {})
        found.setdefault("rollout.off_policy", "teacher" if written else "data")
    return found | {key: run.setting(key) for key in by}


def moves_with_validations(run: Run) -> bool:
    """Whether what a run learns depends on when it validates: a β that falls at validations."""
    return ADAPTIVE in settings_of(run)


def fill(known: Sequence[dict[str, Any]]) -> None:
    """Knobs that only later versions name take the one value that these have; so versions can be compared."""
    for distance in {settings.get("objective.distance") for settings in known}:
        alike = [settings for settings in known if settings.get("objective.distance") == distance]
        for key in {key for settings in alike for key in settings if not key.startswith(tuple(OPTIONAL))}:
            values = {json.dumps(s[key], default=str) for s in alike if key in s}
            for settings in alike:
                settings.setdefault(key, json.loads(next(iter(values))) if len(values) == 1 else UNKNOWN)


def families(settings: Sequence[Mapping[str, Any]], by: Sequence[str] = ()) -> list[str]:
    """A name a method, without β: its distance, and what tells it from others of the same distance."""
    names = []
    for own in settings:
        distance = own.get("objective.distance")
        others = [other for other in settings if other.get("objective.distance") == distance]
        telling = [
            _told(key, own[key])
            for key in sorted(own)
            if key not in ("objective.beta", *by) and _tells(key, others)
        ]
        extra = [
            _told(key, own.get(key)) for key in by if len({str(other.get(key)) for other in settings}) > 1
        ]
        words = dict.fromkeys([distance_name({"objective": {"distance": distance}}), *telling, *extra])
        names.append(", ".join(words))
    return names


def _tells(key: str, others: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these differ in a knob, or some of them do without what it turns on."""
    values = {json.dumps(other[key], default=str) for other in others if key in other}
    return len(values) > 1 or (key in SWITCHES and any(key not in other for other in others))


def _told(key: str, value: Any) -> str:
    """A setting in words: "closed form critic", "α 0.25", "updates 500"."""
    if key == "objective.critic.kind":
        return f"{said(value).replace('_', ' ')} critic"
    if key == "rollout.off_policy":
        return f"{said(value)} responses"
    return f"{_in_words(key)} {said(value)}"


def _in_words(key: str) -> str:
    """A knob's name where its last word alone says too little."""
    words = {
        "objective.critic.alpha": "α",
        "objective.critic.alpha_start": "α from",
        "objective.horizon.gamma": "γ",
        "objective.kernel.weight": "kernel",
        ADAPTIVE: "adaptive β",
        "rollout.replay.capacity": "replay",
    }
    return words.get(key, last(key))


def last(key: str) -> str:
    """The last word of a knob's name: "updates" of optim.student.updates."""
    return key.rpartition(".")[2].replace("_", " ")


def said(value: Any) -> str:
    """A knob's value as text."""
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)
