"""The generated dialogue corpus of ``scale=demo``: SAMSum-like chats that need no network and no file.

A dialogue is one of four scenes (`SCENES`): two people agree on something after a first proposal has been
turned down, with small talk around it. The summary must pick the facts that were agreed on: who does what,
where or when. Each answer has several acceptable wordings of uneven probability, so a teacher trained on the
corpus has a next-token distribution with several modes, and there the distances between policies differ.

Templates are data. In a line, fields in braces are filled from the scene's slots (facts) or from `PHRASES`
(small talk, drawn anew for each line).
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Literal, NamedTuple

from amd_lightning.errors import DataError

Split = Literal["train", "valid", "test"]
Checker = Callable[[str, Sequence[str]], bool]
"""Whether a response is right, given the references."""

NAMES = "Adam Alice Amanda Ben Carla Daniel Emma Frank Grace Jack Jerry Kate Leo Maria Paul Tina".split()

SLOTS: dict[str, tuple[str, ...]] = {
    "day": ("today", "tomorrow", *(f"on {day}day" for day in "Mon Tues Thurs Fri Satur Sun".split())),
    "time": ("noon", "two", "three", "four", "five", "six", "seven", "eight"),
    "place": tuple(f"the {place}" for place in "cafe park library gym museum station pool market".split()),
    "food": tuple("cookies soup bread apples pizza salad cheese rice".split()),
    "chore": tuple(f"the {chore}" for chore in "garden kitchen roof laptop car essay boxes fence".split()),
}

PHRASES: dict[str, tuple[str, ...]] = {
    "chat": (
        *("How are you?", "It is so hot.", "I am so tired.", "I just woke up.", "My week was long."),
        *("", "", ""),  # three times in eight there is none
    ),
    "can_not": ("Sorry, I can not.", "Sorry, no.", "I am afraid not."),  # the one who does something refuses
    "no_thanks": ("No, thank you.", "Thanks, but no.", "Better not."),  # the one it is done for refuses
    "or": ("How about", "What about", "But what about"),
    "deal": ("Ok, see you!", "Sure, no problem!", "Deal, bye!"),
    "thanks": ("Thanks, great!", "Thank you so much!", "You are the best!"),
}


class Scene(NamedTuple):
    """A kind of dialogue between ``a``, who does something, and ``b``, whom it is done for.

    Attributes:
        slots: the facts agreed on; each may come after another proposal, ``not_SLOT``, that is refused.
        scripts: alternatives, each a sequence of (who speaks, line).
        references: (wording, weight of its being chosen as the gold summary), the most likely first.
    """

    slots: tuple[str, ...]
    scripts: tuple[tuple[tuple[str, str], ...], ...]
    references: tuple[tuple[str, int], ...]


MEET = Scene(
    slots=("day", "place"),
    scripts=(
        (
            ("a", "Shall we meet at {place} {not_day}? {chat}"),
            ("b", "{no_thanks} {or} {day}?"),
            ("a", "{deal} {chat}"),
        ),
        (
            ("a", "Shall we meet at {not_place} {day}? {chat}"),
            ("b", "{no_thanks} {or} {place}?"),
            ("a", "{deal} {chat}"),
        ),
    ),
    references=(
        ("{a} and {b} will meet at {place} {day}.", 8),
        ("{a} will meet {b} at {place} {day}.", 6),
        ("{b} will meet {a} at {place} {day}.", 4),
        ("{a} and {b} are meeting {day} at {place}.", 3),
        ("{b} and {a} will meet at {place} {day}.", 2),
        ("{b} and {a} are meeting {day} at {place}.", 1),
    ),
)

BRING = Scene(
    slots=("food", "day"),
    scripts=(
        (
            ("a", "Shall I bring you {food} {not_day}? {chat}"),
            ("b", "{no_thanks} {or} {day}?"),
            ("a", "{deal} {chat}"),
        ),
        (
            ("b", "Can you bring me {not_food} {day}? {chat}"),
            ("a", "{can_not} {or} {food}?"),
            ("b", "{thanks} {chat}"),
        ),
    ),
    references=(
        ("{a} will bring {b} {food} {day}.", 5),
        ("{b} gets {food} from {a} {day}.", 3),
        ("{a} will bring {food} to {b} {day}.", 2),
        ("{b} gets {a}'s {food} {day}.", 1),
    ),
)

RIDE = Scene(
    slots=("time", "place"),
    scripts=(
        (
            ("b", "Can you pick me up at {place} at {not_time}? {chat}"),
            ("a", "{can_not} {or} {time}?"),
            ("b", "{thanks} {chat}"),
        ),
        (
            ("a", "Shall I pick you up at {not_place} at {time}? {chat}"),
            ("b", "{no_thanks} {or} {place}?"),
            ("a", "{deal} {chat}"),
        ),
    ),
    references=(
        ("{a} will pick {b} up at {place} at {time}.", 5),
        ("{b} gets a ride from {a} at {place} at {time}.", 3),
        ("{a} will come for {b} at {time} at {place}.", 2),
        ("{b} waits for {a} at {place} at {time}.", 1),
    ),
)

HELP = Scene(
    slots=("chore", "day"),
    scripts=(
        (
            ("b", "Can you help me with {chore} {not_day}? {chat}"),
            ("a", "{can_not} {or} {day}?"),
            ("b", "{thanks} {chat}"),
        ),
        (
            ("a", "Shall I help you with {not_chore} {day}? {chat}"),
            ("b", "{no_thanks} {or} {chore}?"),
            ("a", "{deal} {chat}"),
        ),
    ),
    references=(
        ("{a} will help {b} with {chore} {day}.", 5),
        ("{b} gets help with {chore} from {a} {day}.", 3),
        ("{a} will come {day} to help {b} with {chore}.", 2),
        ("{b} needs help with {chore} and {a} will come {day}.", 1),
    ),
)

SCENES: dict[str, Scene] = {"meet": MEET, "bring": BRING, "ride": RIDE, "help": HELP}

PATIENCE = 100_000
"""Draws without a new row before a generator is called exhausted."""

# Which tenths of the space of facts belong to a split: a summary of valid or test is never one of train's.
SPLIT_TENTHS: dict[str, tuple[int, ...]] = {"train": (0, 1, 2, 3, 4, 5, 6, 7), "valid": (8,), "test": (9,)}


def samsum_rows(split: Split, n: int, seed: int) -> list[dict[str, Any]]:
    """Generate ``n`` different dialogues of a split, each with its gold summary and all acceptable wordings.

    Args:
        split: one of "train", "valid", "test". Splits share no facts, whatever their sizes and seeds.
        n: number of rows. The rows of a smaller ``n`` are the first rows of a larger one.
        seed: another seed gives another sample of the same split.

    Returns:
        Rows with ``id``, ``dialogue``, ``summary`` and ``references`` (list; ``summary`` is one of them).

    Raises:
        ValueError: the split has no such name.
    """

    def draw(rng: Random) -> dict[str, Any] | None:
        scene, facts = _draw_facts(rng)
        if not of_split(split, f"{scene}: {_agreed(facts)}"):
            return None
        return {"dialogue": _write_dialogue(rng, SCENES[scene], facts), "scene": scene, "facts": facts}

    def finish(rng: Random, row: dict[str, Any]) -> dict[str, Any]:
        scene, facts = row["scene"], row["facts"]
        references = [wording.format(**facts) for wording, _ in SCENES[scene].references]
        weights = [weight for _, weight in SCENES[scene].references]
        summary = rng.choices(references, weights)[0]
        return {"dialogue": row["dialogue"], "summary": summary, "references": references}

    return distinct_rows(split, n, seed, "dialogue", draw, finish)


def distinct_rows(
    split: Split,
    n: int,
    seed: int,
    column: str,
    draw: Callable[[Random], dict[str, Any] | None],
    finish: Callable[[Random, dict[str, Any]], dict[str, Any]] = lambda _, row: row,
) -> list[dict[str, Any]]:
    """``n`` rows that differ in ``column``, each with an id; the first of them whatever ``n``.

    Args:
        split, n, seed: see `samsum_rows`.
        column: a row that repeats it is dropped.
        draw: a row, or None where what was drawn belongs to another split.
        finish: makes of a row that stays what is given back.

    Raises:
        ValueError: the split has no such name.
        DataError: there are not so many different rows.
    """
    if split not in SPLIT_TENTHS:
        raise ValueError(f"no split {split!r}; use one of {', '.join(SPLIT_TENTHS)}")
    rng = Random(f"{split}-{seed}")
    rows: dict[str, dict[str, Any]] = {}
    misses = 0
    while len(rows) < n:
        row = draw(rng)
        if row is not None and row[column] not in rows:
            rows[row[column]] = {"id": f"{split}-{seed}-{len(rows)}", **finish(rng, row)}
            misses = 0
        misses += 1
        if misses > PATIENCE:
            raise DataError(f"there are no {n:,} different rows to generate: lower data.{split}_rows")
    return list(rows.values())


def of_split(split: Split, facts: str) -> bool:
    """Whether what a row turns on belongs to the split, the same in every process (unlike `hash`)."""
    return Random(facts).randrange(10) in SPLIT_TENTHS[split]


def is_correct(response: str, references: Sequence[str]) -> bool:
    """Whether the response is an acceptable wording, up to case, spaces and a final stop."""
    return _normalise(response) in {_normalise(reference) for reference in references}


def _normalise(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def _draw_facts(rng: Random) -> tuple[str, dict[str, str]]:
    """A scene's name and a value for each role and slot; a refused proposal differs from the agreed one."""
    scene = rng.choice(list(SCENES))
    facts = dict(zip("ab", rng.sample(NAMES, 2), strict=True))
    for slot in SCENES[scene].slots:
        facts[slot], facts[f"not_{slot}"] = rng.sample(SLOTS[slot], 2)
    return scene, facts


def _agreed(facts: dict[str, str]) -> list[str]:
    return sorted(value for slot, value in facts.items() if not slot.startswith("not_"))


def _write_dialogue(rng: Random, scene: Scene, facts: dict[str, str]) -> str:
    script = rng.choice(scene.scripts)
    return "\n".join(f"{facts[role]}: {_write_line(rng, line, facts)}" for role, line in script)


def _write_line(rng: Random, line: str, facts: dict[str, str]) -> str:
    phrases = {name: rng.choice(options) for name, options in PHRASES.items()}
    return " ".join(line.format(**facts, **phrases).split())  # an empty phrase leaves no double space
