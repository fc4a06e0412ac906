"""What the numbers of results.json are called, which way they are better, and how they are written."""

from collections.abc import Iterable
from typing import NamedTuple


class Measure(NamedTuple):
    """One number of a model's map in results.json."""

    key: str
    title: str
    better: int
    """1 where higher is better, −1 where lower is, 0 where neither can be said."""
    decimals: int
    meaning: str
    range: str = ""

    @property
    def arrow(self) -> str:
        """The title with the way it is better."""
        return self.title + {1: " (↑)", -1: " (↓)", 0: ""}[self.better]


def _texts() -> list[Measure]:
    greedy, sampled = "of the best response (greedy or beam)", "of responses sampled at temperature 1"
    return [
        Measure("sampled_accuracy", "sampled accuracy", 1, 3, f"share {sampled} that are correct", "0 to 1"),
        Measure("sampled_rouge_l", "sampled ROUGE-L", 1, 2, f"rougeL F1 {sampled}", "0 to 100"),
        Measure("accuracy", "accuracy", 1, 3, f"share {greedy} that is correct", "0 to 1"),
        Measure("rouge_l", "ROUGE-L", 1, 2, f"rougeL F1 {greedy}", "0 to 100"),
        Measure("sampled_bleu", "sampled BLEU", 1, 2, f"corpus BLEU {sampled}", "0 to 100"),
        Measure("bleu", "BLEU", 1, 2, f"corpus BLEU {greedy}", "0 to 100"),
        Measure(
            "sampled_unparsed",
            "sampled unparsed",
            -1,
            3,
            f"share {sampled} without a readable answer",
            "0 to 1",
        ),
        Measure("unparsed", "unparsed", -1, 3, f"share {greedy} without a readable answer", "0 to 1"),
        Measure("sampled_chrf", "sampled chrF", 1, 2, f"chrF {sampled}", "0 to 100"),
        Measure("chrf", "chrF", 1, 2, f"chrF {greedy}", "0 to 100"),
    ]


def _wholes() -> list[Measure]:
    return [
        Measure(
            "exact_match",
            "exact match with the teacher",
            1,
            3,
            "share of pairs of a student's and a teacher's sample that are equal",
            "0 to 1, the teacher itself stays below 1",
        ),
        Measure(
            "mmd_squared",
            "MMD² to the teacher",
            -1,
            4,
            "squared maximum mean discrepancy of whole responses, n-gram kernel",
            "about 0 at the teacher",
        ),
        Measure("ngram_gap", "bigram gap", -1, 3, "how far apart the bigrams of both are", "0 to 1"),
        Measure(
            "worst_case",
            "worst-case gap",
            -1,
            3,
            "largest gap of any reward within ±1",
            "0 to 2",
        ),
        Measure("exact_match_gap", "exact match gap", -1, 3, "the teacher's own exact match − the student's"),
        Measure("length_gap", "length gap", 0, 2, "student's − teacher's response tokens"),
        Measure("response_tokens", "response tokens", 0, 2, "mean length of sampled responses"),
    ]


DISTANCES = {"tv": "TV", "kl": "KL", "rkl": "reverse KL", "js": "JS"}
SOURCES = {"off": "on stored responses", "on": "on the student's own responses"}


def _steps() -> list[Measure]:
    """Distances to the teacher, state by state."""
    found = []
    for name, title in DISTANCES.items():
        for source, words in SOURCES.items():
            unit = "0 to 1" if name == "tv" else "nats a token"
            meaning = f"{title} to the teacher {words}, mean over tokens"
            found.append(Measure(f"{name}_{source}", f"{title} {source}", -1, 4, meaning, unit))
    for source, words in SOURCES.items():
        meaning = f"probe moment distance {words}: a fresh critic's moment gap on states that it has not seen"
        found.append(Measure(f"probe_{source}", f"probe {source}", -1, 4, meaning, "about 0 to TV"))
    for name, title in DISTANCES.items():
        for source, words in SOURCES.items():
            meaning = f"{title} to the teacher {words}, sum over a response"
            found.append(Measure(f"{name}_sequence_{source}", f"{title} {source} a response", -1, 3, meaning))
    for source, words in SOURCES.items():
        whose = "of the run's own critic (the closed form at alpha .5 without one)"
        meaning = f"moment gap {whose} {words}, mean over tokens; of validations"
        found.append(Measure(f"moment_gap_{source}", f"moment gap {source}", 0, 4, meaning))
        meaning = f"that gap {words} over 2TV there: how near the critic is to the best within ±1"
        found.append(Measure(f"gap_over_tv_{source}", f"gap / 2TV {source}", 0, 3, meaning))
    for source, words in SOURCES.items():
        meaning = f"the probe's moment gap {words} that it learned from"
        found.append(Measure(f"probe_train_{source}", f"probe {source}, training half", 0, 4, meaning))
    return found


KNOWN = {measure.key: measure for measure in [*_texts(), *_wholes(), *_steps()]}
"""By key, in the order of tables."""

NOT_MEASURED = ("parameters", "seconds")
"""Numbers of a model's map that say nothing of how good it is."""

HEADLINE = (
    "sampled_accuracy sampled_rouge_l accuracy rouge_l sampled_bleu bleu exact_match mmd_squared worst_case "
    "tv_off tv_on kl_off rkl_on probe_off probe_on"
).split()
"""The report's first table; everything else is in its second and in summary.csv."""

JUDGES = "sampled_bleu sampled_rouge_l accuracy bleu rouge_l".split()


def judges(quality: str | None) -> list[str]:
    """What the report ranks by where nothing else is asked for: the first that the runs have.

    quality: the task's own metric, as results.json names it.
    """
    own = [] if quality is None else [f"sampled_{quality}", quality]
    return list(dict.fromkeys(["sampled_accuracy", *own, *JUDGES]))


def headline(keys: Iterable[str], quality: str | None) -> list[str]:
    """Of these, the first table's columns: `HEADLINE`, and the task's own metric on further test sets."""
    keys = list(keys)
    own = quality or "rouge_l"
    further = [key for key in keys if "/" in key and key.rpartition("/")[2] in (own, f"sampled_{own}")]
    return [key for key in HEADLINE if key in keys] + further or keys[:8]


def measure_of(key: str) -> Measure:
    """A metric by its key in results.json; one of a further evaluation set is "SET/KEY".

    An unknown one is shown all the same: by its key, without a better side.
    """
    if key in KNOWN:
        return KNOWN[key]
    head, slash, tail = key.rpartition("/")
    known = KNOWN.get(tail)
    if slash and known is not None:
        return known._replace(key=key, title=f"{head.replace('_', ' ')}: {known.title}")
    return Measure(key, key.replace("_", " "), 0, 4, "unknown to this version")


def in_order(keys: Iterable[str]) -> list[str]:
    """Known keys as in `KNOWN`, the test split's own before further sets', then unknown ones by name."""
    places = {key: place for place, key in enumerate(KNOWN)}

    def place(key: str) -> tuple[bool, str, int, str]:
        head, _, tail = key.rpartition("/")
        known = places.get(key, places.get(tail))
        return known is None, head, -1 if known is None else known, key

    return sorted(set(keys), key=place)
