"""The generated en-de pairs of ``scale=demo``: a small grammar of both languages, offline.

A sentence has a subject, a verb, an object and a time, in one of several frames (statement, past, wish,
question, subordinate clause). What makes the translation more than a dictionary is German's own: the place
of the verb and its separable prefix, gender, the endings of articles and adjectives, the participle. Where
German allows several orders, each is an acceptable translation of uneven probability.
"""

from random import Random
from typing import Any, NamedTuple

from amd_lightning.data.embedded import Split, distinct_rows, of_split


class Verb(NamedTuple):
    """English base, third person and past; German first and third person, plural, participle, prefix."""

    base: str
    third: str
    past: str
    ich: str
    er: str
    wir: str
    participle: str
    prefix: str = ""


class Noun(NamedTuple):
    """English, German, and the gender: m, f or n."""

    english: str
    german: str
    gender: str


VERBS = (
    Verb("buy", "buys", "bought", "kaufe", "kauft", "kaufen", "gekauft"),
    Verb("see", "sees", "saw", "sehe", "sieht", "sehen", "gesehen"),
    Verb("find", "finds", "found", "finde", "findet", "finden", "gefunden"),
    Verb("draw", "draws", "drew", "zeichne", "zeichnet", "zeichnen", "gezeichnet"),
    Verb("use", "uses", "used", "nutze", "nutzt", "nutzen", "genutzt"),
    Verb("bring", "brings", "brought", "bringe", "bringt", "bringen", "mitgebracht", "mit"),
    Verb("open", "opens", "opened", "mache", "macht", "machen", "aufgemacht", "auf"),
    Verb("show", "shows", "showed", "zeige", "zeigt", "zeigen", "gezeigt"),
)
NOUNS = (
    Noun("table", "Tisch", "m"),
    Noun("letter", "Brief", "m"),
    Noun("garden", "Garten", "m"),
    Noun("key", "Schlüssel", "m"),
    Noun("bag", "Tasche", "f"),
    Noun("door", "Tür", "f"),
    Noun("watch", "Uhr", "f"),
    Noun("map", "Karte", "f"),
    Noun("book", "Buch", "n"),
    Noun("house", "Haus", "n"),
    Noun("window", "Fenster", "n"),
    Noun("picture", "Bild", "n"),
)
ADJECTIVES = {
    **{"old": "alt", "new": "neu", "small": "klein", "big": "groß"},
    **{"red": "rot", "green": "grün", "heavy": "schwer", "pretty": "schön"},
}
TIMES = {"today": "heute", "now": "jetzt", "often": "oft", "again": "wieder"}
PAST_TIMES = {"yesterday": "gestern", "often": "oft", "again": "wieder", "in May": "im Mai"}
NAMES = "Anna Ben Clara David Emma Felix Hanna Jonas".split()
SUBJECTS = {"I": ("ich", "ich"), "we": ("wir", "wir"), "they": ("sie", "wir"), "he": ("er", "er")}
"""English -> German and the verb form it takes; names take the third person."""
FORMS = {
    "wish": {"ich": "will", "er": "will", "wir": "wollen"},
    "ability": {"ich": "kann", "er": "kann", "wir": "können"},
    "past": {"ich": "habe", "er": "hat", "wir": "haben"},
}
ARTICLES = {
    "the": {"m": ("den", "en"), "f": ("die", "e"), "n": ("das", "e")},
    "a": {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es")},
}
"""The accusative's article and the adjective's ending."""
FRAMES = ("present", "past", "wish", "ability", "question", "clause")


def iwslt_rows(split: Split, n: int, seed: int) -> list[dict[str, Any]]:
    """Generate ``n`` different sentence pairs of a split.

    Args:
        split: one of "train", "valid", "test". Splits share no (subject, verb, object).
        n, seed: see `samsum_rows`.

    Returns:
        Rows with ``id``, ``en``, ``de`` and ``references`` (list; ``de`` is one of them).
    """

    def draw(rng: Random) -> dict[str, Any] | None:
        subject = rng.choice([*SUBJECTS, *NAMES])
        verb, noun = rng.choice(VERBS), rng.choice(NOUNS)
        if not of_split(split, f"{subject} {verb.base} {noun.english}"):
            return None
        frame, article = rng.choice(FRAMES), rng.choice(list(ARTICLES))
        adjective = rng.choice(["", *ADJECTIVES])
        time = rng.choice(list(PAST_TIMES if frame == "past" else TIMES))
        english = _english(frame, subject, verb, f"{article} {adjective} {noun.english}", time)
        references = _german(frame, subject, verb, _object(article, adjective, noun), time)
        german = rng.choices(references, (5, 3, 2)[: len(references)])[0]
        return {"en": english, "de": german, "references": references}

    return distinct_rows(split, n, seed, "en", draw)


def _object(article: str, adjective: str, noun: Noun) -> str:
    word, ending = ARTICLES[article][noun.gender]
    if not adjective:
        return f"{word} {noun.german}"
    return f"{word} {ADJECTIVES[adjective]}{ending} {noun.german}"


def _english(frame: str, subject: str, verb: Verb, thing: str, time: str) -> str:
    form = verb.base if subject in ("I", "we", "they") else verb.third
    match frame:
        case "past":
            said = f"{subject} {verb.past} {thing} {time}."
        case "wish":
            want = "want" if form == verb.base else "wants"
            said = f"{subject} {want} to {verb.base} {thing} {time}."
        case "ability":
            said = f"{subject} can {verb.base} {thing} {time}."
        case "question":
            do = "do" if form == verb.base else "does"
            said = f"{do} {subject} {verb.base} {thing} {time}?"
        case "clause":
            said = f"I know that {subject} {form} {thing} {time}."
        case _:
            said = f"{subject} {form} {thing} {time}."
    return _sentence(said)


def _german(frame: str, subject: str, verb: Verb, thing: str, time: str) -> list[str]:
    """All acceptable orders, the most likely first."""
    who, person = SUBJECTS.get(subject, (subject, "er"))
    finite = getattr(verb, person)
    when = (PAST_TIMES if frame == "past" else TIMES)[time]
    last = verb.prefix
    if frame in FORMS:
        finite = FORMS[frame][person]
        last = verb.participle if frame == "past" else verb.prefix + verb.wir
    if frame == "question":
        orders = [f"{finite} {who} {when} {thing} {last}?", f"{finite} {who} {thing} {when} {last}?"]
    elif frame == "clause":
        joined = verb.prefix + getattr(verb, person)
        orders = [
            f"ich weiß, dass {who} {when} {thing} {joined}.",
            f"ich weiß, dass {who} {thing} {when} {joined}.",
        ]
    else:
        orders = [
            f"{who} {finite} {when} {thing} {last}.",
            f"{when} {finite} {who} {thing} {last}.",
            f"{who} {finite} {thing} {when} {last}.",
        ]
    return [_sentence(order) for order in orders]


def _sentence(words: str) -> str:
    """Single spaces, none before the final mark, a capital first."""
    mark = words[-1]
    line = " ".join(words[:-1].split()) + mark
    return line[0].upper() + line[1:]
