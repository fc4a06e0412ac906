"""Which runs are found, what makes a method, and which runs are refused."""

from pathlib import Path
from typing import Any

import pytest

from amd_lightning.analysis.compare.collect import Run, find_runs, flat, read_run
from amd_lightning.analysis.compare.methods import methods
from amd_lightning.errors import UserError


def run(seed: int = 0, objective: dict[str, Any] | None = None, **config: Any) -> Run:
    """A run that is all description; config keys with "__" for "."."""
    own = objective or {"distance": "kl", "beta": 1.0}
    knobs = {"data.task": "samsum", "optim.student.updates": 500, "seed": seed}
    knobs |= {key.replace("__", "."): value for key, value in config.items()}
    results = {"objective": own, "seed": seed, "teacher": {"rouge_l": 90.0}, "student": {"rouge_l": 50.0}}
    place = f"{own['distance']}/{seed}/{sorted(config.items())}"
    return Run(place, place, results, knobs)


def said(*runs: Run, **options: Any) -> str:
    """The refusal of these runs, in one line."""
    with pytest.raises(UserError) as caught:
        methods(runs, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- finding -----------------------------------------------------------------------------------


def test_runs_are_found_below_and_unfinished_ones_named(sweep: Path) -> None:
    found = find_runs([sweep, sweep / "seed0"])  # the second is there already
    assert len(found.runs) == 8
    assert [path.name for path in found.unfinished] == ["9_unfinished"]
    assert found.runs[0].name == "seed0/0_moment_matching"
    assert found.runs[0].config["optim.student.updates"] == 20
    assert found.runs[0].curves["valid/sampled_accuracy"][-1] == pytest.approx((20.0, 0.9))


def test_points_of_a_sweep_stand_by_number(tmp_path: Path, write_run: Any) -> None:
    for place in (10, 2):
        write_run(tmp_path / f"{place}_kl", seed=place)
    assert [found.seed for found in find_runs([tmp_path]).runs] == [2, 10]


def test_what_lies_in_a_run_is_no_run(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "student").mkdir()
    (folder / "student" / "config.yaml").write_text("a: 1\n")
    found = find_runs([tmp_path])
    assert (len(found.runs), found.unfinished) == (1, [])
    assert len(find_runs([folder]).runs) == 1


@pytest.mark.parametrize("name, text", [("results.json", "{"), ("config.yaml", "a: [")])
def test_a_damaged_file_is_named(tmp_path: Path, write_run: Any, name: str, text: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        find_runs([tmp_path])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        find_runs([tmp_path / "nowhere"])


def test_further_test_sets_stand_among_the_metrics(tmp_path: Path, write_run: Any) -> None:
    sets = {"vicuna": {who: {"rouge_l": 20.0} for who in ("teacher", "student_start", "student")}}
    found = read_run(write_run(tmp_path / "run", change={"evaluation_sets": sets}))
    assert found.results["student"]["vicuna/rouge_l"] == 20.0


def test_flat_maps() -> None:
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": 1, "a.c.d": None, "e": [1]}


# -- methods -----------------------------------------------------------------------------------


def test_seeds_are_gathered_by_method() -> None:
    mm = {"distance": "moment_matching", "beta": 0.5}
    found, warnings = methods([run(1), run(0, mm), run(0), run(0, {"distance": "kl", "beta": 0.0})])
    assert [method.label for method in found] == ["KL, β 1", "KL, β 0", "moment matching, β 0.5"]
    assert [one.seed for one in found[0].runs] == [0, 1]
    assert (found[0].family, found[0].beta, found[0].distance) == ("KL", 1.0, "kl")
    assert warnings == []


def test_methods_are_named_by_what_tells_them_apart() -> None:
    def mm(alpha: float) -> dict[str, Any]:
        critic = {"kind": "residual", "alpha": alpha}
        return {"distance": "moment_matching", "beta": 1.0, "critic": critic}

    found, _ = methods([run(0, mm(0.5)), run(0, mm(0.1)), run(0)])
    assert [m.label for m in found] == [
        "moment matching, α 0.5, β 1",
        "moment matching, α 0.1, β 1",
        "KL, β 1",
    ]


def test_a_knob_that_an_earlier_version_does_not_name_is_no_difference() -> None:
    later = {"distance": "kl", "beta": 1.0, "teacher_temperature": 1.0}
    found, _ = methods([run(0), run(1, later)])
    assert [len(method.runs) for method in found] == [2]
    found, _ = methods([run(0), run(1, later), run(2, {**later, "teacher_temperature": 2.0})])
    assert len(found) == 3  # which of both the first had, nobody knows


def with_knobs(seed: int, objective: dict[str, Any], rollout: dict[str, Any] | None = None) -> Run:
    """As results.json has it: nothing is said of what is off."""
    mm = {"distance": "moment_matching", "beta": 0.5, "critic": {"kind": "residual", "alpha": 0.25}}
    found = run(seed, mm | objective)
    found.results["rollout"] = {"off_policy": "data", **(rollout or {})}  # type: ignore[index]
    return found


@pytest.mark.parametrize(
    "objective, rollout, words",
    [
        ({"sft_weight": 0.5}, {}, "sft weight 0.5"),
        ({"horizon": {"gamma": 1.0, "returns": "expected"}}, {}, "γ 1"),
        ({"kernel": {"weight": 2.0, "ngram": 2}}, {}, "kernel 2"),
        ({"adaptive_beta": {"step": 0.1, "tolerance": 0.1}}, {}, "adaptive β 0.1"),
        (
            {"critic": {"kind": "residual", "alpha": 0.25, "alpha_start": 0.01, "alpha_path": "linear"}},
            {},
            "α from 0.01",
        ),
        ({}, {"replay": {"capacity": 100, "refresh": 0.5}}, "replay 100"),
        ({}, {"reuse": 4}, "reuse 4"),
        ({}, {"teacher_share": 0.2}, "teacher share 0.2"),
        ({}, {"teacher_top_k": 16}, "teacher top k 16"),
    ],
)
def test_what_one_method_has_and_the_other_does_without_tells_them_apart(
    objective: dict[str, Any], rollout: dict[str, Any], words: str
) -> None:
    found, _ = methods([with_knobs(0, {}), with_knobs(1, objective, rollout)])
    assert [m.label for m in found] == [
        "moment matching, β 0.5",
        f"moment matching, {words}, β 0.5",
    ]
    both, _ = methods([with_knobs(seed, objective, rollout) for seed in (0, 1)])
    assert [(m.label, len(m.runs)) for m in both] == [("moment matching, β 0.5", 2)]


def test_what_is_said_to_be_off_is_off() -> None:
    off = {"horizon": {"gamma": 0.0, "returns": "expected"}, "sft_weight": 0.0}
    found, _ = methods([with_knobs(0, {}), with_knobs(1, off, {"replay": {"capacity": 0}, "reuse": 1})])
    assert [len(method.runs) for method in found] == [2]


def test_who_wrote_the_responses_is_the_runs_own_word() -> None:
    found, _ = methods([with_knobs(0, {}), with_knobs(0, {}, {"off_policy": "teacher"})])
    assert [m.label for m in found] == [
        "moment matching, data responses, β 0.5",
        "moment matching, teacher responses, β 0.5",
    ]
    none = {"beta": 0.0}
    found, _ = methods([with_knobs(0, none), with_knobs(1, none, {"off_policy": "teacher"})])
    assert [len(method.runs) for method in found] == [2]  # nobody's are used
    falling = {"beta": 0.0, "adaptive_beta": {"step": 0.1}}
    found, _ = methods([with_knobs(0, falling), with_knobs(1, falling, {"off_policy": "teacher"})])
    assert [len(method.runs) for method in found] == [1, 1]


# -- refusals ----------------------------------------------------------------------------------


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged() -> None:
    text = said(run(0), run(1, optim__student__updates=100))
    assert "KL, β 1" in text
    assert "optim.student.updates (500: 1 run, 100: 1 run)" in text
    assert "--by optim.student.updates" in text
    assert "--where optim.student.updates=500" in text


def test_they_are_told_apart_or_averaged_over_on_request() -> None:
    pair = [run(0), run(0, optim__student__updates=100)]
    found, warnings = methods(pair, by=["optim.student.updates"])
    assert [m.label for m in found] == ["KL, updates 500, β 1", "KL, updates 100, β 1"]
    assert any("as asked" in warning for warning in warnings)
    found, _ = methods(pair, over=["optim.student.updates"])
    assert found[0].replicates == ("0, updates 100", "0, updates 500")


def test_the_critics_optimizer_is_no_matter_of_seeds() -> None:
    text = said(run(0, optim__critic__weight_decay=0.0), run(1, optim__critic__weight_decay=0.1))
    assert "--by optim.critic.weight_decay" in text


def test_when_it_validates_moves_what_an_adaptive_run_learns() -> None:
    runs = [run(0, trainer__validate_every=50), run(1, trainer__validate_every=100)]
    assert len(methods(runs)[0]) == 1
    for one in runs:
        one.results["objective"]["adaptive_beta"] = {"step": 0.1}
    assert "--by trainer.validate_every" in said(*runs)
    assert len(methods(runs, over=["trainer.validate_every"])[0]) == 1


def stopped(seed: int, updates: int) -> Run:
    found = run(seed, trainer__time_budget=10.0)
    found.results.update(updates=1000, stopped_at=updates)  # type: ignore[attr-defined]
    return found


def test_a_seed_that_ran_out_of_time_is_not_averaged_with_one_that_did_not() -> None:
    whole = run(1, trainer__time_budget=10.0)
    whole.results["updates"] = 1000  # type: ignore[index]
    text = said(stopped(0, 300), whole)
    assert "seed 0 was stopped by trainer.time_budget after 300 of 1000 updates" in text
    assert "--over stopped_at" in text
    found, _ = methods([stopped(0, 300), whole], over=["stopped_at"])
    assert found[0].replicates == ("0, stopped at 300", "1, stopped at null")


def test_runs_that_all_ran_out_of_time_are_compared_and_it_is_said() -> None:
    found, warnings = methods([stopped(0, 300), stopped(1, 320)])
    assert [one.updates for one in found[0].runs] == [300, 320]
    assert warnings == [
        "Stopped by trainer.time_budget before their last update: KL, β 1 300 and 320 of 1000."
    ]


def test_other_questions_are_not_compared() -> None:
    other = run(0, {"distance": "js", "beta": 1.0}, data__task="dolly")
    text = said(run(0), other)
    assert "not asked the same questions" in text
    assert "data.task (samsum: 1 run, dolly: 1 run)" in text
    assert "--where data.task=samsum" in text


def test_a_seed_that_is_there_twice() -> None:
    assert "has seed 0 twice" in said(run(0), run(0, output_dir="elsewhere"))


def test_names_and_places_are_no_difference_and_threads_are_told() -> None:
    one = run(0, output_dir="a", cache__dir="x", logger__wandb__name="n", trainer__threads=1)
    two = run(1, output_dir="b", cache__dir="y", logger__wandb__name="m", trainer__threads=4)
    found, warnings = methods([one, two])
    assert len(found) == 1
    assert warnings == [
        "Differences that move rounding and seconds at most: trainer.threads (1: 1 run, 4: 1 run)."
    ]


def test_methods_may_differ_in_more_but_it_is_said() -> None:
    other = run(0, {"distance": "js", "beta": 1.0}, optim__student__learning_rate=0.1)
    _, warnings = methods([run(0, optim__student__learning_rate=0.2), other])
    assert "optim.student.learning_rate (0.2: 1 run, 0.1: 1 run)" in warnings[0]


def test_other_versions_and_another_teacher_are_told() -> None:
    one, two = run(0), run(1)
    one.results["git_commit"], two.results["git_commit"] = "a" * 40, "b" * 40 + "+changes"  # type: ignore[index]
    two.results["teacher"]["rouge_l"] = 80.0
    _, warnings = methods([one, two])
    assert "git commit (aaaaaaaaa: 1 run, bbbbbbbbb+changes: 1 run)" in warnings[0]
    assert "not one teacher" in warnings[1]


def test_an_unknown_knob() -> None:
    assert "no run says anything of optim.student.updats" in said(run(0), by=["optim.student.updats"])
