"""The generated yes/no questions of ``scale=demo``: StrategyQA-like, about a small made-up world, offline.

The world (`WORLD`) has animals with weights, people with strengths and years of birth, and buildings with
heights and years. A question compares two of them and states neither fact; the rationale does, and the answer
follows. So a model must learn the facts from the training split, recall the two that matter, and compare.
"""

from random import Random
from typing import Any, NamedTuple

from amd_lightning.data.embedded import Split, distinct_rows, of_split

ANIMALS = (
    "ape bat bear bee boar bull camel cat cow crab crow deer dog duck eagle eel elk fox frog goat goose hare "
    "hawk hen horse lion lynx mole moose mouse"
).split()
PEOPLE = (
    "Ada Bert Cora Dora Edgar Flora Gus Helga Igor Jane Karl Lena Max Nora Otto Petra Quinn Rita Sven Thea"
).split()
BUILDINGS = (
    "abbey barn bridge castle chapel church dam fort house inn mill palace shed tower villa wall".split()
)
LARGEST = 24


def _world() -> dict[str, dict[str, int]]:
    """Property -> who or what -> value, 1 to LARGEST; the same everywhere."""
    rng = Random("world")
    kinds = {
        "weight": ANIMALS,
        "strength": PEOPLE,
        "born": PEOPLE,
        "height": BUILDINGS,
        "age": BUILDINGS,
    }
    return {name: {thing: rng.randint(1, LARGEST) for thing in things} for name, things in kinds.items()}


WORLD = _world()


class Question(NamedTuple):
    """A comparison: yes where the first one's value is the larger.

    Attributes:
        properties: of the first and the second.
        wordings: of the question.
    """

    properties: tuple[str, str]
    wordings: tuple[str, ...]


FACTS: dict[str, tuple[tuple[str, int], ...]] = {
    "weight": (("The {} weighs {} stone.", 6), ("{1} stone is what the {0} weighs.", 2)),
    "strength": (("{} can lift {} stone.", 6), ("{1} stone is what {0} can lift.", 2)),
    "born": (("{} was born in year {}.", 6), ("In year {1} {0} was born.", 2)),
    "height": (("The {} is {} feet high.", 6), ("{1} feet is what the {0} measures.", 2)),
    "age": (("The {} was built in year {}.", 6), ("In year {1} the {0} was built.", 2)),
}
"""Property -> sentences that state its value, with weights."""
QUESTIONS = (
    Question(("weight", "weight"), ("Is the {} heavier than the {}?", "Does the {} weigh more than the {}?")),
    Question(("strength", "weight"), ("Could {} lift the {}?", "Is {} able to carry the {}?")),
    Question(("born", "born"), ("Is {} younger than {}?", "Was {} born after {}?")),
    Question(("born", "age"), ("Is {} younger than the {}?", "Was {} born after the {} was built?")),
    Question(("height", "height"), ("Is the {} higher than the {}?", "Does the {} look down on the {}?")),
    Question(("age", "age"), ("Is the {} newer than the {}?", "Was the {} built after the {}?")),
)


def strategyqa_rows(split: Split, n: int, seed: int) -> list[dict[str, Any]]:
    """Generate ``n`` different questions of a split.

    Args:
        split: one of "train", "valid", "test". Splits share no pair that is compared.
        n, seed: see `samsum_rows`; a question may come again, with its facts in other words.

    Returns:
        Rows with ``qid``, ``question``, ``answer`` (bool) and ``facts`` (two sentences).
    """

    def draw(rng: Random) -> dict[str, Any] | None:
        question = rng.choice(QUESTIONS)
        first, second = (rng.choice(list(WORLD[name])) for name in question.properties)
        values = [
            WORLD[name][thing] for name, thing in zip(question.properties, (first, second), strict=True)
        ]
        if values[0] == values[1] or not of_split(split, f"{question.properties} {sorted((first, second))}"):
            return None
        asked = rng.choice(question.wordings).format(first, second)
        pairs = zip(question.properties, (first, second), strict=True)
        facts = [_fact(rng, name, thing) for name, thing in pairs]
        return {
            "question": asked,
            "answer": values[0] > values[1],
            "facts": facts,
            "all": " ".join([asked, *facts]),
        }

    rows = distinct_rows(split, n, seed, "all", draw)
    return [
        {"qid": row["id"], **{name: row[name] for name in ("question", "answer", "facts")}} for row in rows
    ]


def _fact(rng: Random, name: str, thing: str) -> str:
    wordings, weights = zip(*FACTS[name], strict=True)
    return str(rng.choices(wordings, weights)[0].format(thing, WORLD[name][thing]))
