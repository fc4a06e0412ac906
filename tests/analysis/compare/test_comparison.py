"""Methods × metrics: means, what intervals cover, tests, budgets and files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from amd_lightning.analysis.compare.collect import find_runs, read_run
from amd_lightning.analysis.compare.comparison import Comparison, comparison
from amd_lightning.analysis.compare.measures import in_order, measure_of
from amd_lightning.analysis.compare.methods import methods
from amd_lightning.analysis.compare.scores import example_scores
from amd_lightning.analysis.compare.tables import cell_text, covers, latex, markdown, runs_table, write_tables
from amd_lightning.errors import UserError

MM1, MM0, KL1, KL0 = "moment matching, β 1", "moment matching, β 0", "KL, β 1", "KL, β 0"


@pytest.fixture(scope="module")
def found(sweep: Path) -> Comparison:
    return comparison(*methods(find_runs([sweep]).runs))


# -- scores ------------------------------------------------------------------------------------


def test_scores_of_examples_are_means_over_their_responses(tmp_path: Path, write_run: Any) -> None:
    scores = example_scores(read_run(write_run(tmp_path / "run", right=13)))
    assert set(scores) == {"rouge_l", "accuracy", "sampled_rouge_l", "sampled_accuracy"}
    # Of 20 samples, two to each example, the first 13 are right.
    assert scores["sampled_accuracy"].values.tolist() == [1.0] * 3 + [0.5] * 7
    assert scores["accuracy"].values.tolist() == [1.0] * 6 + [0.0] * 4


def test_scores_whose_mean_is_not_the_metric_are_not_used(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    results["student"]["rouge_l"] += 0.1
    (folder / "results.json").write_text(json.dumps(results))
    assert "rouge_l" not in example_scores(read_run(folder))


def test_a_rows_own_scores_count_and_further_sets_have_theirs(tmp_path: Path, write_run: Any) -> None:
    sets = {"vicuna": {who: {"bleu": 20.0, "win": 0.5} for who in ("teacher", "student_start", "student")}}
    folder = write_run(tmp_path / "run", change={"evaluation_sets": sets})
    row = {"who": "student", "kind": "greedy", "evaluation_set": "vicuna", "response": "", "references": []}
    with (folder / "predictions.jsonl").open("a") as file:
        for place, win in enumerate((1.0, 0.0)):
            file.write(json.dumps({**row, "id": f"v{place}", "scores": {"win": win, "bleu": 3.0}}) + "\n")
    scores = example_scores(read_run(folder))
    assert scores["vicuna/win"].values.tolist() == [1.0, 0.0]
    assert "vicuna/bleu" not in scores  # of the corpus, no mean


def test_a_damaged_line_of_predictions_is_named(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "predictions.jsonl").write_text('{"who": "student"}\n')
    with pytest.raises(UserError, match=r"predictions.jsonl, line 1, is damaged"):
        example_scores(read_run(folder))


# -- numbers -----------------------------------------------------------------------------------


def test_means_are_over_seeds_and_intervals_say_what_they_cover(found: Comparison) -> None:
    cell = found.estimates[MM1, "sampled_accuracy"]
    assert cell.mean == pytest.approx((18 + 17) / 40)
    assert (cell.seeds, cell.examples, covers(cell)) == (2, 10, "seeds and examples")
    assert covers(found.estimates[MM1, "tv_off"]) == "seeds"
    assert found.judge == "sampled_accuracy"
    assert [method.label for method in found.ranked()] == [MM1, MM0, KL1, KL0]
    assert found.levels["sampled_accuracy"] == pytest.approx((0.95, 0.05))


def test_all_pairs_are_tested_and_corrected_a_metric(found: Comparison) -> None:
    tested = [pair for pair in found.pairs if pair.metric == "sampled_accuracy"]
    assert len(tested) == 6
    pair = next(pair for pair in tested if (pair.first, pair.second) == (MM1, KL0))
    assert pair.difference.estimate.mean == pytest.approx((18 + 17 - 4 - 5) / 40)
    assert pair.difference.p is not None
    assert pair.p_holm is not None
    assert pair.difference.p < pair.p_holm <= 6 * pair.difference.p + 1e-12


def test_against_one_method_there_are_fewer_tests(sweep: Path) -> None:
    found = comparison(*methods(find_runs([sweep]).runs), against=KL1)
    tested = [pair for pair in found.pairs if pair.metric == "sampled_accuracy"]
    assert [(pair.first, pair.second) for pair in tested] == [(MM1, KL1), (MM0, KL1), (KL0, KL1)]


def test_pairs_are_of_the_seeds_that_both_have(tmp_path: Path, write_run: Any) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / f"kl{seed}", "kl", 1.0, seed, right=8 + seed)
    for seed in (2, 3):
        write_run(tmp_path / f"js{seed}", "js", 1.0, seed, right=12)
    found = comparison(*methods(find_runs([tmp_path]).runs))
    pair = next(pair for pair in found.pairs if pair.metric == "sampled_accuracy")
    assert pair.difference.estimate.seeds == 1
    assert abs(pair.difference.estimate.mean) == pytest.approx((12 - 10) / 20)


def test_a_run_without_a_finite_value_takes_the_mean_with_it(tmp_path: Path, write_run: Any) -> None:
    write_run(tmp_path / "a", seed=0)
    folder = write_run(tmp_path / "b", seed=1)
    results = json.loads((folder / "results.json").read_text())
    results["student"]["kl_off"] = float("nan")
    (folder / "results.json").write_text(json.dumps(results))
    found = comparison(*methods(find_runs([tmp_path]).runs))
    assert (KL1, "kl_off") not in found.estimates
    assert any("1 of 2 runs have no finite KL off" in warning for warning in found.warnings)
    assert cell_text(found.estimates.get((KL1, "kl_off")), "kl_off") == "–"


def test_what_is_asked_for_must_be_there(sweep: Path) -> None:
    found, warnings = methods(find_runs([sweep]).runs)
    with pytest.raises(UserError, match="--metric bleu is not in these runs; they have: sampled_accuracy"):
        comparison(found, warnings, metric="bleu")
    with pytest.raises(UserError, match="is no method here; they are: moment matching, β 1"):
        comparison(found, warnings, against="KL")
    assert comparison(found, warnings, metric="tv_off").ranked()[0].label == MM1  # lower is better


def test_equal_budgets_are_read_from_the_validation_curve(found: Comparison) -> None:
    # Ten and eleven seconds: at ten, every run's clock (half a second an update) had reached update 20.
    assert found.common == (20.0, 10.0)
    budget = found.budgets[MM1]
    assert (budget.updates, budget.seconds, budget.tokens) == (20, 10.5, 1000.0)
    assert budget.updates_by_then == 20.0
    assert budget.at_seconds == budget.at_updates == pytest.approx((18 / 20 + 17 / 20 + 0.01) / 2)


def test_a_run_that_ran_out_of_time_has_the_updates_that_it_made(tmp_path: Path, write_run: Any) -> None:
    write_run(tmp_path / "whole", "js")
    write_run(tmp_path / "stopped", "kl", change={"stopped_at": 10})
    found = comparison(*methods(find_runs([tmp_path]).runs))
    assert (found.budgets[KL1].updates, found.common[0]) == (10, 10.0)
    table = runs_table(found.methods)
    assert set(table[table["distance"] == "kl"]["updates"]) == {10}


def test_at_fewer_seconds_a_slow_method_is_read_earlier(tmp_path: Path, write_run: Any) -> None:
    quick = {"cost": {"seconds": {"distil": 7.5}}}
    write_run(tmp_path / "quick", "js", change=quick)
    write_run(tmp_path / "slow", "kl", right=10)
    found = comparison(*methods(find_runs([tmp_path]).runs))
    slow = found.budgets[KL1]
    assert slow.updates_by_then == pytest.approx(15.0)
    assert slow.at_seconds == pytest.approx(10 * 15 / 400)  # between the validations at 10 and 20
    once = [{"update": 20, "valid/sampled_accuracy": 0.5}, {"update": 20, "time/seconds": 10.0}]
    write_run(tmp_path / "once", "tv", curves=once)
    found = comparison(*methods(find_runs([tmp_path]).runs))
    assert found.budgets["TV, β 1"].at_seconds is None


# -- files -------------------------------------------------------------------------------------


def test_tables_are_written_and_read_back(found: Comparison, tmp_path: Path) -> None:
    paths = write_tables(found, tmp_path)
    assert all(path.stat().st_size for path in paths)
    runs = pd.read_parquet(tmp_path / "runs.parquet")
    row = runs[(runs.method == MM1) & (runs.seed == 0) & (runs.metric == "sampled_accuracy")]
    assert row[["value", "student_start", "teacher"]].to_numpy().tolist() == [[0.9, 0.05, 0.95]]
    assert len(runs) == len(runs_table(found.methods))
    assert set(runs.metric) >= {"tv_off", "cost/seconds/distil", "cost/tokens/off"}
    summary = pd.read_csv(tmp_path / "summary.csv").set_index(["method", "metric"])
    assert summary.loc[(KL0, "sampled_accuracy"), "mean"] == pytest.approx(9 / 40)
    assert summary.loc[(KL0, "tv_off"), "interval_covers"] == "seeds"
    pairs = pd.read_csv(tmp_path / "pairs.csv")
    assert len(pairs) == len(found.pairs)
    assert np.isfinite(pairs.p_holm).all()


def test_markdown_has_the_best_in_bold(found: Comparison) -> None:
    lines = markdown(found).splitlines()
    assert lines[0].startswith("|  | sampled accuracy (↑) | sampled ROUGE-L (↑)")
    assert lines[2].startswith("| teacher | 0.950 |")
    row = next(line for line in lines if line.startswith(f"| {MM1}"))
    assert row.split(" | ")[1].startswith("**0.875 ± ")
    assert "2 training seeds" in lines[-1]
    assert "10 test examples" in lines[-1]


def test_latex_has_no_letter_that_latex_does_not_know(found: Comparison) -> None:
    text = latex(found)
    assert text.count(r"\\") == 2 + 1 + 4
    assert r"KL, $\beta$ 0" in text
    assert r"\textbf{0.875 $\pm$ " in text
    body = text.partition("\n")[2]
    assert all(ord(letter) < 128 for letter in body), {letter for letter in body if ord(letter) > 127}


def test_unknown_metrics_are_shown_last_and_sets_after_the_test_split() -> None:
    keys = ["zzz", "vicuna/rouge_l", "tv_off", "rouge_l"]
    assert in_order(keys) == ["rouge_l", "tv_off", "vicuna/rouge_l", "zzz"]
    assert measure_of("zzz").better == 0
    assert measure_of("vicuna/rouge_l").arrow == "vicuna: ROUGE-L (↑)"
