"""Text metrics by hand."""

import pytest

from amd_lightning.data.embedded import is_correct
from amd_lightning.evaluation.metrics import accuracy, rouge_l

GOLD = "Adam will meet Kate at noon"


def test_rouge_l_by_hand() -> None:
    assert rouge_l([GOLD], [[GOLD]]) == pytest.approx(100.0)
    assert rouge_l(["something else"], [[GOLD]]) == 0.0
    # "adam meet kate" is a common subsequence of 3 of the response's 4 and the reference's 6 words
    assert rouge_l(["Adam can meet Kate"], [[GOLD]]) == pytest.approx(100 * 2 * 3 / (4 + 6))
    assert rouge_l(["Kate meet"], [[GOLD]]) == pytest.approx(100 * 2 * 1 / (2 + 6))  # the order counts


def test_words_are_stemmed_and_case_is_ignored() -> None:
    assert rouge_l(["adam MEETS kate"], [["Adam meeting Kate"]]) == pytest.approx(100.0)


def test_the_best_reference_counts() -> None:
    others = ["Nobody knows", GOLD, "Adam"]
    assert rouge_l([GOLD], [others]) == pytest.approx(100.0)
    assert rouge_l([GOLD], [others[:1]]) == 0.0


def test_the_mean_is_over_responses() -> None:
    assert rouge_l([GOLD, "x"], [[GOLD], [GOLD]]) == pytest.approx(50.0)


def test_an_empty_response_scores_nothing() -> None:
    assert rouge_l([""], [[GOLD]]) == 0.0


def test_accuracy_is_the_share_that_the_checker_accepts() -> None:
    references = [[GOLD, "Kate will meet Adam at noon."]] * 4
    responses = [GOLD, "kate will meet  adam at noon", "Adam will meet Kate", ""]
    assert accuracy(responses, references, is_correct) == 0.5


def test_responses_and_references_come_in_pairs() -> None:
    with pytest.raises(ValueError):
        rouge_l(["a", "b"], [["a"]])
    with pytest.raises(ValueError):
        accuracy(["a"], [["a"], ["b"]], is_correct)
