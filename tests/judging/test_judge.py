"""`python -m amd_lightning.judge` from end to end against the stub."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from amd_lightning.judge import main
from tests.judging.conftest import KEY, Answer, Stub, write_run


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMD_LIGHTNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def judge(stub: Stub, run: Path, *more: str) -> dict[str, Any]:
    main([str(run), "--base-url", stub.url, "--model", "m", "--first-wait", "0", *more])
    found: dict[str, Any] = json.loads((run / "judge.json").read_text())
    return found


def refused(stub: Stub, run: Path, *more: str) -> str:
    with pytest.raises(SystemExit) as caught:
        judge(stub, run, *more)
    return str(caught.value.code)


def knows_good(_: int, body: dict[str, Any]) -> Answer:
    """9 for an answer with "good" in it, else 4; the first one gets one more."""
    text = body["messages"][1]["content"]
    answers = [part.split("[End")[0] for part in text.split("]\n")[2::2]]
    one, other = (9 if "good" in answer else 4 for answer in answers)
    return Answer(f"{one + 1} {other}\nreasons")


def test_responses_against_the_references(stub: Stub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.script = knows_good
    found = judge(stub, run)
    assert found["ratio"] == pytest.approx(100 * (9.5 + 4.5 + 9.5) / (3 * 4.5))
    assert (found["wins"], found["ties"], found["losses"]) == pytest.approx((2 / 3, 1 / 3, 0))
    assert found["position_bias"] == pytest.approx(1.0)
    assert (found["complete"], found["requests"], found["tokens"], found["cached"]) == (True, 6, 600, 0)
    assert (found["task"], found["against"], found["examples"]) == ("samsum", "references", 3)
    rows = [json.loads(line) for line in (run / "judged.jsonl").read_text().splitlines()]
    assert [row["item"] for row in rows] == ["e0", "e0", "e1", "e1", "e2", "e2"]
    assert rows[0]["grades"] == {"response": 10.0, "rival": 4.0}
    assert rows[1] == {
        "item": "e0",
        "order": ["rival", "response"],
        "grades": {"rival": 5.0, "response": 9.0},
        "reply": "5 9\nreasons",
        "error": None,
    }
    assert "gold 0" in stub.seen[0][0]["messages"][1]["content"]
    assert "ratio 174.1" in capsys.readouterr().out


def test_the_key_is_written_nowhere(
    stub: Stub, run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stub.script = lambda number, _: Answer(status=500, raw=KEY) if number % 2 else Answer(text=f"7 8\n{KEY}")
    judge(stub, run)
    assert all(headers["Authorization"].endswith(KEY) for _, headers in stub.seen)
    files = [path for path in run.parent.rglob("*") if path.is_file()]
    assert {"judge.json", "reply.txt"} <= {path.name for path in files}
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    said = capsys.readouterr()
    assert KEY not in said.out + said.err + caplog.text
    assert KEY not in refused(stub, run, "--key-variable", KEY)


def test_a_spent_budget_is_gone_on_with(stub: Stub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = judge(stub, run, "--max-requests", "4")
    assert (found["complete"], found["examples"], found["requests"]) == (False, 2, 4)
    assert "the budget is spent: 4 requests" in found["stopped"]
    assert "not complete" in capsys.readouterr().out
    found = judge(stub, run)
    assert (found["complete"], found["examples"]) == (True, 3)
    assert (found["requests"], found["cached"], len(stub.seen)) == (2, 4, 6)
    again = judge(stub, run)
    assert (again["requests"], again["cached"], len(stub.seen)) == (0, 6, 6)
    assert again["ratio"] == found["ratio"]


def test_replies_are_kept_by_content(stub: Stub, run: Path, tmp_path: Path) -> None:
    judge(stub, run)
    twin = write_run(tmp_path / "twin", ["good text", "new text", "good text again"])
    found = judge(stub, twin)
    assert (found["cached"], found["requests"]) == (4, 2)
    other = judge(stub, run, "--out", str(run), "--limit", "2")
    assert other["examples"] == 2
    assert refused(stub, run, "--temperature", "1").endswith(
        "is another judging, which differs in temperature: set --out DIR, or remove it"
    )


def test_replies_without_grades_are_counted_and_not_paid_for_twice(stub: Stub, run: Path) -> None:
    stub.script = lambda number, _: Answer("I like both." if number == 1 else "7 8")
    found = judge(stub, run)
    assert (found["parse_failures"], found["examples"], found["complete"]) == (1, 2, True)
    assert judge(stub, run)["parse_failures"] == 1
    assert len(stub.seen) == 6


def test_an_endpoint_that_is_down_keeps_what_was_judged(stub: Stub, run: Path) -> None:
    stub.script = lambda number, _: Answer() if number < 2 else Answer(status=500, raw="down")
    said = refused(stub, run, "--attempts", "2")
    assert "3 questions in a row got no answer (500: down, at 2 attempts)" in said
    found = json.loads((run / "judge.json").read_text())
    assert (found["complete"], found["examples"], found["unanswered"]) == (False, 1, 3)
    stub.script = lambda *_: Answer()
    assert judge(stub, run)["requests"] == 4, "what had no answer is asked again"


def test_one_question_without_an_answer_stops_nothing_and_is_asked_again(
    stub: Stub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.script = lambda number, _: Answer(status=400, raw="filtered") if number == 2 else Answer()
    found = judge(stub, run)
    assert (found["unanswered"], found["examples"], found["complete"]) == (1, 2, False)
    assert (found["stopped"], found["last_error"]) == (None, "refused with 400: filtered")
    said = capsys.readouterr().out
    assert "1 of 6 questions got no reply, the last: refused with 400: filtered; run this again" in said
    found = judge(stub, run)
    assert (found["unanswered"], found["requests"], found["complete"]) == (0, 1, True)
    assert found["last_error"] is None
    assert "got no reply" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, asked, requests",
    [
        (("--limit", "1"), "answered none of 2 questions (no connection", 4),
        ((), "answered none of 3 questions (no connection", 6),
        (("--max-requests", "1"), "answered none of 1 questions (no connection", 1),
    ],
    ids=["all asked", "given up", "budget"],
)
def test_an_endpoint_that_cannot_be_reached_is_an_error(
    more: tuple[str, ...], asked: str, requests: int, stub: Stub, run: Path
) -> None:
    url = stub.url
    stub.url = "http://127.0.0.1:9/v1"  # the port of discard: nobody listens
    said = refused(stub, run, "--attempts", "2", *more)
    assert said.startswith(f"error: http://127.0.0.1:9/v1 {asked}")
    assert "Connection refused" in said
    assert "check --base-url, --model and the key" in said
    assert ("the budget is spent" in said) is ("--max-requests" in more)
    assert "\n" not in said
    found = json.loads((run / "judge.json").read_text())
    assert (found["complete"], found["examples"], found["requests"]) == (False, 0, requests)
    assert "Connection refused" in found["last_error"]
    stub.url = url
    assert judge(stub, run)["complete"], "another address is no other judging where nothing was judged"


def test_a_budget_that_is_spent_amid_failures_says_why_they_failed(
    stub: Stub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.script = lambda number, _: Answer() if number < 2 else Answer(status=503, raw="busy")
    found = judge(stub, run, "--max-requests", "4")
    assert (found["complete"], found["unanswered"], found["last_error"]) == (False, 1, "503: busy")
    said = capsys.readouterr().out
    assert "the budget is spent: 4 requests" in said
    assert "1 of 3 questions got no reply, the last: 503: busy" in said


def test_a_run_against_another(stub: Stub, run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", ["one", "two", "three"])
    judge(stub, run, "--against", str(other), "--rival-who", "teacher", "--responses", "sampled")
    text = stub.seen[0][0]["messages"][1]["content"]
    assert "student sampled 0 0" in text
    assert "teacher sampled 0 0" in text
    strange = write_run(tmp_path / "strange", ["one", "two", "three"], prompt="Another {}")
    assert "has no response to 3 of 3 prompts" in refused(stub, run, "--against", str(strange))


def test_an_evaluated_model_is_judged_as_a_student_is(stub: Stub, run: Path) -> None:
    path = run / "predictions.jsonl"
    path.write_text(path.read_text().replace('"student"', '"model"'))
    (run / "results.json").rename(run / "evaluation.json")
    found = judge(stub, run)
    assert (found["examples"], found["task"]) == (3, "samsum")
    assert "good text" in stub.seen[0][0]["messages"][1]["content"]


def test_a_prompts_context_is_asked_with_it(stub: Stub, run: Path) -> None:
    path = run / "predictions.jsonl"
    rows = [json.loads(line) | {"context": "The lake."} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge(stub, run)
    assert "Dialogue 0\n\nThe lake.\n\n[Answer 1]" in stub.seen[0][0]["messages"][1]["content"]


def test_grades_alone(stub: Stub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.script = lambda number, _: Answer(str(5 + number))
    found = judge(stub, run, "--mode", "score")
    assert (found["mean_response"], found["requests"], found["against"]) == (6.0, 3, None)
    assert "mean grade 6.00" in capsys.readouterr().out
    assert "gold" not in stub.seen[0][0]["messages"][1]["content"]


def test_a_dry_run_sends_nothing(stub: Stub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--base-url", stub.url, "--model", "m", "--dry-run"])
    out = capsys.readouterr().out
    assert "[Answer 1]\ngood text" in out
    assert "6 questions about 3 responses; nothing was sent" in out
    assert (stub.seen, (run / "judge.json").exists()) == ([], False)


@pytest.mark.parametrize(
    "more, said",
    [
        (("--mode", "score", "--against", "references"), "is not for --mode score"),
        (("--rival-who", "teacher"), "needs --against RUN2"),
        (("--who", "nobody"), "choose --who teacher, student"),
        (("--set", "vicuna"), "none of student's best responses to vicuna"),
        (("--attempts", "0"), "0 is below 1"),
        (("--against", "nowhere"), "nowhere has no predictions.jsonl"),
    ],
)
def test_what_is_wrong_is_one_line(more: tuple[str, ...], said: str, stub: Stub, run: Path) -> None:
    found = refused(stub, run, *more)
    assert said in found
    assert found.startswith("error: ")
    assert "\n" not in found
    assert stub.seen == []
