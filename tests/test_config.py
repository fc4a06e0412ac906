"""The schema: what every knob says of itself, and that conf/ comes to what its files say."""

import inspect
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import amd_lightning
from amd_lightning import conf_dir
from amd_lightning.cli import validated
from amd_lightning.config import choices, method, pair
from amd_lightning.config.rules import PARAMETER_OF
from amd_lightning.config.schema import RunConfig
from amd_lightning.errors import ConfigError
from amd_lightning.objectives.divergences import DIVERGENCES, PARAMETERS

PACKAGE = Path(amd_lightning.__file__).parent
LIMITS = {"low", "high", "above", "below", "choices"}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", overrides=["output_dir=.", *overrides])


def knobs(kind: type = RunConfig, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Dotted name and field of every knob and section."""
    for field in fields(kind):
        yield prefix + field.name, field
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield from knobs(field.type, f"{prefix}{field.name}.")


# -- every knob ------------------------------------------------------------------------------------


def test_every_knob_says_what_it_means_and_limits_are_known_words() -> None:
    for name, field in knobs():
        assert len(field.metadata["meaning"]) > 6, name
        assert set(field.metadata) - {"meaning"} <= LIMITS, name


def test_every_number_has_a_limit_where_one_makes_sense() -> None:
    numbers = [name for name, field in knobs() if field.type in (int, float, int | None)]
    free = [name for name, field in knobs() if name in numbers and not set(field.metadata) & LIMITS]
    assert free == ["evaluation.length_penalty"]  # of either sign


def test_every_knob_is_read_by_somebody() -> None:
    readers = [
        "build.py",
        "build_method.py",
        "running/one_run.py",
        "run.py",
        "pipeline.py",
        "models/loading.py",
    ]
    code = "\n".join((PACKAGE / name).read_text(encoding="utf-8") for name in readers)
    # An architecture is handed on whole, to transformers' T5Config.
    leaves = [
        name for name, field in knobs() if not is_dataclass(field.type) and ".architecture." not in name
    ]
    # A distance's parameters are taken by the names that the distance gives them.
    parameters = {f"objective.{parameter}" for names in PARAMETERS.values() for parameter in names}
    assert parameters <= set(leaves)
    leaves = [name for name in leaves if name not in parameters]
    unread = [name for name in leaves if not re.search(rf"\.{name.rpartition('.')[2]}\b", code)]
    assert unread == []


def test_every_architecture_knob_is_a_field_of_t5s_config() -> None:
    from transformers import T5Config

    known = {"family", *T5Config().to_dict()}
    assert [field.name for field in fields(pair.ArchitectureConfig) if field.name not in known] == []


def test_enums_print_as_their_values() -> None:
    kinds = [kind for kind in vars(choices).values() if isinstance(kind, type) and issubclass(kind, StrEnum)]
    options = [option for kind in kinds if kind is not StrEnum for option in kind]
    assert options
    for option in options:
        assert f"{option}" == str(option) == option.value == option.name


def test_distances_and_their_parameters_are_those_of_the_package() -> None:
    assert set(choices.Distance) == {"moment_matching", *DIVERGENCES, "nll"}
    assert set(PARAMETERS) == set(DIVERGENCES)
    belongs = {
        parameter: tuple(distance for distance, names in PARAMETERS.items() if parameter in names)
        for parameter in PARAMETER_OF
    }
    assert belongs == PARAMETER_OF
    assert {parameter for names in PARAMETERS.values() for parameter in names} == set(belongs)


def test_a_distances_parameters_have_its_own_defaults() -> None:
    """A knob's default is the function's, so that a call without it is the run without it."""
    config = method.ObjectiveConfig()
    for distance, names in PARAMETERS.items():
        taken = inspect.signature(DIVERGENCES[distance]).parameters
        assert {name: taken[name].default for name in names} == {
            name: getattr(config, name) for name in names
        }


# -- conf/ -----------------------------------------------------------------------------------------

FILES = sorted(conf_dir().rglob("*.yaml"))


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(conf_dir())))
def test_every_file_says_in_its_header_what_it_is(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert len([line for line in header if not line.startswith("# @package")]) >= 1


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield prefix, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}".lstrip("."))


OF_HYDRA = ("sweep", "cluster")
"""Groups that set Hydra's own section alone; tests/test_sweep_files.py has them."""
OPTION_FILES = [path for path in FILES if path.parent != conf_dir() and path.parent.name not in OF_HYDRA]


def content_of(group: str, option: str, chosen_above: Collection[str] = ()) -> dict[str, Any]:
    """A file's values, and those of the options that it chooses (for the task that is chosen by default), but
    for the groups in which a file that chose it has chosen already."""
    content = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{option}.yaml"))
    assert isinstance(content, dict)
    defaults = content.pop("defaults", [])
    if "_self_" in defaults:
        assert defaults.pop() == "_self_", "a file's own values come last here"
    own = [{group: default} if isinstance(default, str) else default for default in defaults]
    groups = {key.removeprefix("override /") for default in own for key in default}
    for default in own:
        for key, chosen in default.items():
            other = key.removeprefix("override /")
            if other in chosen_above:
                continue
            chosen = chosen.replace("${data}", "samsum")
            expected = content_of(other, chosen, {*chosen_above, *groups})
            at_root = "@package _global_" in (conf_dir() / other / f"{chosen}.yaml").read_text()
            if other != group and not at_root:
                expected = {other: expected}
            merged = OmegaConf.to_container(OmegaConf.merge(expected, content))
            assert isinstance(merged, dict)
            content = merged
    return {str(key): value for key, value in content.items()}


@pytest.mark.parametrize("path", OPTION_FILES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_choosing_a_file_gives_every_value_in_it(path: Path) -> None:
    group, _, option = path.relative_to(conf_dir()).with_suffix("").as_posix().partition("/")
    plus = "+" if group in ("experiment", "recipe", "sweep") else ""
    config = composed(f"{plus}{group}={option}")
    content = content_of(group, option)
    at_root = "@package _global_" in path.read_text(encoding="utf-8")
    for key, value in leaves(content if at_root else {group: content}):
        if not (isinstance(value, str) and "${" in value):
            got = OmegaConf.select(config, key)
            assert (got == value) or (float(got) == float(value)), f"{path.stem}: {key}={got}, not {value}"


def test_sequence_level_distillation_learns_from_the_teachers_responses() -> None:
    assert composed("objective=seqkd").rollout.off_policy is choices.Writer.teacher
    assert composed("objective=seqkd", "rollout=fresh").rollout.off_policy is choices.Writer.data


@pytest.mark.parametrize("objective", ["minillm", "distillm", "gkd_trl", "imitkd_distillm", "seqkd_minillm"])
def test_a_methods_rollouts_may_be_chosen_anew(objective: str) -> None:
    own, fresh = composed(f"objective={objective}"), composed(f"objective={objective}", "rollout=fresh")
    assert own.objective == fresh.objective
    assert own.rollout != fresh.rollout == composed("rollout=fresh").rollout


def test_a_methods_critic_may_be_chosen_anew() -> None:
    assert composed("objective=amm_closed_form").critic == composed("critic=closed_form").critic
    assert composed("objective=amm_closed_form", "critic=learned").critic == composed("critic=learned").critic


def test_what_the_command_line_chooses_beats_scale_and_experiment() -> None:
    config = composed("+experiment=samsum", "objective=kd", "scale=paper", "pair=t5_demo")
    assert (str(config.objective.distance), config.pair.name) == ("kl", "t5_demo")


def test_a_causal_pair_is_chosen_on_the_command_line() -> None:
    overrides = ["+experiment=samsum", "pair=llama_demo"]
    config = validated(composed(*overrides), overrides, refuse_ignored=True)
    architectures = config.pair.teacher.architecture, config.pair.student.architecture
    assert [str(architecture.family) for architecture in architectures] == ["llama", "llama"]


SCALES = [f"scale={scale}" for scale in options("scale")]


def complete(*overrides: str) -> tuple[str, ...]:
    """With the two models that scale=own is given."""
    own = ("pair.teacher.path=DIR", "pair.student.path=DIR") if "scale=own" in overrides else ()
    return (*overrides, *own)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("distance", list(choices.Distance))
def test_every_distance_is_a_run_at_every_beta(distance: str, scale: str) -> None:
    for beta in (0.0, 0.3, 1.0):
        overrides = complete(f"objective.distance={distance}", f"objective.beta={beta}", scale)
        config = validated(composed(*overrides), overrides, refuse_ignored=True)
        assert (config.objective.distance, config.objective.beta) == (distance, beta)


@pytest.mark.parametrize("kind", list(choices.CriticKind))
def test_every_kind_of_critic_has_a_file_and_is_what_it_names(kind: str) -> None:
    config = composed(f"critic={kind}")
    assert config.critic.kind == choices.CriticKind(kind)
    assert options("critic") == sorted(choices.CriticKind)
    # What a file leaves out is the schema's, whatever the critic that is chosen by default.
    given = OmegaConf.load(conf_dir() / "critic" / f"{kind}.yaml")
    plain = OmegaConf.structured(method.CriticConfig)
    for name in set(plain) - set(given):
        assert config.critic[name] == plain[name], name


DISTANCES = {name: composed(f"objective={name}").objective.distance for name in options("objective")}
NO_CRITIC = [name for name, distance in DISTANCES.items() if distance != "moment_matching"]
# No rule ties a pair to an objective or a critic, nor an experiment to a method without one, so these
# products stand for the whole one.
COMBINATIONS: list[tuple[str, ...]] = [
    *(
        complete(f"+experiment={experiment}", f"scale={scale}", f"objective={objective}", f"critic={critic}")
        for experiment, scale, objective, critic in itertools.product(
            options("experiment"), options("scale"), ["amm"], options("critic")
        )
    ),
    *(
        complete(f"+experiment={experiment}", f"scale={scale}", f"objective={objective}")
        for experiment, scale, objective in itertools.product(
            options("experiment")[:1], options("scale"), [name for name in DISTANCES if name != "amm"]
        )
    ),
    *(
        complete(f"+experiment={experiment}", f"scale={scale}", f"pair={pair}")
        for experiment, scale, pair in itertools.product(
            options("experiment"), options("scale"), options("pair")
        )
        if (scale == "own") == (pair == "own")  # each comes with the other
    ),
]


@pytest.mark.parametrize("overrides", COMBINATIONS, ids=" ".join)
def test_every_combination_is_a_run(overrides: Sequence[str]) -> None:
    validated(composed(*overrides), overrides, refuse_ignored=True)


def test_models_of_ones_own_must_be_given_and_are_used_as_they_are() -> None:
    overrides = ("+experiment=dolly", "scale=own")
    with pytest.raises(ConfigError, match=r"train it or set pair\.teacher\.path"):
        validated(composed(*overrides), overrides, refuse_ignored=True)
    config = validated(composed(*complete(*overrides)), complete(*overrides), refuse_ignored=True)
    assert (config.optim.teacher.updates, config.optim.student_start.updates) == (0, 0)
    assert (config.pair.name, config.pair.student.lora.rank, config.pair.teacher.dtype) == (
        "own",
        0,
        "bfloat16",
    )
    assert config.data.max_prompt_tokens == 512


def test_the_critics_rate_follows_the_students() -> None:
    def rate(*overrides: str) -> float:
        return float(composed("+experiment=samsum", *overrides).optim.critic.learning_rate)

    assert rate() == 9e-3  # three times the demo's .003, to the last bit
    assert rate("optim.student.learning_rate=1e-2") == 0.03
    assert rate("scale=laptop") == 3.3e-4
    assert rate("scale=laptop", "optim.student.learning_rate=1e-2") == 3.3e-3
    assert rate("scale=laptop", "optim.critic.learning_rate=1e-3") == 1e-3


@pytest.mark.parametrize(
    "objective, critic",
    [*((name, "closed_form") for name in NO_CRITIC), *(("kd", critic) for critic in options("critic"))],
)
def test_a_critic_beside_an_objective_without_one_is_refused(objective: str, critic: str) -> None:
    overrides = [f"objective={objective}", f"critic={critic}"]
    config = composed(*overrides)
    with pytest.raises(ConfigError, match="critic would be ignored"):
        validated(config, overrides, refuse_ignored=True)
    validated(config, overrides, refuse_ignored=False)  # as a point of a sweep


def test_a_run_is_named_by_what_it_is() -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(
            "config",
            ["+experiment=samsum", "objective=kd", "seed=3", "hydra.job.num=7"],
            return_hydra_config=True,
        )
    assert re.fullmatch(r"runs/samsum/kl_beta1\.0_seed3/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", config.hydra.run.dir)
    assert re.fullmatch(r"runs/samsum/sweep_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", config.hydra.sweep.dir)
    assert config.hydra.sweep.subdir == "7_kl_beta1.0_seed3"
