"""Text metrics by hand."""

import math

import pytest

from amd_lightning.data.embedded import is_correct
from amd_lightning.evaluation.metrics import accuracy, bleu, rouge_l, scorers, signatures, unparsed

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


def test_bleu_by_hand() -> None:
    response, gold = "a b c d e f", "a b c d e g"
    # n-grams in common: 5 of 6, 4 of 5, 3 of 4, 2 of 3; equal lengths
    expected = 100 * math.exp(sum(map(math.log, (5 / 6, 4 / 5, 3 / 4, 2 / 3))) / 4)
    assert bleu([response], [[gold]]) == pytest.approx(expected)
    assert bleu([GOLD, response], [[GOLD], [response]]) == pytest.approx(100.0)


def test_bleu_is_of_the_corpus_and_knows_several_references() -> None:
    two, references = ["a b c d", "a b c d e f"], [["a b c d", "x"], ["a b c d e g"]]
    # of both together: 9 of 10, 7 of 8, 5 of 6, 3 of 4
    expected = 100 * math.exp(sum(map(math.log, (9 / 10, 7 / 8, 5 / 6, 3 / 4))) / 4)
    assert bleu(two, references) == pytest.approx(expected)
    assert bleu(["x y z w"], [["a", "x y z w"]]) == pytest.approx(100.0)


def test_bleu_has_a_signature() -> None:
    assert signatures(["bleu", "accuracy"], [["a"], ["b"]])["bleu"].startswith(
        "nrefs:1|case:mixed|eff:no|tok:13a|"
    )
    assert signatures(["bleu"], [["a", "c"], ["b"]])["bleu"].startswith("nrefs:var|")
    assert signatures(["rouge_l"], [["a"]]) == {}


def test_what_cannot_be_parsed_is_counted() -> None:
    assert unparsed(["yes", "", "no", "x"], [[""]] * 4, {"yes": True, "no": False}.get) == 0.5


def test_a_tasks_scorers_keep_their_order_and_say_none_where_there_is_no_notion() -> None:
    found = scorers(("accuracy", "unparsed", "rouge_l"), None)
    assert list(found) == ["accuracy", "unparsed", "rouge_l"]
    assert [score(["a"], [["a"]]) for score in found.values()] == [None, None, pytest.approx(100.0)]
    assert scorers(("accuracy",), is_correct)["accuracy"](["a"], [["a"]]) == 1.0
    with pytest.raises(KeyError):
        scorers(("meteor",), None)
