"""All questions of one judging: asked once each, kept, and counted."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amd_lightning.cache import ArtifactCache
from amd_lightning.errors import UserError
from amd_lightning.judging.endpoint import BudgetSpentError, Endpoint, NoAnswerError, Settings
from amd_lightning.judging.questions import Question, grades
from amd_lightning.judging.verdicts import Judged

log = logging.getLogger(__name__)

GIVE_UP_AFTER = 3
"""Questions in a row without an answer, each after all of its attempts: then the endpoint is down."""
SAY_EVERY = 25


@dataclass
class Session:
    """What was judged, as far as it came.

    Attributes:
        judged: one row a question that was asked or found.
        cached: how many replies were there from before.
        stopped: why it ended early; None where every question was asked.
        error: why it failed: what the user must mend before it can go on. A budget that is spent is none.
    """

    judged: list[Judged]
    cached: int = 0
    stopped: str | None = None
    error: UserError | None = None

    @property
    def last_error(self) -> str | None:
        """Why the last question without a reply has none; None where all that were asked have one."""
        return next((row.error for row in reversed(self.judged) if row.error is not None), None)


def hear(asked: Sequence[Question], endpoint: Endpoint, cache: ArtifactCache) -> Session:
    """Ask the questions whose replies are not in the cache, in order, until a limit is met.

    An endpoint that answered nothing at all is an error, however few questions there were.
    """
    session, silent = Session([]), 0
    for place, question in enumerate(asked, start=1):
        try:
            reply, was_there = _reply(question, endpoint, cache)
        except NoAnswerError as error:
            session.judged.append(Judged(question.item, question.order, None, None, str(error)))
            silent += 1
            if silent < GIVE_UP_AFTER:
                continue
            session.error = _none_answered(session, endpoint) or UserError(
                f"{silent} questions in a row got no answer ({error}): run this again later; what was judged "
                "is kept"
            )
        except BudgetSpentError as error:
            if error.why:
                session.judged.append(Judged(question.item, question.order, None, None, error.why))
            session.stopped = f"the budget is spent: {error}"
            break
        except UserError as error:
            session.error = error
        if session.error is not None:
            break
        silent = 0
        session.cached += was_there
        session.judged.append(Judged(question.item, question.order, grades(reply, question.order), reply))
        if place % SAY_EVERY == 0:
            log.info("%d of %d questions", place, len(asked))
    session.error = session.error or _none_answered(session, endpoint)
    if session.error is not None:
        session.stopped = str(session.error)
    return session


def _none_answered(session: Session, endpoint: Endpoint) -> UserError | None:
    """An error where questions were asked and not one got a reply; None otherwise."""
    why = session.last_error
    if why is None or any(row.error is None for row in session.judged):
        return None
    reasons = f"{why}; {session.stopped}" if session.stopped else why
    return UserError(
        f"{endpoint.settings.base_url} answered none of {len(session.judged)} questions ({reasons}): check "
        "--base-url, --model and the key, then run this again"
    )


def _reply(question: Question, endpoint: Endpoint, cache: ArtifactCache) -> tuple[str, bool]:
    """The reply, and whether it was there."""

    def make(folder: Path) -> None:
        (folder / "reply.txt").write_text(endpoint.ask(question.messages).text, encoding="utf-8")

    found = cache.get_or_make("judge_reply", identity(question, endpoint.settings), make)
    return (found.path / "reply.txt").read_text(encoding="utf-8"), found.cached


def identity(question: Question, settings: Settings) -> dict[str, object]:
    """What determines a reply: the content of the question, and who is asked; not the key."""
    content = json.dumps(question.messages, sort_keys=True).encode()
    return {
        "base_url": settings.base_url.rstrip("/"),
        "model": settings.model,
        "temperature": settings.temperature,
        "reply_tokens": settings.reply_tokens,
        "messages": hashlib.sha256(content).hexdigest(),
    }
