"""The files of conf/sweep and conf/cluster: what they may hold, and that every point of them is a run."""

import re
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from amd_lightning import cli, conf_dir
from amd_lightning.cli import check_command_line, validated
from amd_lightning.config import choices
from amd_lightning.errors import ConfigError
from amd_lightning.sweeps.points import of_hydra, parsed, points, sweeping
from tests.test_config import composed, options

GRIDS = ["beta", "beta_by_distance", "critic", "distance", "learning_rate", "paper_table_2", "seeds"]
SWEEPS = sorted([*GRIDS, "optuna"])
PLUGIN_OF = {
    "joblib": "hydra_joblib_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "slurm": "hydra_submitit_launcher",
}


def params(*overrides: str) -> list[str]:
    """The overrides that `+sweep=...` stands for."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        multirun, found = sweeping(overrides, False, None)
        assert multirun
        return found


def test_the_sweeps_and_clusters_are_all_there() -> None:
    assert options("sweep") == SWEEPS
    assert options("cluster") == sorted(["local", *PLUGIN_OF])


@pytest.mark.parametrize(
    "path", [f"sweep/{n}" for n in SWEEPS] + [f"cluster/{n}" for n in options("cluster")]
)
def test_a_file_sets_nothing_of_the_run_itself(path: str) -> None:
    """So a point's command is whole without it."""
    file = conf_dir() / f"{path}.yaml"
    assert set(OmegaConf.load(file)) <= {"defaults", "hydra"}
    assert file.read_text().startswith("# @package _global_\n")


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweeps_header_is_a_command_with_it(name: str) -> None:
    command = (conf_dir() / "sweep" / f"{name}.yaml").read_text().splitlines()[1]
    found = re.fullmatch(r"# python -m amd_lightning\.run (.*)", command)
    assert found
    assert f"+sweep={name}" in found[1].split()
    of_the_sweep = ("cluster=", "+sweep=", "hydra.")
    composed(*(text for text in found[1].split() if not text.startswith(of_the_sweep)))


# tests/test_config.py composes every option of the groups and every distance at every beta.
KNOWN = {
    "objective.beta": {"0", "0.25", "0.5", "0.75", "1"},
    "objective.distance": {*choices.Distance} - {"nll"},
    "critic": {*options("critic")},
    "objective": {*options("objective")},
    "pair": {*options("pair")},
    "seed": {*"01234"},
    "optim.student.learning_rate": {"3e-4", "1e-3", "3e-3", "1e-2"},
}


@pytest.mark.parametrize("name", GRIDS)
def test_every_value_of_a_sweep_is_one_of_its_knob(name: str) -> None:
    for text in params(f"+sweep={name}"):
        key, _, values = text.partition("=")
        assert set(values.split(",")) <= KNOWN[key]
        if name == "distance" or key == "critic":
            assert set(values.split(",")) == KNOWN[key]  # all there are


@pytest.mark.parametrize("experiment", options("experiment"))
@pytest.mark.parametrize("name", GRIDS)
def test_every_sweep_is_one_of_every_experiment(name: str, experiment: str) -> None:
    texts = params(f"+sweep={name}")
    last = [
        f"{key}={values.rpartition(',')[2]}" for key, _, values in (text.partition("=") for text in texts)
    ]
    scale = "scale=paper" if name.startswith("paper") else "scale=demo"
    overrides = [f"+experiment={experiment}", scale, f"+sweep={name}", *last]
    config = validated(composed(*overrides), overrides, refuse_ignored=True)
    assert config.experiment == experiment


def test_two_sweeps_are_a_product_and_the_command_line_replaces_values() -> None:
    both = params("+sweep=[beta,seeds]")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        assert len(list(points([*both, "+sweep=[beta,seeds]"], True))) == 25
        line = [*params_inside("+sweep=beta"), "+sweep=beta", "objective.beta=0.1,0.2", "seed=1"]
        found = list(points(line, True))
    assert found == [[f"objective.beta={beta}", "+sweep=beta", "seed=1"] for beta in ("0.1", "0.2")]
    assert list_of([*params("+sweep=beta"), "objective.beta=0.3"]) == [["objective.beta=0.3"]]


def list_of(texts: list[str]) -> list[list[str]]:
    return list(points(texts, True))


def params_inside(text: str) -> list[str]:
    return sweeping([text], False, None)[1]


@pytest.mark.parametrize("name", PLUGIN_OF)
def test_a_cluster_chooses_its_launcher(name: str) -> None:
    pytest.importorskip(f"hydra_plugins.{PLUGIN_OF[name]}", reason="pip install -e '.[cluster]'")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra = of_hydra([f"cluster={name}"], None)
    assert PLUGIN_OF[name] in hydra.launcher._target_
    content = OmegaConf.load(conf_dir() / "cluster" / f"{name}.yaml").hydra.launcher
    assert {key: hydra.launcher[key] for key in content} == dict(content)


def problems(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        check_command_line(arguments)
    return list(refused.value.problems)


def test_a_plugin_that_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.PLUGIN_OF, "nowhere", "hydra-nowhere-launcher")
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [override /hydra/launcher: nowhere]\n"
    )
    for text in ("hydra/launcher=nowhere", "cluster=mine"):
        assert problems("-m", f"--config-dir={tmp_path}", "seed=0,1", text) == [
            f"{text} needs hydra-nowhere-launcher: pip install -e '.[cluster]'"
        ]


def test_what_would_be_ignored_or_is_unknown_is_refused() -> None:
    assert problems("cluster=joblib") == [
        "cluster=joblib would be ignored in a single run: add --multirun or +sweep=NAME"
    ]
    assert problems("+sweep=betta", "seed=0,1") == [
        f"sweep=betta is not an option; choose {', '.join(SWEEPS)}"
    ]
    (said,) = problems("+sweep=critic", "critic=sign,tanh", "objective=kd")
    assert said.startswith("critic would be ignored with objective.distance=kl")


def test_a_point_that_is_wrong_is_found_before_the_first_runs() -> None:
    assert problems("+sweep=beta", "objective.beta=0,3") == ["objective.beta=3.0 must be at most 1.0"]


def test_the_overrides_of_a_sweep_file_are_readable_by_themselves() -> None:
    for name in GRIDS:
        assert all(parsed(text).is_discrete_sweep() for text in params(f"+sweep={name}")), name
