"""A language model's opinion of a run's responses: `python -m amd_lightning.judge RUN ...`."""

import argparse
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amd_lightning.commands import Parser, say
from amd_lightning.errors import UserError

DESCRIPTION = """\
Have the responses of a finished run (or of python -m amd_lightning.evaluate) graded by a language model
behind any endpoint that speaks OpenAI's chat completions: side by side with the reference answers or with
another run's responses, in both orders, or each alone. Prompts, responses and references are sent there.
Writes judge.json and judged.jsonl. Replies are kept in the cache: a judging that was cut off goes on, and
questions that got no reply are asked again by the same command ("complete" in judge.json: all have one).
"""
EPILOGUE = """\
examples:
  python -m amd_lightning.judge runs/samsum/RUN --base-url https://api.openai.com/v1 --model gpt-4o
  python -m amd_lightning.judge RUN --against OTHER_RUN --base-url http://localhost:8000/v1 --model qwen
  python -m amd_lightning.judge RUN --mode score --limit 50 --dry-run --base-url ... --model ...

A request that fails is made again after --first-wait seconds, doubled each time up to --longest-wait; the
Retry-After of an endpoint is honoured. The key comes from the environment variable that --key-variable names,
and is never logged or saved.
"""
FILES = ("judge.json", "judged.jsonl")


def _above(kind: type, lowest: float) -> Any:
    def read(text: str) -> Any:
        number = kind(text)
        if not lowest <= number < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is below {lowest:g}")
        return number

    read.__name__ = {int: "whole number", float: "number"}[kind]
    return read


