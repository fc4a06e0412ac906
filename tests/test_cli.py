"""The command line as a user mistypes it: every problem at once, in words that name the remedy."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from amd_lightning import __main__, cli, conf_dir
from amd_lightning.cli import check_command_line, knobs, one_line, validated
from amd_lightning.config.schema import RunConfig
from amd_lightning.errors import ConfigError
from tests.test_config import composed, options
from tests.test_config import knobs as all_knobs


def refusals(line: str) -> list[str]:
    """What is said about a command line, each problem in one line; [] if it is accepted."""
    said: list[str] = []
    try:
        check_command_line(shlex.split(line))
    except ConfigError as error:
        said = list(error.problems)
    assert all("\n" not in problem for problem in said)
    return said


OBJECTIVES = ", ".join(options("objective"))
SWEEPS = ", ".join(options("sweep"))
DISTANCES = "moment_matching, kl, rkl, js, tv, skew_kl, skew_rkl, jeffreys, akl, alpha_beta, nll"
REFUSED = {
    # unknown keys
    "objective.bta=0.5": "objective.bta is not a knob; did you mean objective.beta?",
    "++objective.bta=0.5": "objective.bta is not a knob; did you mean objective.beta?",
    "+objective.bta=0.5": "objective.bta is not a knob; did you mean objective.beta?",
    "critic={stps:3}": "critic.stps is not a knob; did you mean critic.steps?",
    "objective.horizon.gama=1": "objective.horizon.gama is not a knob; did you mean objective.horizon.gamma?",
    "objective.gamma=1": "objective.gamma is not a knob; did you mean objective.horizon.gamma?",
    "beta=0.5": "beta is not a knob; did you mean objective.beta?",
    "objektive=kd": "objektive is not a knob; did you mean objective?",
    # usual names of elsewhere
    "optim.lr=3": "optim.lr is not a knob; did you mean optim.student.learning_rate?",
    "+optim.student.lr=3": "optim.student.lr is not a knob; did you mean optim.student.learning_rate?",
    "optim.student_start.lr=3": "optim.student_start.lr is not a knob; did you mean "
    "optim.student_start.learning_rate?",
    "critic.lr=3": "critic.lr is not a knob; did you mean optim.critic.learning_rate?",
    "optim.teacher.bs=3": "optim.teacher.bs is not a knob; did you mean optim.teacher.batch_size?",
    "epochs=3": "epochs is not a knob; did you mean optim.student.updates?",
    "optim.zzz=3": "optim.zzz is not a knob; see --help",
    "zzz=1": "zzz is not a knob; see --help",
    "+zzz.y=1": "zzz is not a knob; see --help",
    "hydra.run.dri=x": "hydra.run.dri is not a setting of Hydra's; see --hydra-help",
    # types
    "objective.beta=abc": "objective.beta=abc must be a number",
    "objective.beta=": "objective.beta= must be a number",
    "objective.beta=[0,1]": "objective.beta=[0,1] must be a number",
    "objective.beta=null": "objective.beta=null must be a number",
    "seed=1.5": "seed=1.5 must be a whole number",
    "data.train_rows=a": "data.train_rows=a must be a whole number or null",
    "cache.enabled=maybe": "cache.enabled=maybe must be true or false",
    "optim.student.betas=[a]": "optim.student.betas=[a] must be a list of numbers, [A,B]",
    "logger.wandb.tags=a": "logger.wandb.tags=a must be a list, [A,B]",
    "critic={steps:a}": "critic={steps:a}: critic.steps must be a whole number",
    "cache={enabled:maybe}": "cache={enabled:maybe}: cache.enabled must be true or false",
    "objective.distance=kll": f"objective.distance=kll must be one of {DISTANCES}",
    "critic.actions=topk": "critic.actions=topk must be one of auto, full, top_k, sampled",
    "critic.shared=1.5": "critic.shared=1.5 must be true or false",
    "objective.horizon.baseline=mean": "objective.horizon.baseline=mean must be one of none, time_step, "
    "leave_one_out",
    "objective.beta=${nothing}": "objective.beta=${nothing}: Interpolation key 'nothing' not found",
    # groups
    "objective=gkdd": f"objective=gkdd is not an option; choose {OBJECTIVES}",
    "objective=": f"objective= is not an option; choose {OBJECTIVES}",
    "objective=5": f"objective=5 is not an option; choose {OBJECTIVES}",
    "+sweep=betta": f"sweep=betta is not an option; choose {SWEEPS}",
    "+sweep=[beta,nope]": f"sweep=nope is not an option; choose {SWEEPS}",
    "~scale": "~scale: scale and data must be chosen: the token limits are those of a task at a scale",
    "+experiment=samsun": "experiment=samsun is not an option; choose dolly, iwslt, samsum, strategyqa",
    "experiment=samsum": "experiment=samsum needs a plus: +experiment=samsum",
    "+objective=kd": "+objective=kd is chosen already; leave out the plus: objective=kd",
    # values
    "objective.beta=1.5": "objective.beta=1.5 must be at most 1.0",
    "objective.beta=nan": "objective.beta=nan is not a finite number",
    "critic.steps=0": "critic.steps=0 must be at least 1",
    "objective.horizon={gamma:2}": "objective.horizon.gamma=2.0 must be at most 1.0",
    "critic.kind=linear": "critic.kind=linear has no ridge (critic.ridge=2.0); with one it is kind=learned",
    # grammar
    "objective.beta=0,1": "objective.beta=0,1 is a sweep: add --multirun; a list is written [A,B], "
    "a text with commas 'A,B'",
    "seed=range(0,3)": "seed=range(0,3) is a sweep: add --multirun; a list is written [A,B], "
    "a text with commas 'A,B'",
    "=5": "=5 has no key: write KEY=VALUE",
    "kd": "kd cannot be read as KEY=VALUE; quote what is special to Hydra: \"KEY='VALUE'\"",
    "~objective.beta": "~objective.beta: a knob cannot be removed; leave this out and it takes its default",
    "output_dir=x": "output_dir=x: set hydra.run.dir=DIR instead (hydra.sweep.dir=DIR with --multirun)",
    "-m seed=glob(*)": "seed=glob(*) matches nothing",
    "--config-dir /nowhere": "--config-dir /nowhere is no directory",
    # shown in place of run
    "--cfg job objective.bta=1": "objective.bta is not a knob; did you mean objective.beta?",
    "--cfg job objective.beta=7": "objective.beta=7.0 must be at most 1.0",
    # options without effect
    "objective=kd critic=learned": "critic would be ignored with objective.distance=kl, which has no critic; "
    "leave it out",
    "data.path=DIR": "data.path would be ignored with data.source=embedded; add data.source=files",
    "objective.horizon.centre=false": "objective.horizon.centre would be ignored with "
    "objective.horizon.gamma=0; leave it out",
    "critic=sign critic.top_k=8": "critic.top_k would be ignored with critic.kind=sign, which learns "
    "nothing; leave it out",
    "critic={steps:5} objective=kd": "critic.steps would be ignored with objective.distance=kl, which has no "
    "critic; leave it out",
}


@pytest.mark.parametrize("line", REFUSED)
def test_one_mistake_is_one_line(line: str) -> None:
    assert refusals(line) == [REFUSED[line]]


ACCEPTED = [
    "",
    "+experiment=samsum",
    "++objective.beta=0.3",
    "~critic",
    "'seed=1 '",
    "\"logger.wandb.name='a, b=c'\"",
    "critic={steps:5}",
    "critic=linear",
    "critic=tanh critic.ridge=0.5",
    "critic.features=student critic.shared=true critic.actions=top_k critic.top_k=8",
    "objective.distance=js objective.js_mixture=0.1",
    "objective.horizon.gamma=1 objective.horizon.returns=sampled",
    "objective.horizon={gamma:1,baseline:leave_one_out} rollout.responses=2",
    "objective={distance:kl,beta:1}",
    "data.path=null",
    "hydra.run.dir=/tmp/x hydra.job.chdir=false",
    "objective=kd objective=amm critic.steps=2",  # the last one counts, as everywhere in Hydra
    "data.source=files data.path=/nowhere",  # what lies there is not the command line's
    "--cfg job --resolve objective=kd",
    "--help objective.bta=1",  # answered before
    "--info defaults",
    "-m objective.beta=0,0.5,1",
    "-m objective=glob(*)",
    "-m seed=range(0,2) hydra/launcher=basic",
    "-m objective.beta=interval(0,1)",  # for the sweepers that can sample
    "hydra.mode=MULTIRUN seed=0,1",
    # A knob of one point does not break its neighbour.
    "+experiment=samsum objective.distance=moment_matching,kl critic.steps=2 -m",
    "-m data.source=embedded,files data.path=/nowhere",
]


@pytest.mark.parametrize("line", ACCEPTED)
def test_accepted(line: str) -> None:
    assert refusals(line) == []


@pytest.mark.parametrize(
    "line",
    [
        "~scale",
        "~pair",
        "optim@x=foo",
        "data@x=samsum",
        "+objective@objective=kd",
        "~experiment",
        "++objective=kd",
        "a b",
    ],
)
def test_the_odd_corners_of_hydras_grammar_are_refused_without_a_crash(line: str) -> None:
    assert refusals(line)


def test_a_usual_name_is_nobodys_here_and_means_a_knob() -> None:
    last = {name.rpartition(".")[2] for name, _ in cli._knobs(RunConfig, "")}
    assert not last & set(cli.USUAL)
    assert set(cli.USUAL.values()) <= last


def test_all_problems_of_a_command_line_come_at_once() -> None:
    line = (
        "objective.bta=1 objective=zkd objective.distance=zz seed=-1 objective.beta=-0.1 critic.steps=0 "
        "optim.student.batch_size=8 optim.student.micro_batch_size=5 experiment=samsum "
        "objective.normalise=a,b x"
    )
    found = refusals(line)
    starts = [
        "objective.normalise=a,b is a sweep",
        "x cannot be read",
        "objective.bta is not a knob",
        "objective=zkd is not an option",
        "objective.distance=zz must be one of",
        "experiment=samsum needs a plus",
        "seed=-1 must be",
        "objective.beta=-0.1 must be",
        "critic.steps=0 must be",
        "optim.student.batch_size=8 is not divisible by",
    ]
    assert len(found) == len(starts)
    assert all(any(problem.startswith(start) for problem in found) for start in starts)


def test_every_bad_point_of_a_sweep_is_named_before_the_first_runs() -> None:
    assert refusals("-m objective.beta=0,7,8 critic.steps=1,0 objective.bta=1 objective=amm,kdd") == [
        "objective.bta is not a knob; did you mean objective.beta?",
        f"objective=kdd is not an option; choose {OBJECTIVES}",
        "critic.steps=0 must be at least 1",
        "objective.beta=7.0 must be at most 1.0",
        "objective.beta=8.0 must be at most 1.0",
    ]


@pytest.mark.parametrize(
    "line, key",
    [
        ("-m critic.steps=1,2 objective.distance=kl,rkl", "critic.steps"),
        ("-m seed=0,1 data.path=x", "data.path"),
    ],
)
def test_an_option_that_no_point_of_a_sweep_would_use_is_refused(line: str, key: str) -> None:
    (problem,) = refusals(line)
    assert problem.startswith(f"{key} would be ignored")


# -- mistakes in a file ----------------------------------------------------------------------------

BROKEN = {
    "unknown": ("objective: {bta: 3}", "experiment/unknown.yaml: objective.bta is not a knob; did you mean"),
    "type": ("objective: {beta: abc}", "experiment/type.yaml: objective.beta must be a number"),
    "float": (
        "optim: {student: {updates: 1e3}}",
        "experiment/float.yaml: optim.student.updates must be a whole",
    ),
    "enum": ("critic: {kind: big}", "experiment/enum.yaml: critic.kind must be one of residual"),
    "option": (
        "defaults: [override /data: news]",
        "+experiment=option: data=news is not an option; choose dolly, iwslt, samsum, strategyqa",
    ),
    "group": ("defaults: [override /dta: samsum]", "experiment/group.yaml: dta is not a knob; did you mean"),
    "syntax": ("objective: {beta: : 3", "+experiment=syntax: while parsing a flow node"),
    "list": ("[a, b]", "experiment/list.yaml: Cannot merge"),
    "scalar": ("objective: 3", "experiment/scalar.yaml: "),
}


@pytest.fixture
def user_conf(tmp_path: Path) -> Path:
    folder = tmp_path / "experiment"
    folder.mkdir()
    for name, (content, _) in BROKEN.items():
        (folder / f"{name}.yaml").write_text(f"# @package _global_\n{content}\n")
    (folder / "range.yaml").write_text("# @package _global_\nobjective: {beta: 7}\ncritic: {steps: 0}\n")
    (folder / "local.yaml").write_text("objective: {beta: 0.7}\n")
    (folder / "good.yaml").write_text("# @package _global_\nobjective: {beta: 0.7}\n")
    return tmp_path


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_in_the_users_own_experiment_names_its_file(user_conf: Path, name: str) -> None:
    problem, seed = refusals(f"--config-dir {user_conf} +experiment={name} seed=a")
    assert problem.startswith(BROKEN[name][1])
    assert seed == "seed=a must be a whole number"


def test_values_out_of_range_in_a_file_come_together(user_conf: Path) -> None:
    assert refusals(f"--config-dir {user_conf} +experiment=range seed=-1") == [
        "seed=-1 must be at least 0",
        "objective.beta=7.0 must be at most 1.0",
        "critic.steps=0 must be at least 1",
    ]


def test_an_experiment_without_its_package_line_is_told_so(user_conf: Path) -> None:
    (problem,) = refusals(f"--config-dir {user_conf} +experiment=local")
    assert problem == "experiment/local.yaml: its first line must be: # @package _global_"
    assert refusals(f"--config-dir {user_conf} +experiment=good") == []


def test_a_mistake_in_conf_itself_is_said_without_an_override(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(conf_dir(), tmp_path / "conf")
    (tmp_path / "conf" / "critic" / "residual.yaml").write_text("stps: 3\n")
    monkeypatch.setattr(cli, "conf_dir", lambda: tmp_path / "conf")
    expected = "critic/residual.yaml: critic.stps is not a knob; did you mean critic.steps?"
    assert refusals("") == refusals("seed=1") == [expected]


# -- the rest --------------------------------------------------------------------------------------


def test_validated_gives_typed_values_and_refuses_what_hydra_lets_pass() -> None:
    config = validated(composed("objective.beta=1"), ["objective.beta=1"], refuse_ignored=True)
    assert (config.objective.beta, type(config.objective.beta)) == (1.0, float)
    with pytest.raises(ConfigError, match="zzz is not a knob"):
        validated(composed("+zzz=1"), ["+zzz=1"], refuse_ignored=False)
    without = composed()
    without.pair.name = "???"
    with pytest.raises(ConfigError, match=r"no value for pair\.name"):
        validated(without, [], refuse_ignored=False)


def test_one_line_drops_what_only_a_programmer_reads() -> None:
    assert one_line(ValueError("bad\n    full_key: a.b\n    object_type=X\n  worse")) == "bad worse"
    assert one_line(KeyError()) == "KeyError"


def test_help_explains_every_knob_within_100_columns() -> None:
    text = knobs()
    assert max(map(len, text.splitlines())) <= 100
    one_lined = " ".join(text.split())
    for name, field in all_knobs():
        repeated = name.startswith(("pair.student.", "optim.student"))  # said once, for the teacher
        if not repeated and name not in ("experiment", "scale", "output_dir"):
            assert f" {name} [" in text or f" {name}:" in text, name
        assert " ".join(field.metadata["meaning"].split()) in one_lined or name == "output_dir", name
    assert f"objective= {OBJECTIVES}" in " ".join(text.split())
    assert "(≥ 0.0; ≤ 1.0)" in text.replace("\n        ", " ")
    assert f"one of {DISTANCES}" in one_lined


def test_help_shows_the_values_of_the_default_run() -> None:
    text = knobs()
    config = validated(composed(), [], refuse_ignored=True)
    assert f"optim.teacher.updates [{config.optim.teacher.updates}]" in text
    assert "optim.critic.betas [0.5,0.99]" in text
    assert "pair.teacher.path [null]" in text
    assert "cache.enabled [true]" in text
    student = config.pair.student.architecture
    assert f"as pair.teacher.architecture, with d_model [{student.d_model}]" in text


# -- the commands ----------------------------------------------------------------------------------


def test_the_package_lists_its_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = Path(__main__.__file__).parent
    monkeypatch.setattr(sys, "argv", ["amd_lightning"])
    __main__.main()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    listed = [line.split()[2].removeprefix("amd_lightning.") for line in lines[2:]]
    runnable = {
        path.stem for path in package.glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")
    }
    assert sorted(listed) == sorted(runnable - {"__main__", "presets", "show_data"} | {"data"})


@pytest.mark.parametrize("line, meant", [("plan scale=paper", "plan"), ("+experiment=samsum", "run")])
def test_a_command_behind_a_space_is_told_of_its_dot(
    line: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["amd_lightning", *line.split()])
    with pytest.raises(SystemExit, match=rf"^error: .*: python -m amd_lightning\.{meant} "):
        __main__.main()
