"""Figures by hand."""

import pytest

from amd_lightning.judging.verdicts import Judged, summary


def pair(item: str, first: tuple[float, float] | None, second: tuple[float, float] | None) -> list[Judged]:
    """Two questions: grades as (response, rival), with the response first, then second."""
    return [
        Judged(item, order, grades and {"response": grades[0], "rival": grades[1]}, "text")
        for order, grades in ((("response", "rival"), first), (("rival", "response"), second))
    ]


def test_a_ratio_of_totals_over_pairs_that_are_whole() -> None:
    rows = [*pair("a", (8, 4), (6, 6)), *pair("b", (3, 9), (1, 9)), *pair("c", (5, 5), (5, 5))]
    rows += pair("d", (10, 1), None)
    rows += [Judged("e", ("response", "rival"), None, None, "500")]
    found = summary(rows[::-1])
    assert (found["questions"], found["parse_failures"], found["unanswered"]) == (9, 1, 1)
    assert found["examples"] == 3
    assert found["ratio"] == pytest.approx(100 * (7 + 2 + 5) / (5 + 9 + 5))
    assert found["ratio_first"] == pytest.approx(100 * 16 / 18)
    assert found["ratio_second"] == pytest.approx(100 * 12 / 20)
    assert found["ratio_low"] < found["ratio"] < found["ratio_high"]
    assert [found[name] for name in ("wins", "ties", "losses")] == pytest.approx([1 / 3] * 3)
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["position_bias"] == pytest.approx(((4 - 0) + (-6 + 8) + 0) / 6)
    assert (found["mean_response"], found["mean_rival"]) == pytest.approx((28 / 6, 38 / 6))


def test_what_is_graded_alone_has_a_mean() -> None:
    rows = [Judged(str(grade), ("response",), {"response": grade}, "") for grade in (2.0, 4.0, 9.0)]
    found = summary(rows)
    assert found["mean_response"] == pytest.approx(5.0)
    assert found["mean_low"] < 5.0 < found["mean_high"]
    assert "ratio" not in found
    assert summary(rows[:1])["mean_low"] is None


def test_nothing_whole_gives_no_figure() -> None:
    assert summary(pair("a", (1, 2), None)) == {
        "questions": 2,
        "parse_failures": 1,
        "unanswered": 0,
        "examples": 0,
    }
