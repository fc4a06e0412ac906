"""Patience, budget, rate and secrecy, against a local stub."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from amd_lightning.errors import UserError
from amd_lightning.judging.endpoint import (
    Budget,
    BudgetSpentError,
    Endpoint,
    NoAnswerError,
    Settings,
    check,
    seconds_to_wait,
)
from tests.judging.conftest import KEY, Answer, Stub

ASKED = [{"role": "user", "content": "Which?" * 10}]


def endpoint(stub: Stub, budget: Budget | None = None, **fields: Any) -> tuple[Endpoint, list[float]]:
    """An endpoint whose sleeps are noted and not slept."""
    slept: list[float] = []
    settings: dict[str, Any] = {"base_url": stub.url, "model": "m", "key": KEY, "timeout": 5.0, "attempts": 4}
    made = Endpoint(
        Settings(**settings | fields), budget or Budget(), sleep=slept.append, clock=lambda: 100.0
    )
    return made, slept


def test_a_question_goes_out_and_comes_back(stub: Stub) -> None:
    budget = Budget()
    made, slept = endpoint(stub, budget)
    assert made.ask(ASKED).text == "7 8\nreasons"
    ((body, headers),) = stub.seen
    assert body == {
        "path": "/v1/chat/completions",
        "model": "m",
        "messages": ASKED,
        "temperature": 0.0,
        "max_tokens": 256,
    }
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (budget.requests, budget.tokens, slept) == (1, 100, [])
    bare, _ = endpoint(stub, key=None, temperature=None, reply_tokens=0)
    bare.ask(ASKED)
    assert set(stub.seen[1][0]) == {"path", "model", "messages"}
    assert "Authorization" not in stub.seen[1][1]


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(status=429),
        Answer(status=500, raw="oops"),
        Answer(status=529),
        Answer(raw="<html>nonsense</html>"),
        Answer(raw='{"choices": []}'),
        Answer(raw='{"choices": [{"message": {"content": null}}]}'),
        Answer(raw='["choices"]'),
    ],
    ids=["429", "500", "529", "html", "no choices", "no text", "a list"],
)
def test_trouble_is_tried_again_after_a_growing_wait(trouble: Answer, stub: Stub) -> None:
    stub.script = lambda number, _: trouble if number < 2 else Answer()
    made, slept = endpoint(stub)
    assert made.ask(ASKED).text == "7 8\nreasons"
    assert (slept, made.budget.requests) == ([1.0, 2.0], 3)
    stub.script = lambda *_: trouble
    made, slept = endpoint(stub, longest_wait=3.0)
    with pytest.raises(NoAnswerError, match="at 4 attempts"):
        made.ask(ASKED)
    assert slept == [1.0, 2.0, 3.0]


def test_silence_is_a_timeout_and_may_be_paid_for(stub: Stub) -> None:
    stub.script = lambda number, _: Answer(wait=0.6 if number == 0 else 0.0)
    made, slept = endpoint(stub, timeout=0.3)
    assert made.ask(ASKED).text == "7 8\nreasons"
    assert slept == [1.0]
    assert made.budget.tokens == 20 + 256 + 100


def test_nobody_there_is_no_answer(stub: Stub) -> None:
    made, slept = endpoint(stub, base_url="http://127.0.0.1:9/v1", attempts=2)
    with pytest.raises(NoAnswerError, match="no connection"):
        made.ask(ASKED)
    assert slept == [1.0]


def test_retry_after_is_honoured(stub: Stub) -> None:
    stub.script = lambda number, _: Answer(status=429, Retry_After="7") if number == 0 else Answer()
    made, slept = endpoint(stub)
    made.ask(ASKED)
    assert slept == [7.0]
    stub.script = lambda *_: Answer(status=503, Retry_After="3600")
    with pytest.raises(UserError, match="asks to wait 3600 s"):
        made.ask(ASKED)
    assert slept == [7.0]


def test_dates_seconds_and_nonsense_in_retry_after() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25.0 < seconds_to_wait(soon) <= 30.0
    assert [seconds_to_wait(text) for text in (None, "", "2.5", "-3", "soon", "nan", "inf")] == [
        *(0.0, 0.0, 2.5, 0.0, 0.0, 0.0, 0.0)
    ]


@pytest.mark.parametrize(
    "status, said", [(401, "the key"), (403, "the key"), (404, "--model"), (307, "elsewhere")]
)
def test_what_every_question_would_meet_ends_it(status: int, said: str, stub: Stub) -> None:
    stub.script = lambda *_: Answer(status=status, raw=f"no: {KEY}", Location=f"{stub.url}/other")
    made, _ = endpoint(stub)
    with pytest.raises(UserError, match=said) as caught:
        made.ask(ASKED)
    assert KEY not in str(caught.value)
    assert len(stub.seen) == 1, "neither tried again nor redirected"


def test_a_question_that_is_refused_is_not_asked_again(stub: Stub) -> None:
    stub.script = lambda *_: Answer(status=400, raw=f"content filter {KEY}")
    made, _ = endpoint(stub)
    with pytest.raises(NoAnswerError, match=r"refused with 400: content filter \*\*\*"):
        made.ask(ASKED)
    assert len(stub.seen) == 1


def test_the_key_is_in_no_repr_and_no_reply(stub: Stub) -> None:
    stub.script = lambda *_: Answer(text=f"7 8 {KEY}")
    made, _ = endpoint(stub)
    assert made.ask(ASKED).text == "7 8 ***"
    assert KEY not in repr(made.settings)


def test_the_budget_is_kept_before_the_request(stub: Stub) -> None:
    made, _ = endpoint(stub, Budget(max_requests=2))
    made.ask(ASKED)
    made.ask(ASKED)
    with pytest.raises(BudgetSpentError, match="2 requests"):
        made.ask(ASKED)
    assert len(stub.seen) == 2
    made, _ = endpoint(stub, Budget(max_tokens=20 + 256 + 100))
    made.ask(ASKED)
    made.ask(ASKED)
    with pytest.raises(BudgetSpentError, match="200 tokens are spent and the next request may take 276"):
        made.ask(ASKED)
    stub.script = lambda *_: Answer(status=500)
    made, _ = endpoint(stub, Budget(max_requests=3))
    with pytest.raises(BudgetSpentError):  # attempts are requests
        made.ask(ASKED)


def test_tokens_are_guessed_where_nobody_counts(stub: Stub) -> None:
    stub.script = lambda *_: Answer(raw='{"choices": [{"message": {"content": "7 8"}}]}')
    made, _ = endpoint(stub)
    assert made.ask(ASKED).tokens == 21


def test_requests_keep_their_distance(stub: Stub) -> None:
    made, slept = endpoint(stub, per_minute=30)
    for _ in range(3):
        made.ask(ASKED)
    assert slept == [2.0, 4.0]  # the test's clock stands still


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"base_url": "api.example.org/v1"}, "no http"),
        ({"base_url": "https://me:pass@example.org/v1"}, "a password"),
        ({"base_url": "https://example.org/v1?key=pass"}, "a query"),
        ({"base_url": "http://example.org/v1", "key": KEY}, "unencrypted"),
        ({"key": "two words"}, "no key has"),
        ({"key": "line\nbreak"}, "no key has"),
        ({"key": "schlüssel"}, "no key has"),
    ],
)
def test_what_cannot_be_used_is_refused_unsaid(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        check(Settings(**{"base_url": "https://example.org/v1", "model": "m"} | fields))
    assert "pass@" not in str(caught.value)
    assert fields.get("key", "none of it") not in str(caught.value)
    check(Settings("https://example.org/v1", "m", KEY))
    check(Settings("http://localhost:8000/v1", "m", KEY))
