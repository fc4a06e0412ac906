"""The command line before Hydra runs it: help in words, and every problem at once.

Hydra reports the first wrong override and stops; here all of them are collected, together with values
out of range and options that the run would ignore, before anything is written.
"""

import difflib
import itertools
import re
import textwrap
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from amd_lightning import conf_dir
from amd_lightning.config.rules import ignored_options, problems
from amd_lightning.config.schema import RunConfig
from amd_lightning.errors import ConfigError
from amd_lightning.sweeps.points import keys, misuse, parsed, points, sweeping

ConfigStore.instance().store(name="run_schema", node=RunConfig)

POINTS_CHECKED = 256
"""How many points of a sweep are checked before the first runs; each is checked again when it does."""
HELP_WIDTH = 100
PLUGIN_OF = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}
"""Launchers of Hydra's that come in packages of their own."""
USUAL = {
    "lr": "learning_rate",
    "bs": "batch_size",
    "wd": "weight_decay",
    "epochs": "updates",
    "max_steps": "updates",
    "warmup": "warmup_updates",
    "warmup_steps": "warmup_updates",
    "grad_clip": "clip_norm",
    "max_grad_norm": "clip_norm",
    "temp": "temperature",
    "gpus": "devices",
}
"""What a knob is usually called elsewhere -> the last part of its name here."""


def check_command_line(arguments: Sequence[str]) -> None:
    """Refuse a command line of which any run would be refused, also where it only asks what one comes to.

    An option without effect is refused in a single run. In a sweep it is where no point would use it: a
    knob of one point's critic must not break the point beside it.

    Raises:
        ConfigError: lists every problem of every point of the sweep.
    """
    line = get_args_parser().parse_args(list(arguments))
    if not _about_ours(line):
        return
    if line.config_dir and not Path(line.config_dir).is_dir():
        raise ConfigError([f"--config-dir {line.config_dir} is no directory"])
    found: dict[str, None] = {}
    ignored: list[dict[str, str]] = []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        multirun, of_file = sweeping(line.overrides, line.multirun, line.config_dir)
        overrides = [*of_file, *line.overrides]
        refused = {text: words for text in overrides if (words := misuse(text, multirun))}
        usable = [text for text in overrides if text not in refused]
        found.update(dict.fromkeys(refused.values()))
        for point in itertools.islice(points(usable, multirun), POINTS_CHECKED):
            in_point, unused = _point_problems(point, refused, line.config_dir)
            found.update(dict.fromkeys(in_point))
            ignored.append(unused)
    in_every_point = set.intersection(*(set(unused) for unused in ignored))
    found.update((words, None) for key, words in ignored[0].items() if key in in_every_point)
    if found:
        raise ConfigError(list(found))


def runs_something(line: Namespace) -> bool:
    """Whether a command line, as Hydra's parser has it, is no question, and about our configuration."""
    return not line.cfg and _about_ours(line)


def _about_ours(line: Namespace) -> bool:
    """Whether it is about our configuration, to run it or (--cfg) to print it."""
    answered_by_hydra = ("help", "hydra_help", "info", "shell_completion")
    other_root = ("experimental_rerun", "config_path", "config_name")
    return not any(getattr(line, flag) for flag in (*answered_by_hydra, *other_root))


def validated(composed: DictConfig, overrides: Sequence[str], refuse_ignored: bool) -> RunConfig:
    """The composed configuration as typed values.

    Args:
        composed: from Hydra, interpolations resolvable.
        overrides: of the command line.
        refuse_ignored: whether an override without effect is a problem.

    Raises:
        ConfigError: lists every problem.
    """
    config, found = _typed(composed)
    if config is not None and refuse_ignored:
        found += ignored_options(config, keys(overrides)).values()
    if config is None or found:
        raise ConfigError(found)
    return config


def _typed(composed: DictConfig) -> tuple[RunConfig | None, list[str]]:
    """The configuration as typed values, None where some have none, and its problems."""
    unknown = [_not_a_knob(key) for key in _unknown_keys(composed, RunConfig, "")]
    if missing := sorted(OmegaConf.missing_keys(composed), key=lambda name: (name.count("."), name)):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return None, [*unknown, f"no value for {', '.join(missing[:3])}{more}: choose a scale and a pair"]
    config = OmegaConf.to_object(composed)
    assert isinstance(config, RunConfig)
    return config, [*unknown, *problems(config)]


