"""The command line before Hydra runs it: help in words, and every problem at once.

Hydra reports the first wrong override and stops; here all of them are collected, together with values
out of range and options that the run would ignore, before anything is written.
"""

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amd_lightning import conf_dir
from amd_lightning.config import RunConfig, ignored_options, problems
from amd_lightning.errors import ConfigError

ConfigStore.instance().store(name="run_schema", node=RunConfig)

POINTS_CHECKED = 256
"""How many points of a sweep are checked before the first runs; each is checked again when it does."""


def check_command_line(arguments: Sequence[str]) -> None:
    """Refuse a command line of which any run would be refused.

    Raises:
        ConfigError: lists every problem of every point of the sweep.
    """
    parsed = get_args_parser().parse_args(list(arguments))
    if parsed.cfg or parsed.info or parsed.shell_completion or parsed.experimental_rerun or parsed.config_dir:
        return
    found: dict[str, None] = {}
    for point in itertools.islice(_points(parsed.overrides, parsed.multirun), POINTS_CHECKED):
        found.update(dict.fromkeys(_point_problems(point, refuse_ignored=not parsed.multirun)))
    if found:
        raise ConfigError(list(found))


def validated(composed: DictConfig, overrides: Sequence[str], refuse_ignored: bool) -> RunConfig:
    """The composed configuration as typed values.

    Args:
        composed: from Hydra, interpolations resolvable.
        overrides: of the command line.
        refuse_ignored: whether an override without effect is a problem. In a sweep it is not: a knob of
            one point's critic must not break the point beside it.

    Raises:
        ConfigError: lists every problem.
    """
    config = OmegaConf.to_object(composed)
    assert isinstance(config, RunConfig)
    found = problems(config)
    if refuse_ignored:
        found += ignored_options(config, _keys(overrides))
    if found:
        raise ConfigError(found)
    return config


def knobs() -> str:
    """Every knob in words: name, default, meaning and limits, and the options of every group."""
    lines = [
        "Distil a teacher language model into a student: a distance x a beta x a source of states.",
        "",
        "    python -m amd_lightning.run +experiment=samsum                         the demo, no network",
        "    python -m amd_lightning.run +experiment=samsum objective=kd seed=1     another method",
        "    python -m amd_lightning.run --multirun +experiment=samsum objective.beta=0,0.5,1",
        "",
        "Groups (choose with GROUP=OPTION):",
    ]
    for group in sorted(path for path in conf_dir().iterdir() if path.is_dir()):
        options = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
        plus = "+" if group.name in ("experiment", "sweep") else " "
        lines.append(f"   {plus}{group.name + '=':<14}{options}")
    lines += [
        "",
        "Knobs (set with KEY=VALUE); [...] is the default, (set by a group) where a file decides it:",
    ]
    lines += _section_lines(RunConfig, "")
    lines += [
        "",
        "Hydra's own: hydra.run.dir=DIR (where the run goes), --multirun, --cfg job (print the composed",
        "configuration), --hydra-help.",
    ]
    return "\n".join(lines)


def _section_lines(schema: type, prefix: str) -> Iterator[str]:
    for knob in fields(schema):
        name, meaning = prefix + knob.name, knob.metadata.get("meaning", "")
        if isinstance(knob.type, type) and is_dataclass(knob.type):
            yield f"\n  {name}: {meaning}"
            yield from _section_lines(knob.type, name + ".")
            continue
        if knob.default_factory is not NO_DEFAULT:
            default = str(knob.default_factory())
        else:
            default = "set by a group" if knob.default == "???" else str(knob.default)
        limits = [
            f"{sign} {knob.metadata[kind]}"
            for kind, sign in (("low", "≥"), ("above", ">"), ("high", "≤"), ("below", "<"))
            if kind in knob.metadata
        ]
        choices = knob.metadata.get("choices")
        if isinstance(knob.type, type) and issubclass(knob.type, Enum):
            choices = [option.value for option in knob.type]
        notes = [*limits, *(["one of " + ", ".join(choices)] if choices else [])]
        suffix = f" ({'; '.join(notes)})" if notes else ""
        default = "(set by a group)" if default == "set by a group" else f"[{default}]"
        yield f"    {name} {default}\n        {meaning}{suffix}"


def _points(overrides: Sequence[str], multirun: bool) -> Iterator[list[str]]:
    """The overrides of every point of a sweep; of the one run where there is no sweep."""
    choices: list[list[str]] = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
            swept = multirun and override.is_sweep_override()
        except HydraException:
            swept = False  # refused below, with Hydra's own words
        if swept:
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([text])
    return (list(point) for point in itertools.product(*choices))


def _point_problems(overrides: list[str], refuse_ignored: bool) -> list[str]:
    """All problems of one run: overrides that Hydra refuses, then those of the rest."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        refused: list[str] = []
        try:
            composed = _composed(overrides)
        except (HydraException, OmegaConfBaseException) as first:
            accepted: list[str] = []
            for override in sorted(overrides, key=_is_value):  # groups first: they may bring a key into being
                try:
                    _composed([*accepted, override])
                    accepted.append(override)
                except (HydraException, OmegaConfBaseException) as error:
                    refused.append(_in_words(override, error))
            if not refused:
                return [one_line(first)]
            composed, overrides = _composed(accepted), accepted
        try:
            validated(composed, overrides, refuse_ignored)
        except ConfigError as error:
            refused += error.problems
        except OmegaConfBaseException as error:
            refused.append(one_line(error))
    return refused


def _composed(overrides: Sequence[str]) -> DictConfig:
    composed = compose("config", overrides=["output_dir=.", *overrides])
    OmegaConf.resolve(composed)
    return composed


def _is_value(override: str) -> bool:
    return "/" not in override and "." in override.split("=")[0]


def _keys(overrides: Sequence[str]) -> list[str]:
    return [override.split("=")[0].lstrip("+~") for override in overrides]


def _in_words(override: str, error: Exception) -> str:
    """A refused override in one line, with the key that was probably meant."""
    text = one_line(error)
    key = _keys([override])[0]
    if re.search(r"is not in struct|not in 'RunConfig'|Key '.*' not in|Could not override", text):
        known = list(_known_keys(RunConfig, "")) + [
            path.name for path in Path(conf_dir()).iterdir() if path.is_dir()
        ]
        close = difflib.get_close_matches(key, known, n=1)
        return f"{key} is not a knob" + (f"; did you mean {close[0]}?" if close else "; see --help")
    return f"{override}: {text}"


def _known_keys(schema: type, prefix: str) -> Iterator[str]:
    for knob in fields(schema):
        yield prefix + knob.name
        if isinstance(knob.type, type) and is_dataclass(knob.type):
            yield from _known_keys(knob.type, f"{prefix}{knob.name}.")


def one_line(error: BaseException) -> str:
    """An error of Hydra's or OmegaConf's in one line; the cause's words where it has none of its own."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    if not kept and error.__cause__ is not None:
        return one_line(error.__cause__)
    return " ".join(kept) or type(error).__name__
