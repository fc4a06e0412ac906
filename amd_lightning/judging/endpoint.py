"""An endpoint that speaks OpenAI's chat completions: asked with patience, within a budget, without a trace of
its key."""

import email.utils
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from amd_lightning.errors import UserError
from amd_lightning.judging.questions import Messages

WORTH_ANOTHER_TRY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses that pass; every other error of the client's making says the same again."""
STOPPING = (401, 403, 404)
"""Statuses that the next question would meet too."""
LOCAL = ("localhost", "127.0.0.1", "::1")
CHARACTERS_A_TOKEN = 3
"""For the budget alone, where the endpoint does not count: more tokens than English text has."""


class BudgetSpentError(Exception):
    """The next request could go beyond the budget.

    Attributes:
        why: what the last attempt at the same question came to; "" where there was none.
    """

    why: str = ""


class NoAnswerError(Exception):
    """One question that got no answer; the message says why."""


class Reply(NamedTuple):
    """What the judge wrote, and what it took in tokens."""

    text: str
    tokens: int


@dataclass
class Budget:
    """What may be spent, and what was: every attempt is a request."""

    max_requests: int | None = None
    max_tokens: int | None = None
    requests: int = 0
    tokens: int = 0

    def reserve(self, tokens: int) -> None:
        """Count a request that may take so many tokens.

        Raises:
            BudgetSpentError: it could go beyond the budget.
        """
        if self.max_requests is not None and self.requests + 1 > self.max_requests:
            raise BudgetSpentError(f"{self.requests} requests are made, of {self.max_requests} allowed")
        if self.max_tokens is not None and self.tokens + tokens > self.max_tokens:
            raise BudgetSpentError(
                f"{self.tokens} tokens are spent and the next request may take {tokens}, of "
                f"{self.max_tokens} allowed"
            )
        self.requests += 1


@dataclass(frozen=True)
class Settings:
    """How an endpoint is asked.

    Attributes:
        base_url: such as http://localhost:8000/v1.
        model: as the endpoint calls it.
        key: for the Authorization header; None sends none. Never in a repr, a message or a file.
        temperature: None leaves it to the endpoint.
        reply_tokens: longest reply; 0 leaves it to the endpoint.
        timeout: seconds without a byte, after which an attempt has failed.
        attempts: at most, for one question.
        first_wait, longest_wait: seconds before the second attempt, doubled for each further one up to the
            longest; an endpoint that asks for more time than that ends the judging.
        per_minute: requests, at most; None for no limit.
    """

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    temperature: float | None = 0.0
    reply_tokens: int = 256
    timeout: float = 60.0
    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0
    per_minute: float | None = None