def _unknown_keys(node: DictConfig, schema: type, prefix: str) -> Iterator[str]:
    """What was added with a plus: Hydra then lets pass what the schema doesn't have."""
    sections = {knob.name: knob.type for knob in fields(schema)}
    for name in map(str, node):
        kind = sections.get(name)
        if kind is None:
            yield prefix + name
        elif isinstance(kind, type) and is_dataclass(kind):
            yield from _unknown_keys(node[name], kind, f"{prefix}{name}.")


# -- the problems of a point -----------------------------------------------------------------------


def _point_problems(
    overrides: list[str], refused: dict[str, str], config_dir: str | None
) -> tuple[list[str], dict[str, str]]:
    """All problems of one run, and its options without effect by their key.

    Args:
        overrides: of the run.
        refused: overrides that Hydra refuses, in words; those found here are added.
        config_dir: the user's own options for the groups.
    """
    composed = _composed([text for text in overrides if text not in refused], config_dir)
    if isinstance(composed, Exception):
        for text in overrides:
            if text not in refused and isinstance(error := _composed([text], config_dir), Exception):
                refused[text] = _in_words(text, error)
        composed = _composed([text for text in overrides if text not in refused], config_dir)
    found = [refused[text] for text in overrides if text in refused]
    if isinstance(composed, Exception):  # each is right by itself
        return [*found, _in_words("", composed)], {}
    config, more = _typed(composed)
    accepted = [text for text in overrides if text not in refused]
    return [*found, *more], ignored_options(config, keys(accepted)) if config is not None else {}


def _composed(overrides: Sequence[str], config_dir: str | None = None) -> DictConfig | Exception:
    """The configuration, or why there is none."""
    fixed = ["output_dir=."]  # Hydra's own is known in a run alone
    if config_dir:
        fixed.append(f"hydra.searchpath=['file://{Path(config_dir).absolute()}']")
    try:
        composed = compose("config", overrides=[*fixed, *overrides])
        OmegaConf.resolve(composed)
    except Exception as error:  # beside its own, Hydra lets ValueErrors and those of its YAML reader pass
        return error
    return composed


def _in_words(text: str, error: Exception) -> str:
    """Why Hydra refuses an override, in one line that names the remedy.

    Args:
        text: the override; "" if no single one is to blame.
        error: of Hydra, OmegaConf or the YAML reader.
    """
    override = parsed(text) if text else None
    key, value = (override.key_or_group, override.value()) if override else ("", None)
    loader = GlobalHydra.instance().config_loader()
    said, why = str(error), str(error.__cause__ or error)
    file = re.match(r"In '(.+?)'", said)
    prefix = f"{file[1]}.yaml: " if file and file[1] != "config" else f"{text}: " if text else ""

    option = re.search(r"Could not (?:find|load) '(.+)/([^/']*)'", said)
    if option or (isinstance(error, ValueError) and loader.get_group_options(key)):
        group, name = option.groups() if option else (key, str(value))
        listed = re.search(r"Available options in '.+':\n((?:\t.+\n)+)", said)  # with those of --config-dir
        if package := PLUGIN_OF.get(name) if group == "hydra/launcher" else None:
            return f"{text or name} needs {package}: pip install -e '.[cluster]'"
        known = listed[1].split() if listed else loader.get_group_options(group)
        return f"{'' if group == key else prefix}{group}={name} is not an option; choose {', '.join(known)}"
    if "To append to your default list use" in said and loader.get_group_options(key):
        return f"{text} needs a plus: +{text.lstrip('+')}"
    if "Error resolving interpolation '${scale}_${data}'" in said:
        return f"{prefix}scale and data must be chosen: the token limits are those of a task at a scale"
    if "Multiple values for" in said:
        return f"{text} is chosen already; leave out the plus: {text.lstrip('+')}"
    if "does not support deletion" in why:
        return f"{text}: a knob cannot be removed; leave this out and it takes its default"
    where = re.search(r"full_key: (.*)|Could not override '(.+?)'", why)
    place = re.sub(r"\[\d+\]$", "", where[1] or where[2] or "") if where else key
    if isinstance(error.__cause__, ConfigKeyError) or re.search(r"Could not override|Key '.*' not in", said):
        return (prefix if file else "") + _not_a_knob(place)
    if file and place == "experiment":
        return f"{prefix}its first line must be: # @package _global_"
    expected = dict(_knobs(RunConfig, "")).get(place)
    if expected is not None and re.search("convert|Invalid|not Optional|subclass|not a valid bool", why):
        what = text if text and place == key and not file else f"{prefix}{place}"
        return f"{what} must be {_expected(expected)}"
    return prefix + re.sub(r"^In '.+?': \w+ raised while composing config: ?", "", one_line(error))


