"""The generated instructions of ``scale=demo``: Dolly-like tasks, with and without a context, offline.

Kinds of instructions (`KINDS`): a question about a person in a short text, who it is that something holds
for, picking a kind of things out of a sentence, turning a list round, naming a place in a list, the larger
number, and telling what kind of thing something is. Each has several wordings of the instruction, and
several acceptable responses of uneven probability.
"""

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from amd_lightning.data.embedded import NAMES, Split, distinct_rows, of_split

JOBS = "baker doctor driver farmer nurse pilot singer teacher".split()
CITIES = "Athens Berlin Cairo Dublin Lima London Paris Rome".split()
PETS = "cat dog horse mouse parrot rabbit snake goat".split()
FRUIT = "apple banana cherry grape lemon melon peach plum".split()
TOOLS = "hammer saw drill rope ladder brush nail spade".split()
THINGS = {"animal": PETS, "fruit": FRUIT, "tool": TOOLS}
PLACES = ("first", "second", "third", "last")
NUMBERS = [str(number) for number in range(1, 31)]


class Task(NamedTuple):
    """One drawn instruction.

    Attributes:
        instruction, context: as the row has them; the context may be "".
        facts: what it turns on; it decides which split the row belongs to.
        references: (response, weight), the most likely first.
    """

    instruction: str
    context: str
    facts: str
    references: Sequence[tuple[str, int]]


def dolly_rows(split: Split, n: int, seed: int) -> list[dict[str, Any]]:
    """Generate ``n`` different instructions of a split.

    Args:
        split: one of "train", "valid", "test". Splits share no facts.
        n, seed: see `samsum_rows`.

    Returns:
        Rows with ``id``, ``instruction``, ``context``, ``response``, ``category`` and ``references`` (list;
        ``response`` is one of them).
    """

    def draw(rng: Random) -> dict[str, Any] | None:
        category = rng.choice(list(KINDS))
        task = KINDS[category](rng)
        if not of_split(split, f"{category}: {task.facts}"):
            return None
        references, weights = zip(*task.references, strict=True)
        return {
            "instruction": task.instruction,
            "context": task.context,
            "response": rng.choices(references, weights)[0],
            "category": category,
            "references": list(references),
            "both": f"{task.instruction}\n{task.context}",
        }

    def finish(_: Random, row: dict[str, Any]) -> dict[str, Any]:
        return {column: value for column, value in row.items() if column != "both"}

    return distinct_rows(split, n, seed, "both", draw, finish)


def _people(rng: Random) -> tuple[list[dict[str, str]], str]:
    """Two people, no two alike in anything, and a text that tells of them."""
    slots = {"name": NAMES, "job": JOBS, "city": CITIES, "pet": PETS}
    pairs = {slot: rng.sample(options, 2) for slot, options in slots.items()}
    people = [{slot: pair[place] for slot, pair in pairs.items()} for place in (0, 1)]
    told = rng.choice(
        (
            "{name} is a {job} in {city} and has a {pet}.",
            "{name} has a {pet}, works as a {job} and lives in {city}.",
            "The {job} from {city} is called {name} and owns a {pet}.",
        )
    )
    return people, " ".join(told.format(**person) for person in people)


def _about_a_person(rng: Random) -> Task:
    people, context = _people(rng)
    person = rng.choice(people)
    slot = rng.choice(("job", "city", "pet"))
    questions = {
        "job": ("What is the job of {name}?", "What does {name} work as?"),
        "city": ("Where does {name} live?", "In which city does {name} live?"),
        "pet": ("Which animal does {name} have?", "What pet does {name} own?"),
    }
    answers = {
        "job": (("{name} is a {job}.", 5), ("{name} works as a {job}.", 3), ("A {job}.", 2)),
        "city": (("{name} lives in {city}.", 5), ("In {city}.", 3), ("The city is {city}.", 2)),
        "pet": (("{name} has a {pet}.", 5), ("{name} owns a {pet}.", 3), ("A {pet}.", 2)),
    }
    return Task(
        rng.choice(questions[slot]).format(**person),
        context,
        f"{person['name']} {person[slot]}",
        [(answer.format(**person), weight) for answer, weight in answers[slot]],
    )