def _temperature(text: str) -> float | None:
    return None if text == "default" else float(_above(float, 0.0)(text))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = Parser(
        prog="python -m amd_lightning.judge",
        description=DESCRIPTION,
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    option = found.add_argument
    option("run", type=Path, metavar="RUN", help="the folder that holds predictions.jsonl")
    option("--base-url", required=True, metavar="URL", help="such as http://localhost:8000/v1")
    option("--model", required=True, help="the judge, as the endpoint calls it")
    option("--mode", choices=("pairwise", "score"), default="pairwise", help="(%(default)s)")
    option("--against", metavar="references|RUN2", help="the rival in a pair (references)")
    option("--who", help="whose responses: student, student_start, teacher or model (student, else model)")
    option("--rival-who", metavar="WHO", help="the same of RUN2")
    option("--responses", choices=("best", "sampled"), default="best", help="sampled: the first draw (best)")
    option("--set", metavar="NAME", help="a further test set of the run in place of its test split")
    option("--limit", type=_above(int, 1), metavar="N", help="the first N examples alone")
    option("--max-requests", type=_above(int, 0), default=2000, help="budget, retries included (%(default)s)")
    option("--max-tokens", type=_above(int, 0), help="budget, prompts and replies together (no limit)")
    option("--per-minute", type=_above(float, 1e-3), metavar="N", help="requests at most (no limit)")
    option("--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="(%(default)s)")
    option("--temperature", type=_temperature, default=0.0, help='a number or "default" (0)')
    option("--reply-tokens", type=_above(int, 0), default=256, help="longest; 0: no limit (%(default)s)")
    option("--timeout", type=_above(float, 1e-3), default=60.0, metavar="S", help="seconds (%(default)s)")
    option("--attempts", type=_above(int, 1), default=6, help="for one question (%(default)s)")
    option("--first-wait", type=_above(float, 0.0), default=1.0, metavar="S", help="(%(default)s)")
    option("--longest-wait", type=_above(float, 0.0), default=120.0, metavar="S", help="(%(default)s)")
    option("--cache-dir", type=Path, metavar="DIR", help="(AMD_LIGHTNING_CACHE, else ~/.cache/amd_lightning)")
    option("--out", type=Path, metavar="DIR", help="where to write (RUN)")
    option("--dry-run", action="store_true", help="print the first question, send none")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge; an error that the user can mend is one line, and status 1."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("amd_lightning").setLevel(logging.INFO)
    say(
        lambda: judge(parser().parse_args(given), given),
        "interrupted; the replies so far are kept, run this again to go on",
    )


def judge(options: argparse.Namespace, given: Sequence[str]) -> list[str]:
    """Ask, write judge.json and judged.jsonl, and return what to say.

    Raises:
        UserError: nothing to judge, an endpoint that cannot be used, answered nothing or stopped answering
            (what was judged until then is written and kept), or a folder with another judging in it.
    """
    from amd_lightning.cache import ArtifactCache
    from amd_lightning.judging.court import hear
    from amd_lightning.judging.endpoint import Budget, Endpoint, check
    from amd_lightning.judging.material import REFERENCES, Chosen, items, task_of
    from amd_lightning.judging.questions import questions
    from amd_lightning.judging.verdicts import summary

    settings = _settings(options)
    check(settings)
    _refuse_ignored(options)
    against = None if options.mode == "score" else options.against or REFERENCES
    chosen = Chosen(options.who, options.responses == "sampled", options.set)
    found = items(options.run, chosen, against, options.rival_who, options.limit)
    task = task_of(options.run)
    asked = [question for item in found for question in questions(item, task)]
    if options.dry_run:
        first = "\n\n".join(f"{m['role']}: {m['content']}" for m in asked[0].messages)
        return [first, "", f"{len(asked)} questions about {len(found)} responses; nothing was sent"]
    out = options.out or options.run
    identity = _identity(options, against, task)
    _refuse_another(out, identity)
    budget = Budget(options.max_requests, options.max_tokens)
    cache = ArtifactCache(_cache_dir(options.cache_dir))
    with Endpoint(settings, budget) as endpoint:
        session = hear(asked, endpoint, cache)
    figures = summary(session.judged)
    content = {
        **identity,
        "complete": session.stopped is None and not figures["unanswered"],
        "stopped": session.stopped,
        "last_error": session.last_error,
        **figures,
        "asked_for": len(asked),
        "cached": session.cached,
        "requests": budget.requests,
        "tokens": budget.tokens,
        "command": shlex.join(["python", "-m", "amd_lightning.judge", *given]),
    }
    _write(out, content, [row._asdict() for row in session.judged])
    if session.error is not None:
        raise session.error
    return [*_in_words(content), f"-> {out / FILES[0]}, {out / FILES[1]}"]


def _settings(options: argparse.Namespace) -> Any:
    from amd_lightning.judging.endpoint import Settings

    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", options.key_variable):  # a key, perhaps: not repeated here
        raise UserError("--key-variable takes the name of an environment variable, not the key itself")
    return Settings(
        base_url=options.base_url,
        model=options.model,
        key=os.environ.get(options.key_variable, "").strip() or None,
        temperature=options.temperature,
        reply_tokens=options.reply_tokens,
        timeout=options.timeout,
        attempts=options.attempts,
        first_wait=options.first_wait,
        longest_wait=options.longest_wait,
        per_minute=options.per_minute,
    )


def _refuse_ignored(options: argparse.Namespace) -> None:
    if options.mode == "score" and options.against:
        raise UserError(f"--against {options.against} is not for --mode score; leave one of them out")
    if options.rival_who and options.against in (None, "references"):
        raise UserError(f"--rival-who {options.rival_who} needs --against RUN2; leave it out")


def _identity(options: argparse.Namespace, against: str | None, task: str) -> dict[str, Any]:
    """What tells one judging from another."""
    from amd_lightning.judging.questions import WORDING

    return {
        "mode": options.mode,
        "against": against,
        "who": options.who,
        "rival_who": options.rival_who,
        "responses": options.responses,
        "set": options.set,
        "task": task,
        "model": options.model,
        "base_url": options.base_url.rstrip("/"),
        "temperature": options.temperature,
        "reply_tokens": options.reply_tokens,
        "wording": WORDING,
    }


def _refuse_another(out: Path, identity: Mapping[str, Any]) -> None:
    """A judging that differs is not overwritten; more examples of the same one are, and one without any reply
    (of a --base-url, say, that was mended since)."""
    path = out / FILES[0]
    if not path.is_file():
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        if "questions" in there and there["questions"] == there.get("unanswered"):
            return
        differing = [key for key in identity if there.get(key) != identity[key]]
    except (ValueError, AttributeError):
        differing = ["everything"]
    if differing:
        raise UserError(
            f"{path} is another judging, which differs in {', '.join(differing)}: set --out DIR, or remove it"
        )


def _cache_dir(given: Path | None) -> Path:
    return (given or Path(os.environ.get("AMD_LIGHTNING_CACHE", "~/.cache/amd_lightning"))).expanduser()


def _write(out: Path, content: Mapping[str, Any], judged: Sequence[Mapping[str, Any]]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in judged)
        for name, text in ((FILES[1], lines), (FILES[0], json.dumps(content, indent=2) + "\n")):
            temporary = out / f"{name}.tmp"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(out / name)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror or error}): set --out DIR") from error


def _in_words(content: Mapping[str, Any]) -> list[str]:
    """The figures in a few lines."""
    lines = []
    if content["stopped"]:
        lines.append(f"not complete, {content['stopped']}; run this again with more to go on")
    if content["unanswered"]:
        lines.append(
            f"{content['unanswered']} of {content['questions']} questions got no reply, the last: "
            f"{content['last_error']}; run this again to ask them again"
        )
    if "ratio" in content:
        low, high = content["ratio_low"], content["ratio_high"]
        interval = "" if low is None else f" [{low:.1f}, {high:.1f}]"
        lines.append(
            f"ratio {content['ratio']:.1f}{interval} against {content['against']}: grades "
            f"{content['mean_response']:.2f} and {content['mean_rival']:.2f}; wins {content['wins']:.0%}, "
            f"ties {content['ties']:.0%}, losses {content['losses']:.0%}; orders agree on "
            f"{content['agreement']:.0%}, the first place is worth {content['position_bias']:+.2f}"
        )
    elif "mean_response" in content:
        lines.append(f"mean grade {content['mean_response']:.2f}")
    lines.append(
        f"{content['examples']} examples; {content['parse_failures']} replies without grades, "
        f"{content['unanswered']} questions without reply; {content['requests']} requests, "
        f"{content['tokens']} tokens, {content['cached']} replies from the cache"
    )
    return lines


if __name__ == "__main__":
    main()