def _not_a_knob(key: str) -> str:
    if key.startswith("hydra."):
        return f"{key} is not a setting of Hydra's; see --hydra-help"
    known = [name for name, _ in _knobs(RunConfig, "")]
    return f"{key} is not a knob{_meant(key, known) or '; see --help'}"


def _meant(name: str, known: Sequence[str]) -> str:
    """ "; did you mean ...?", or nothing: what is usually called so, the nearest name, or the knobs whose
    last part it nearly is."""
    section, _, own = name.rpartition(".")
    if places := [one for one in known if one.rpartition(".")[2] == USUAL.get(own)]:
        return f"; did you mean {_nearest(section, places)}?"
    known = [one for one in known if not name.startswith(f"{one}.")]  # the sections that it was looked for in
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.7):
        return f"; did you mean {close[0]}?"
    last = {known_name: known_name.rpartition(".")[2] for known_name in known}
    close = difflib.get_close_matches(name.rpartition(".")[2], set(last.values()), n=1, cutoff=0.7)
    places = [known_name for known_name in known if close and last[known_name] == close[0]]
    return f"; did you mean {' or '.join(places)}?" if places else ""


def _nearest(section: str, places: Sequence[str]) -> str:
    """The knob whose place has most in common with a section's name; of several the trained student's."""

    def order(place: str) -> tuple[float, bool]:
        parts = place.split(".")[:-1]
        alike = [[difflib.SequenceMatcher(None, one, part).ratio() for part in parts] for one in asked]
        return sum(near for part in alike if (near := max(part, default=0.0)) > 0.6), "student" in parts

    asked = section.split(".")
    return max(places, key=order)


def _expected(kind: Any) -> str:
    """The values that a knob of this type takes, in words."""
    if isinstance(kind, UnionType):
        return " or ".join("null" if part is type(None) else _expected(part) for part in get_args(kind))
    if get_origin(kind) is list:
        return "a list of numbers, [A,B]" if get_args(kind) == (float,) else "a list, [A,B]"
    if issubclass(kind, Enum):
        return "one of " + ", ".join(option.value for option in kind)
    if is_dataclass(kind):
        return f"a group of knobs: {', '.join(knob.name for knob in fields(kind))}"
    return {float: "a number", int: "a whole number", bool: "true or false"}.get(kind, "a text")


