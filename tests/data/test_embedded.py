"""The generated dialogues: splits, determinism, and wordings that say what the dialogue says."""

import re
from collections import Counter

import pytest

from amd_lightning.data import embedded
from amd_lightning.data.embedded import NAMES, PHRASES, SLOTS, is_correct, samsum_rows

PINNED_LINES = (
    "Daniel: Shall I help you with the fence today? My week was long.",
    "Carla: Better not. But what about the kitchen?",
    "Daniel: Ok, see you!",
)
PINNED_SUMMARY = "Carla gets help with the kitchen from Daniel today."


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+|[^\w\s]", text)


def test_rows_are_deterministic_and_a_prefix_of_a_larger_request() -> None:
    assert samsum_rows("train", 50, seed=3) == samsum_rows("train", 200, seed=3)[:50]
    assert samsum_rows("train", 50, seed=3) != samsum_rows("train", 50, seed=4)


def test_the_generator_gives_these_rows_in_every_process() -> None:
    """A cache key names (split, n, seed), so the text behind it may not depend on the process."""
    row = samsum_rows("test", 1, seed=0)[0]
    assert row["id"] == "test-0-0"
    assert row["dialogue"] == "\n".join(PINNED_LINES)
    assert row["summary"] == PINNED_SUMMARY


def test_rows_of_a_split_differ_though_the_generator_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "NAMES", NAMES[:2])
    monkeypatch.setattr(embedded, "PHRASES", {name: options[:1] for name, options in PHRASES.items()})
    rows = samsum_rows("train", 1000, seed=0)  # of about 6000 possible ones
    assert len({row["dialogue"] for row in rows}) == len({row["id"] for row in rows}) == len(rows) == 1000


def test_splits_share_no_summary_whatever_their_seeds() -> None:
    train, valid, test = (
        {wording for row in rows for wording in row["references"]}
        for rows in (
            samsum_rows("train", 1000, 0),
            samsum_rows("valid", 1000, 1),
            samsum_rows("test", 1000, 0),
        )
    )
    assert not train & valid
    assert not train & test
    assert not valid & test


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="train, valid, test"):
        samsum_rows("validation", 1, seed=0)  # type: ignore[arg-type]


def test_the_summary_is_drawn_unevenly_from_several_wordings() -> None:
    rows = samsum_rows("train", 1000, seed=0)
    chosen = Counter(row["references"].index(row["summary"]) for row in rows)
    assert all(len(set(row["references"])) == len(row["references"]) >= 4 for row in rows)
    assert [place for place, _ in chosen.most_common()] == [0, 1, 2, 3, 4, 5]
    assert chosen[0] < 0.6 * len(rows)


def test_every_wording_names_both_people_and_only_facts_of_the_dialogue() -> None:
    facts = {*NAMES, *(value for values in SLOTS.values() for value in values)}
    for row in samsum_rows("valid", 300, seed=0):
        found = [{fact for fact in facts if fact in wording} for wording in row["references"]]
        assert all(one == found[0] for one in found)
        assert len(found[0] & set(NAMES)) == 2
        assert len(found[0]) == 4
        assert all(fact in row["dialogue"] for fact in found[0])


def test_a_refused_proposal_is_in_the_dialogue_but_in_no_wording() -> None:
    for row in samsum_rows("valid", 300, seed=0):
        kinds = [k for k, values in SLOTS.items() if any(v in row["references"][0] for v in values)]
        mentioned = [v for k in kinds for v in SLOTS[k] if v in row["dialogue"]]
        assert len(mentioned) == 3  # two agreed facts and one refused


def test_sizes_suit_a_small_model() -> None:
    rows = samsum_rows("train", 1000, seed=0)
    dialogues = [len(_words(row["dialogue"])) for row in rows]
    summaries = [len(_words(row["summary"])) for row in rows]
    assert max(dialogues) <= 55
    assert min(dialogues) >= 25
    assert min(summaries) >= 7
    assert max(summaries) <= 14
    types = {word for row in rows for text in (row["dialogue"], *row["references"]) for word in _words(text)}
    assert len(types) < 500


def test_all_scenes_and_orders_of_speakers_occur() -> None:
    rows = samsum_rows("train", 400, seed=0)
    verbs = Counter(re.findall("(?:Shall|Can) .*?(meet|bring|pick|help)", row["dialogue"])[0] for row in rows)
    assert set(verbs) == {"meet", "bring", "pick", "help"}
    assert min(verbs.values()) > 60
    doer_speaks_first = [row["dialogue"].split(":")[0] == row["references"][0].split()[0] for row in rows]
    assert 0.5 < sum(doer_speaks_first) / len(rows) < 0.75  # always in "meet", every other time elsewhere


@pytest.mark.parametrize("response", ["Adam will go.", "adam  will go", " Adam will GO . "])
def test_is_correct_ignores_case_spaces_and_the_final_stop(response: str) -> None:
    assert is_correct(response, ["Adam goes.", "Adam will go."])


@pytest.mark.parametrize(
    "response", ["", "Adam", "Adam will go home.", "Ben will go.", "Adam will go. Adam will go."]
)
def test_is_correct_refuses_anything_but_a_whole_wording(response: str) -> None:
    assert not is_correct(response, ("Adam goes.", "Adam will go."))
