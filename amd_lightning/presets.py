"""The named methods of `conf/objective` as a table: `python -m amd_lightning.presets` writes it beside them.

Each file says in its header what it is, in `# differs:` what differs from the source, and in `# source:`
where its numbers are from; what it sets is read from the composed configuration, as a run would have it.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hydra import compose, initialize_config_dir

from amd_lightning import conf_dir
from amd_lightning.cli import validated
from amd_lightning.config.choices import Distance, Writer
from amd_lightning.config.method import RolloutConfig
from amd_lightning.config.rules import PARAMETER_OF, uses_off_policy
from amd_lightning.config.schema import RunConfig

HEADER = """# The methods by name: `objective=NAME`

Written by `python -m amd_lightning.presets` from the files in this directory. Every method is a distance x a
beta x a source of states: J = beta·off + (1 − beta)·on, off the states of the data or the teacher, on the
student's own. A name on the command line sets all three, and any knob beside it changes one:
`objective=gkd objective.beta=0`, `objective=distillm rollout=fresh`, `objective=amm critic=learned`.

| name | what | distance | beta | states | what differs from the source | source |
|---|---|---|---|---|---|---|
"""


class Preset(NamedTuple):
    """One file of `conf/objective`."""

    name: str
    what: str
    distance: str
    beta: str
    states: str
    differs: str
    source: str


def presets() -> list[Preset]:
    """All of them, by name."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return [_preset(path) for path in sorted((conf_dir() / "objective").glob("*.yaml"))]


def table() -> str:
    """The content of `conf/objective/README.md`."""
    rows = [f"| {' | '.join(row._replace(name=f'`{row.name}`'))} |" for row in presets()]
    return HEADER + "\n".join(rows) + "\n"


def header(path: Path) -> dict[str, str]:
    """The parts of a file's header: "what", "differs", "source"; each in one line."""
    lines = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    parts: dict[str, list[str]] = {}
    part = "what"
    for line in lines:
        if line.startswith("@package"):
            continue
        if found := re.match(r"(differs|source): (.*)", line):
            part, line = found.groups()
        parts.setdefault(part, []).append(line)
    return {name: " ".join(words) for name, words in parts.items()}


def _preset(path: Path) -> Preset:
    composed = compose("config", overrides=["output_dir=.", f"objective={path.stem}"])
    config = validated(composed, [], refuse_ignored=False)
    said = header(path)
    return Preset(
        path.stem,
        said["what"],
        "; ".join(_distance(config)),
        _beta(config),
        "; ".join(_states(config)),
        said.get("differs", ""),
        said["source"],
    )


def _distance(config: RunConfig) -> Iterator[str]:
    objective = config.objective
    own = [key for key, distances in PARAMETER_OF.items() if objective.distance in distances]
    yield ", ".join([str(objective.distance), *(f"{key} {getattr(objective, key):g}" for key in own)])
    if objective.distance is Distance.moment_matching:
        start, path = config.critic.alpha_start, config.critic.alpha_path
        rises = "" if start is None else f", alpha from {start:g} to {config.critic.alpha:g} ({path})"
        yield f"critic {config.critic.kind}{rises}"
    for who in ("teacher", "student"):
        temperature = getattr(objective, f"{who}_temperature")
        if temperature != 1.0:
            yield f"{who} at temperature {temperature:g}"
    if objective.horizon.gamma:
        returns = "length-normalised returns" if objective.horizon.length_normalise else "returns"
        yield f"{objective.horizon.returns} {returns}, gamma {objective.horizon.gamma:g}"
    if objective.sft_weight:
        yield f"and likelihood, share {objective.sft_weight:g}"


def _beta(config: RunConfig) -> str:
    objective = config.objective
    if objective.adaptive_beta.step == 0.0:
        return f"{objective.beta:g}"
    step, tolerance = objective.adaptive_beta.step, objective.adaptive_beta.tolerance
    return f"1, less {step:g} for every rise of the validation loss by {tolerance:g}, to {objective.beta:g}"


def _states(config: RunConfig) -> Iterator[str]:
    rollout: RolloutConfig = config.rollout
    if uses_off_policy(config.objective):
        yield "off: the teacher's" if rollout.off_policy is Writer.teacher else "off: the data's"
    if config.objective.beta == 1.0:
        return
    words = ["written anew in every update"]
    if rollout.reuse > 1:
        words = [f"written anew every {rollout.reuse} updates"]
    if rollout.replay.capacity and rollout.replay.shuffle:
        words.append(f"drawn from the last {rollout.replay.capacity} prompts")
    elif rollout.replay.capacity:
        falling = " falling to 0" if rollout.replay.decay else ""
        words = [f"anew with probability {rollout.replay.refresh:g}{falling}"]
        words.append(f"else from the last {rollout.replay.capacity} prompts")
    if rollout.temperature != 1.0:
        words.append(f"at temperature {rollout.temperature:g}")
    if rollout.teacher_share:
        words.append(f"with {rollout.teacher_share:g} of the teacher")
    yield f"on: {', '.join(words)}"


def main() -> None:
    """Write the table."""
    path = conf_dir() / "objective" / "README.md"
    path.write_text(table(), encoding="utf-8")
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