def _knobs(schema: type, prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every knob and section."""
    for knob in fields(schema):
        yield prefix + knob.name, knob.type
        if isinstance(knob.type, type) and is_dataclass(knob.type):
            yield from _knobs(knob.type, f"{prefix}{knob.name}.")


def one_line(error: BaseException) -> str:
    """An error of Hydra's or OmegaConf's in one line; the cause's words where it has none of its own."""
    lines = [line.strip() for line in str(error).splitlines()]
    noise = ("full_key:", "object_type=", "reference_type=", "See https://")
    kept = [line for line in lines if line and not line.startswith(noise)]
    if not kept and error.__cause__ is not None:
        return one_line(error.__cause__)
    return " ".join(kept) or type(error).__name__


# -- help ------------------------------------------------------------------------------------------


def knobs() -> str:
    """Every knob in words: name, default, meaning and limits, and the options of every group."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = _composed([])
    config = _typed(composed)[0] if isinstance(composed, DictConfig) else None
    lines = [
        "Distil a teacher language model into a student: a distance x a beta x a source of states.",
        "",
        "  python -m amd_lightning.run +experiment=samsum                        the demo, no network",
        "  python -m amd_lightning.run +experiment=samsum objective=kd seed=1    another method",
        "  python -m amd_lightning.run --multirun +experiment=samsum objective.beta=0,0.5,1",
        "  python -m amd_lightning.run +experiment=samsum +sweep=beta cluster=joblib    a sweep by name",
        "  python -m amd_lightning.run sweep_resume=DIR            what a sweep has not done yet",
        "",
        "Groups (choose with GROUP=OPTION):",
    ]
    meanings = {knob.name: knob.metadata["meaning"] for knob in fields(RunConfig)}
    for group in sorted(path for path in conf_dir().iterdir() if path.is_dir()):
        options = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
        plus = "+" if group.name in ("experiment", "recipe", "sweep") else " "
        lines += _wrapped(options, first=f"   {plus}{group.name + '=':<14}", rest=" " * 18)
        lines += _wrapped(meanings.get(group.name, ""), first=" " * 20, rest=" " * 20)
    lines += [
        "",
        "Knobs (set with KEY=VALUE); [...] is the value without any override, of scale=demo. A group sets",
        "several at once; --cfg job prints what a command line comes to.",
        *_section_lines(config or RunConfig(), "", {}),
        "",
        "Hydra's own: hydra.run.dir=DIR (where the run goes; hydra.sweep.dir=DIR in a sweep), --multirun,",
        "--cfg job, --info, --config-dir DIR (more options for the groups), --hydra-help.",
    ]
    return "\n".join(lines)


def _section_lines(section: Any, prefix: str, explained: dict[type, tuple[str, Any]]) -> Iterator[str]:
    """The knobs of a section, then its sections; one of a kind that was explained has its values alone."""
    groups = [knob for knob in fields(section) if is_dataclass(getattr(section, knob.name))]
    for knob in fields(section):
        if knob in groups or (not prefix and knob.name in ("experiment", "scale", "output_dir")):
            continue  # what is no knob: chosen as a group, or set by Hydra
        yield f"    {prefix}{knob.name} {default(getattr(section, knob.name))}"
        yield from _wrapped(knob.metadata["meaning"] + limits(knob), first=" " * 8, rest=" " * 8)
    for knob in groups:
        name, inner = prefix + knob.name, getattr(section, knob.name)
        yield from ("", *_wrapped(f"{name}: {knob.metadata['meaning']}", first="  ", rest="    "))
        if type(inner) not in explained:
            explained[type(inner)] = (name, inner)
            yield from _section_lines(inner, name + ".", explained)
            continue
        like, other = explained[type(inner)]
        mine, theirs = _values(inner, ""), _values(other, "")
        differing = [f"{key} {default(mine[key])}" for key in mine if mine[key] != theirs[key]]
        text = f"as {like}" + (f", with {', '.join(differing)}" if differing else "")
        yield from _wrapped(text, first="    ", rest="    ")


def _values(section: Any, prefix: str) -> dict[str, Any]:
    """Dotted name -> value of every knob in a section."""
    found: dict[str, Any] = {}
    for knob in fields(section):
        value = getattr(section, knob.name)
        name = prefix + knob.name
        found |= _values(value, name + ".") if is_dataclass(value) else {name: value}
    return found


def limits(knob: Field[Any]) -> str:
    """The values that a knob takes, in brackets behind a space; "" where it takes any."""
    limits = [
        f"{sign} {knob.metadata[kind]}"
        for kind, sign in (("low", "≥"), ("above", ">"), ("high", "≤"), ("below", "<"))
        if kind in knob.metadata
    ]
    choices = knob.metadata.get("choices", ())
    if isinstance(knob.type, type) and issubclass(knob.type, Enum):
        choices = [option.value for option in knob.type]
    notes = [*limits, *(["one of " + ", ".join(choices)] if choices else [])]
    return f" ({'; '.join(notes)})" if notes else ""


def default(value: Any) -> str:
    """A default as it would be written on the command line."""
    if value is None or isinstance(value, bool):
        return f"[{str(value).lower()}]".replace("none", "null")
    return str(value).replace(" ", "") if isinstance(value, list) else f"[{value}]"


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, HELP_WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