def check(settings: Settings) -> None:
    """Refuse an address or a key that cannot be used, before anything is sent.

    Raises:
        UserError: says which, and never the key.
    """
    address = urlsplit(settings.base_url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UserError("--base-url is no http(s) address: write --base-url http://localhost:8000/v1")
    if address.username or address.password or address.query or address.fragment:
        raise UserError(
            "--base-url has a user, a password or a query in it, and is written into judge.json: leave them "
            "out; the key comes from the environment variable"
        )
    if settings.key is None:
        return
    if not settings.key.isascii() or not settings.key.isprintable() or " " in settings.key:
        raise UserError("the key in the environment variable has characters that no key has: set it again")
    if address.scheme == "http" and address.hostname not in LOCAL:
        raise UserError(
            f"the key would travel unencrypted to {address.hostname}: use https, or unset the environment "
            "variable"
        )


class Endpoint:
    """Asks one question after the other.

    sleep, clock: for tests.
    """

    def __init__(
        self,
        settings: Settings,
        budget: Budget,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check(settings)
        self.settings, self.budget = settings, budget
        self._sleep, self._clock = sleep, clock
        self._next = -math.inf
        headers = {"Authorization": f"Bearer {settings.key}"} if settings.key else {}
        # Redirects are not followed: a key is for the host that it was meant for.
        self._client = httpx.Client(timeout=settings.timeout, headers=headers, follow_redirects=False)

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, messages: Messages) -> Reply:
        """The judge's reply.

        Raises:
            BudgetSpentError: before the request that could go beyond it, with why the last attempt failed.
            NoAnswerError: refused, or not answered at the last attempt.
            UserError: what every further question would meet too: no such model, a wrong key, a long wait.
        """
        why, wait = "", 0.0
        for attempt in range(self.settings.attempts):
            if attempt:
                backoff = self.settings.first_wait * 2.0 ** (attempt - 1)
                self._sleep(max(wait, min(backoff, self.settings.longest_wait)))
            self._keep_the_rate()
            try:
                found = self._attempt(messages)
            except BudgetSpentError as error:
                error.why = why
                raise
            if isinstance(found, Reply):
                return found
            why, wait = found
        raise NoAnswerError(f"{why}, at {self.settings.attempts} attempts")

    def _attempt(self, messages: Messages) -> Reply | tuple[str, float]:
        """A reply; or why there is none, and how many seconds the endpoint asks to wait."""
        settings = self.settings
        body: dict[str, Any] = {"model": settings.model, "messages": messages}
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        if settings.reply_tokens:
            body["max_tokens"] = settings.reply_tokens
        asked = sum(len(message["content"]) for message in messages)
        expected = math.ceil(asked / CHARACTERS_A_TOKEN) + settings.reply_tokens
        self.budget.reserve(expected)
        try:
            response = self._client.post(f"{settings.base_url.rstrip('/')}/chat/completions", json=body)
        except httpx.TimeoutException:
            self.budget.tokens += expected  # it may have been answered, and be paid for
            return f"no answer within {settings.timeout:g} s", 0.0
        except httpx.HTTPError as error:
            return f"no connection ({type(error).__name__}: {self._clean(str(error))})", 0.0
        if response.status_code != 200:
            return self._refused(response)
        return self._read(response, asked)

    def _refused(self, response: httpx.Response) -> tuple[str, float]:
        """Why, and how long to wait, where another attempt may help."""
        status = response.status_code
        said = f"{status}: {self._clean(response.text)}" if response.text.strip() else str(status)
        if status in STOPPING:
            what = "the key" if status != 404 else "--base-url and --model"
            raise UserError(f"{self.settings.base_url} refuses ({said}): check {what}")
        if 300 <= status < 400:
            raise UserError(
                f"{self.settings.base_url} points elsewhere ({status}): give the final --base-url"
            )
        if status not in WORTH_ANOTHER_TRY:
            raise NoAnswerError(f"refused with {said}")
        wait = seconds_to_wait(response.headers.get("Retry-After"))
        if wait > self.settings.longest_wait:
            raise UserError(
                f"{self.settings.base_url} asks to wait {wait:.0f} s ({status}): run this again then; what "
                "was judged is kept"
            )
        return said, wait

    def _read(self, response: httpx.Response, asked: int) -> Reply | tuple[str, float]:
        """The text of a completion; an answer in another shape is that of a server in trouble."""
        try:
            content = response.json()
            text = content["choices"][0]["message"]["content"]
            usage = content.get("usage") or {}
            counted = usage.get("total_tokens")
        except (ValueError, LookupError, TypeError, AttributeError):
            return f"no chat completion: {self._clean(response.text)}", 0.0
        if not isinstance(text, str):
            return "a completion without text", 0.0
        if not isinstance(counted, int) or counted < 0:
            counted = math.ceil((asked + len(text)) / CHARACTERS_A_TOKEN)
        self.budget.tokens += counted
        return Reply(self._without_key(text), counted)

    def _keep_the_rate(self) -> None:
        if self.settings.per_minute is None:
            return
        now = self._clock()
        if now < self._next:
            self._sleep(self._next - now)
        self._next = max(now, self._next) + 60.0 / self.settings.per_minute

    def _without_key(self, text: str) -> str:
        return text.replace(self.settings.key, "***") if self.settings.key else text

    def _clean(self, text: str) -> str:
        """One short line of what an endpoint says; some repeat the key."""
        return " ".join(self._without_key(text).split())[:200]


def seconds_to_wait(header: str | None) -> float:
    """What a Retry-After header asks for, in seconds or as a date (RFC 9110, 10.2.3); 0 where it is none."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            then = email.utils.parsedate_to_datetime(header)
        except ValueError:
            return 0.0
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        seconds = (then - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
