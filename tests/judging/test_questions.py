"""The wording both ways round, and what is read out of a reply."""

import pytest

from amd_lightning.judging.questions import Item, grades, questions

PAIR = ("response", "rival")


def test_a_pair_is_asked_for_in_both_orders() -> None:
    item = Item("e1", "A dialogue {with} braces", "MINE", "THEIRS")
    first, second = questions(item, "samsum")
    assert (first.order, second.order) == (PAIR, PAIR[::-1])
    ours, theirs = (question.messages[1]["content"] for question in (first, second))
    assert ours.index("MINE") < ours.index("THEIRS")
    assert theirs.index("THEIRS") < theirs.index("MINE")
    assert ours.replace("MINE", "~").replace("THEIRS", "MINE").replace("~", "THEIRS") == theirs
    assert "Summarise the dialogue" in ours
    assert "A dialogue {with} braces" in ours
    (alone,) = questions(item._replace(rival=None), "dolly")
    assert alone.order == ("response",)
    assert "THEIRS" not in alone.messages[1]["content"]
    assert "Summarise" not in alone.messages[1]["content"]


@pytest.mark.parametrize(
    "reply, found",
    [
        ("7 8\nBecause 3 of 4 facts are there.", (7, 8)),
        ("\n  **6.5, 9**  \nwords", (6.5, 9)),
        ("Answer 1: 7/10, Answer 2: 10/10", (7, 10)),
        ("Assistant 1 score: 2 and assistant 2 score: 3", (2, 3)),
        ("<think>1 2\nhm</think>\n\n4 5", (4, 5)),
        ("7", None),
        ("7 8 9", None),
        ("0 8", None),
        ("7 11", None),
        ("-7 8", None),
        ("I give 7 8", None),
        ("Both are fine.\n7 8", None),
        ("", None),
    ],
)
def test_grades_stand_on_the_first_line(reply: str, found: tuple[float, float] | None) -> None:
    expected = found and dict(zip(PAIR, map(float, found), strict=True))
    assert grades(reply, PAIR) == expected
    if found:
        assert grades(reply, PAIR[::-1]) == dict(zip(PAIR[::-1], map(float, found), strict=True))


def test_a_single_grade() -> None:
    assert grades("Score: 9/10\nwell", ("response",)) == {"response": 9.0}
    assert grades("9 8", ("response",)) is None