def _who(rng: Random) -> Task:
    people, context = _people(rng)
    person = rng.choice(people)
    slot, question, answer = rng.choice(
        (
            ("job", "Who is the {job}?", "{name} is the {job}."),
            ("city", "Who lives in {city}?", "{name} lives in {city}."),
            ("pet", "Who has a {pet}?", "{name} has a {pet}."),
        )
    )
    return Task(
        question.format(**person),
        context,
        f"{person['name']} {person[slot]}",
        [(answer.format(**person), 5), ("It is {name}.".format(**person), 3), (f"{person['name']}.", 2)],
    )


def _extraction(rng: Random) -> Task:
    kind, other = rng.sample(list(THINGS), 2)
    wanted, rest = rng.sample(THINGS[kind], 2), rng.sample(THINGS[other], 2)
    shuffled = rng.sample([*wanted, *rest], 4)
    name = rng.choice(NAMES)
    context = f"{name} saw a {shuffled[0]}, a {shuffled[1]}, a {shuffled[2]} and a {shuffled[3]}."
    first, second = (word for word in shuffled if word in wanted)
    word = {"animal": "animals", "fruit": "fruits", "tool": "tools"}[kind]
    return Task(
        rng.choice((f"List the {word} in the text.", f"Which {word} does the text name?")),
        context,
        f"{sorted(wanted)}",
        [
            (f"{first}, {second}", 5),
            (f"The {word} are {first} and {second}.", 3),
            (f"{first} and {second}", 2),
        ],
    )


def _reversal(rng: Random) -> Task:
    words = rng.sample(rng.choice((PETS, FRUIT, TOOLS)), 3)
    turned = words[::-1]
    return Task(
        rng.choice(("Write the list in reverse order.", "Turn the list round.")),
        ", ".join(words),
        f"{words}",
        [(", ".join(turned), 6), ("{}, {} and {}".format(*turned), 3), ("Reversed: " + ", ".join(turned), 1)],
    )


def _place(rng: Random) -> Task:
    words = rng.sample(rng.choice((PETS, FRUIT, TOOLS, CITIES)), 4)
    place = rng.randrange(4)
    word = words[place]
    return Task(
        rng.choice((f"Name the {PLACES[place]} item.", f"What comes {PLACES[place]} in the list?")),
        ", ".join(words),
        f"{place} {words}",
        [(f"The {PLACES[place]} item is {word}.", 5), (f"{word}", 4), (f"It is {word}.", 2)],
    )


def _number(rng: Random) -> Task:
    one, other = rng.sample(range(1, 31), 2)
    larger = rng.random() < 0.5
    word = rng.choice(("larger", "greater")) if larger else rng.choice(("smaller", "lesser"))
    answer = max(one, other) if larger else min(one, other)
    return Task(
        rng.choice(
            (f"Which number is {word}: {one} or {other}?", f"Name the {word} number of {one}, {other}.")
        ),
        "",
        f"{one} {other}",
        [(f"{answer}", 5), (f"{answer} is {word}.", 4), (f"It is {answer}.", 2)],
    )


def _classification(rng: Random) -> Task:
    kind, other = rng.sample(list(THINGS), 2)
    right, wrong = rng.choice(THINGS[kind]), rng.choice(THINGS[other])
    pair = rng.sample([right, wrong], 2)
    return Task(
        rng.choice(("Which one is {a} {kind}: {} or {}?", "Tell me which is {a} {kind}, {} or {}.")).format(
            *pair, a="an" if kind == "animal" else "a", kind=kind
        ),
        "",
        f"{kind} {right} {wrong}",
        [(f"{right}", 5), (f"The {right}.", 4), (f"The {kind} is {right}.", 2)],
    )


KINDS = {
    "closed_qa": _about_a_person,
    "open_qa": _number,
    "information_extraction": _who,
    "brainstorming": _place,
    "summarization": _extraction,
    "creative_writing": _reversal,
    "classification": _classification,
}
"""By the category of Dolly's that each comes nearest to."""
