"""A command line as the points that it asks for: one run, or the product of a sweep."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf


def parsed(text: str) -> Override:
    """An override as Hydra reads it; raises HydraException where it cannot."""
    loader = GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    return OverridesParser.create(config_loader=loader).parse_overrides([text])[0]


def misuse(text: str, multirun: bool) -> str | None:
    """What is wrong with an override whatever the configuration, or None."""
    try:
        override = parsed(text)
    except HydraException:
        return f"{text} cannot be read as KEY=VALUE; quote what is special to Hydra: \"KEY='VALUE'\""
    if not override.key_or_group:
        return f"{text} has no key: write KEY=VALUE"
    if override.is_sweep_override() and not multirun:
        return f"{text} is a sweep: add --multirun; a list is written [A,B], a text with commas 'A,B'"
    if multirun and override.is_discrete_sweep() and not list(override.sweep_string_iterator()):
        return f"{text} matches nothing"
    if override.key_or_group == "output_dir":
        return f"{text}: set hydra.run.dir=DIR instead (hydra.sweep.dir=DIR with --multirun)"
    if override.key_or_group == "cluster" and not multirun:
        return f"{text} would be ignored in a single run: add --multirun or +sweep=NAME"
    return None


def points(overrides: Sequence[str], multirun: bool) -> Iterator[list[str]]:
    """The overrides of every point of a sweep, in the order of Hydra's sweeper; of the one run where there is
    no sweep."""
    if not multirun:
        yield list(overrides)
        return
    choices: dict[str, list[str]] = {}
    for text in overrides:
        override = parsed(text)
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [text]  # of a key that comes twice, the last one counts
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:  # an interval has no points; one of its values stands for it
            interval = override.value()
            assert isinstance(interval, IntervalSweep)
            choices[key] = [f"{key}={interval.start}"]
    yield from (list(point) for point in itertools.product(*choices.values()))


def keys(overrides: Sequence[str]) -> list[str]:
    """The keys that overrides set, those inside of {...} values written out."""

    def inside(prefix: str, value: Any) -> Iterator[str]:
        if not isinstance(value, dict):
            yield prefix
        for key in value if isinstance(value, dict) else ():
            yield from inside(f"{prefix}.{key}", value[key])

    return [
        key
        for override in map(parsed, overrides)
        for key in inside(override.key_or_group, override.value() if not override.is_delete() else None)
    ]


def plain_key(text: str) -> str:
    """The key of an override that Hydra may be unable to read, without signs and packages."""
    return text.lstrip("+~").partition("=")[0].partition("@")[0]


def of_hydra(overrides: Sequence[str], config_dir: str | None) -> DictConfig:
    """Hydra's own section of what overrides come to, its interpolations unresolved.

    Raises what Hydra and its YAML reader raise.
    """
    found = composed(overrides, config_dir).hydra
    assert isinstance(found, DictConfig)
    return found


def composed(overrides: Sequence[str], config_dir: str | None) -> DictConfig:
    """All that overrides come to, with Hydra's own section; otherwise as `of_hydra`."""
    fixed = ["output_dir=."]
    if config_dir:
        fixed.append(f"hydra.searchpath=['file://{Path(config_dir).absolute()}']")
    return compose("config", overrides=[*fixed, *overrides], return_hydra_config=True)


def sweeping(overrides: Sequence[str], flag: bool, config_dir: str | None) -> tuple[bool, list[str]]:
    """Whether a command line is a sweep, and the overrides that its sweep file puts before its own.

    Args:
        overrides: of the command line, wrong ones among them.
        flag: whether it has --multirun.
        config_dir: the user's own options for the groups.
    """
    chosen = [text for text in overrides if plain_key(text).startswith(("sweep", "hydra"))]
    if not chosen:
        return flag, []
    try:
        hydra = of_hydra(chosen, config_dir)
    except Exception:  # a wrong name, say: said with the other problems
        return flag or "hydra.mode=MULTIRUN" in chosen or "sweep" in map(plain_key, chosen), []
    params = OmegaConf.select(hydra, "sweeper.params") or {}
    return flag or hydra.mode is RunMode.MULTIRUN, [f"{key}={value}" for key, value in params.items()]
