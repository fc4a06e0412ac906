"""The schema: ranges and rules, options without effect, and that conf/ comes to what its files say."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from amd_lightning import conf_dir
from amd_lightning import config as schema
from amd_lightning.cli import validated
from amd_lightning.config import RunConfig
from amd_lightning.errors import ConfigError
from amd_lightning.rules import ignored_options, problems

PACKAGE = Path(schema.__file__).parent
LIMITS = {"low", "high", "above", "below", "choices"}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", overrides=["output_dir=.", *overrides])


@cache
def defaults() -> DictConfig:
    return composed()


def demo(**values: Any) -> RunConfig:
    """The default run with some knobs set, `objective__beta=2.0`, without the checks."""
    changed = defaults().copy()
    for name, value in values.items():
        OmegaConf.update(changed, name.replace("__", "."), value)
    config = OmegaConf.to_object(changed)
    assert isinstance(config, RunConfig)
    return config


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
    readers = ["build.py", "run.py", "pipeline.py", "models.py"]
    code = "\n".join((PACKAGE / name).read_text(encoding="utf-8") for name in readers)
    # An architecture is handed on whole, to transformers' T5Config.
    leaves = [
        name for name, field in knobs() if not is_dataclass(field.type) and ".architecture." not in name
    ]
    unread = [name for name in leaves if not re.search(rf"\.{name.rpartition('.')[2]}\b", code)]
    assert unread == []


def test_every_architecture_knob_is_a_field_of_t5s_config() -> None:
    from transformers import T5Config

    known = T5Config().to_dict()
    assert [field.name for field in fields(schema.ArchitectureConfig) if field.name not in known] == []


def test_enums_print_as_their_values() -> None:
    kinds = [kind for kind in vars(schema).values() if isinstance(kind, type) and issubclass(kind, StrEnum)]
    options = [option for kind in kinds if kind is not StrEnum for option in kind]
    assert options
    for option in options:
        assert f"{option}" == str(option) == option.value == option.name


# -- ranges and rules ------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("objective__beta", -0.1, "objective.beta=-0.1 must be at least 0.0"),
    ("objective__beta", 1.1, "objective.beta=1.1 must be at most 1.0"),
    ("objective__beta", NAN, "objective.beta=nan is not a finite number"),
    ("critic__steps", 0, "critic.steps=0 must be at least 1"),
    ("critic__alpha", 0.0, "critic.alpha=0.0 must be greater than 0.0"),
    ("critic__alpha", 1.0, "critic.alpha=1.0 must be less than 1.0"),
    ("rollout__temperature", 0.0, "rollout.temperature=0.0 must be greater than 0.0"),
    ("optim__student__learning_rate", INF, "optim.student.learning_rate=inf is not a finite number"),
    ("optim__critic__betas", [0.5, 1.0], "optim.critic.betas=1.0 must be less than 1.0"),
    ("evaluation__length_penalty", NAN, "evaluation.length_penalty=nan is not a finite number"),
    ("data__task", "news", "data.task=news is not one of samsum"),
    ("data__train_rows", 0, "data.train_rows=0 must be at least 1"),
    ("seed", -1, "seed=-1 must be at least 0"),
]


@pytest.mark.parametrize("name, value, line", OUT_OF_RANGE)
def test_a_value_out_of_its_range_is_one_line(name: str, value: Any, line: str) -> None:
    assert problems(demo(**{name: value})) == [line]


@pytest.mark.parametrize(
    "name, value",
    [
        ("objective__beta", 0.0),
        ("objective__beta", 1.0),
        ("critic__steps", 1),
        ("data__train_rows", None),
        ("trainer__validate_every", 0),
        ("optim__student__clip_norm", 0.0),
    ],
)
def test_a_bound_itself_is_inside(name: str, value: Any) -> None:
    assert problems(demo(**{name: value})) == []


RULES: list[tuple[dict[str, Any], str]] = [
    (
        {"optim__student__batch_size": 8, "optim__student__micro_batch_size": 5},
        "optim.student.batch_size=8 is not divisible by",
    ),
    (
        {"optim__teacher__batch_size": 8, "optim__teacher__micro_batch_size": 16},
        "optim.teacher.batch_size=8 is not divisible by",
    ),
    ({"data__source": "files"}, "data.source=files needs data.path=DIR"),
    ({"optim__teacher__updates": 0}, "optim.teacher.updates=0 leaves a teacher that is built"),
    ({"optim__student_start__updates": 0}, "optim.student_start.updates=0 leaves a student that is built"),
    ({"optim__student__updates": 0}, "optim.student.updates=0 distils nothing"),
    (
        {"optim__student__updates": 9, "optim__student__warmup_updates": 9},
        "optim.student.warmup_updates=9 leaves nothing of",
    ),
    (
        {"pair__student__architecture__num_decoder_layers": 3},
        "pair.student.architecture.num_decoder_layers=3 must be at most num_layers=2",
    ),
    ({"optim__student__betas": [0.9]}, "optim.student.betas=[0.9] must be two numbers"),
    ({"pair__student__path": "DIR"}, "pair.student.path is set but pair.teacher.path is not"),
    (
        {"data__source": "hub", "evaluation__metric": "accuracy"},
        "evaluation.metric=accuracy has no meaning",
    ),
]


@pytest.mark.parametrize("values, start", RULES)
def test_a_broken_rule_is_one_line(values: dict[str, Any], start: str) -> None:
    (line,) = problems(demo(**values))
    assert line.startswith(start)


def test_all_problems_come_at_once() -> None:
    wrong = {name: (value, line) for name, value, line in OUT_OF_RANGE}  # one value a knob
    values = {name: value for name, (value, _) in wrong.items()}
    expected = {line for _, line in wrong.values()}
    assert set(problems(demo(**values, optim__student__updates=0))) > expected


# -- options without effect ------------------------------------------------------------------------

IGNORED: list[tuple[dict[str, Any], str]] = [
    ({"objective__distance": "kl"}, "critic"),
    ({"objective__distance": "nll"}, "critic.steps"),
    ({"objective__distance": "rkl"}, "optim.critic.learning_rate"),
    ({"critic__kind": "closed_form"}, "critic.steps"),
    ({"critic__kind": "closed_form"}, "critic.rank"),
    ({"critic__kind": "closed_form"}, "optim.critic.betas"),
    ({"objective__beta": 1.0}, "rollout.temperature"),
    ({"objective__beta": 0.0}, "rollout.off_policy"),
    ({"objective__beta": 0.0, "rollout__off_policy": "teacher"}, "rollout"),
    ({"data__source": "hub"}, "data.seed"),
    ({"data__path": "DIR"}, "data.path"),
    ({"data__revision": "main"}, "data.revision"),
    ({"pair__teacher__path": "DIR"}, "pair.teacher.architecture.d_model"),
    ({"pair__teacher__path": "DIR"}, "pair.tokenizer.vocabulary_size"),
    ({"pair__student__path": "DIR"}, "pair.student.architecture"),
    ({"pair__teacher__revision": "main"}, "pair.teacher.revision"),
    ({"optim__teacher__updates": 0}, "optim.teacher.learning_rate"),
    ({"optim__student__schedule": "constant"}, "optim.student.final_share"),
    ({"logger__wandb__mode": "disabled"}, "logger.wandb.project"),
    ({"cache__enabled": False}, "cache.dir"),
    ({}, "evaluation.length_penalty"),
]


@pytest.mark.parametrize("values, key", IGNORED)
def test_an_option_without_effect_is_named(values: dict[str, Any], key: str) -> None:
    found = ignored_options(demo(**values), [key, "seed"])
    assert list(found) == [key]
    assert found[key].startswith(f"{key} would be ignored with ")


USED: list[tuple[dict[str, Any], str]] = [
    ({}, "critic"),
    ({}, "critic.steps"),
    ({}, "optim.critic.learning_rate"),
    ({"critic__kind": "closed_form"}, "critic.ridge"),
    ({}, "rollout.temperature"),
    ({"objective__beta": 0.0}, "rollout"),
    ({"data__source": "files", "data__path": "DIR"}, "data.path"),
    ({"optim__teacher__updates": 0}, "optim.teacher.updates"),
    ({"logger__wandb__mode": "disabled"}, "logger.wandb.mode"),
    ({"logger__wandb__mode": "disabled"}, "logger"),
    ({"cache__enabled": False}, "cache"),
    ({"evaluation__num_beams": 2}, "evaluation.length_penalty"),
]


@pytest.mark.parametrize("values, key", USED)
def test_an_option_with_effect_is_not(values: dict[str, Any], key: str) -> None:
    assert ignored_options(demo(**values), [key]) == {}


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


OPTION_FILES = [path for path in FILES if path.parent != conf_dir()]


@pytest.mark.parametrize("path", OPTION_FILES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_choosing_a_file_gives_every_value_in_it(path: Path) -> None:
    group = path.parent.name
    plus = "+" if group in ("experiment", "sweep") else ""
    config = composed(f"{plus}{group}={path.stem}")
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    for default in content.pop("defaults", []):
        for key, option in default.items():
            chosen = OmegaConf.load(conf_dir() / key.removeprefix("override /") / f"{option}.yaml")
            expected = OmegaConf.to_container(chosen)
            if "@package _global_" not in (conf_dir() / key.split("/")[1] / f"{option}.yaml").read_text():
                expected = {key.split("/")[1]: expected}
            assert isinstance(expected, dict)
            content = OmegaConf.to_container(OmegaConf.merge(expected, content))
    at_root = "@package _global_" in path.read_text(encoding="utf-8")
    for key, value in leaves(content if at_root else {group: content}):
        if not (isinstance(value, str) and "${" in value):
            got = OmegaConf.select(config, key)
            assert (got == value) or (float(got) == float(value)), f"{path.stem}: {key}={got}, not {value}"


def test_sequence_level_distillation_learns_from_the_teachers_responses() -> None:
    assert composed("objective=seqkd").rollout.off_policy is schema.Writer.teacher
    assert composed("objective=seqkd", "rollout=fresh").rollout.off_policy is schema.Writer.data


def test_what_the_command_line_chooses_beats_scale_and_experiment() -> None:
    config = composed("+experiment=samsum", "objective=kd", "scale=paper", "pair=t5_demo")
    assert (str(config.objective.distance), config.pair.name) == ("kl", "t5_demo")


NO_CRITIC = [name for name in options("objective") if name != "amm"]
# No rule ties a pair to an objective or a critic, so the two products stand for the whole one.
COMBINATIONS: list[tuple[str, ...]] = [
    *(
        (f"+experiment={experiment}", f"scale={scale}", f"objective={objective}", f"critic={critic}")
        for experiment, scale, objective, critic in itertools.product(
            options("experiment"), options("scale"), ["amm"], options("critic")
        )
    ),
    *(
        (f"+experiment={experiment}", f"scale={scale}", f"objective={objective}")
        for experiment, scale, objective in itertools.product(
            options("experiment"), options("scale"), NO_CRITIC
        )
    ),
    *(
        (f"+experiment={experiment}", f"scale={scale}", f"pair={pair}")
        for experiment, scale, pair in itertools.product(
            options("experiment"), options("scale"), options("pair")
        )
    ),
]


@pytest.mark.parametrize("overrides", COMBINATIONS, ids=" ".join)
def test_every_combination_is_a_run(overrides: Sequence[str]) -> None:
    validated(composed(*overrides), overrides, refuse_ignored=True)


@pytest.mark.parametrize("critic", options("critic"))
@pytest.mark.parametrize("objective", NO_CRITIC)
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
