"""What is judged: the responses of a finished run or of `python -m amd_lightning.evaluate`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from amd_lightning.errors import UserError
from amd_lightning.judging.questions import Item

REFERENCES = "references"


class Chosen(NamedTuple):
    """Which of a folder's responses.

    Attributes:
        who: the model's name in predictions.jsonl; None: the student, else the model that was evaluated.
        sampled: the first draw to each prompt rather than the best response.
        evaluation_set: a further test set's name; None for the test split.
    """

    who: str | None
    sampled: bool
    evaluation_set: str | None


def items(
    folder: Path, chosen: Chosen, against: str | None, rival_who: str | None, limit: int | None
) -> list[Item]:
    """The first `limit` test examples with the response to each, and its rival.

    Args:
        against: "references", another folder, or None where responses are graded alone.
        rival_who: of the other folder, as `Chosen.who`.

    Raises:
        UserError: there are none, or the other folder's are answers to other prompts.
    """
    rows = _responses(folder, chosen)
    rivals: dict[str, str | None] = dict.fromkeys(rows)
    if against == REFERENCES:
        rivals = {key: row["references"][0] for key, row in rows.items()}
    elif against is not None:
        others = _responses(Path(against), chosen._replace(who=rival_who))
        asked = {key: _asked(row) for key, row in others.items()}
        strange = [key for key, row in rows.items() if asked.get(key) != _asked(row)]
        if strange:
            raise UserError(
                f"{against} has no response to {len(strange)} of {len(rows)} prompts of {folder}, such as "
                f"that of {strange[0]}: compare runs with the same data, seed and limits"
            )
        rivals = {key: others[key]["response"] for key in rows}
    found = [Item(key, _asked(row), row["response"], rivals[key]) for key, row in rows.items()]
    return found[:limit]


def task_of(folder: Path) -> str:
    """The data set's name, from results.json or evaluation.json; "" where neither says."""
    for name in ("results.json", "evaluation.json"):
        if (folder / name).is_file():
            try:
                return str(json.loads((folder / name).read_text(encoding="utf-8"))["task"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{folder / name} is damaged ({error}): restore it") from error
    return ""


def _asked(row: Mapping[str, Any]) -> str:
    return "\n\n".join(filter(None, [row["prompt"], row.get("context", "")]))


def _responses(folder: Path, chosen: Chosen) -> dict[str, dict[str, Any]]:
    """One row an example, by its id, in the order of the file."""
    path = folder / "predictions.jsonl"
    if not path.is_file():
        raise UserError(
            f"{folder} has no predictions.jsonl: name the folder of a finished run, or of "
            "python -m amd_lightning.evaluate"
        )
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                row["id"], row["response"], row["prompt"], row["references"][0]
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"{path}, line {number}, is damaged ({error!r}): restore the file") from error
            rows.append(row)
    names = list(dict.fromkeys(str(row.get("who")) for row in rows))
    who = chosen.who or ("student" if "student" in names else "model")
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        right = row.get("who") == who and row.get("evaluation_set") == chosen.evaluation_set
        if right and (row.get("kind") == "sampled") is chosen.sampled:
            found.setdefault(str(row["id"]), row)
    if not found:
        what = f"{who}'s {'sampled' if chosen.sampled else 'best'} responses"
        where = f" to {chosen.evaluation_set}" if chosen.evaluation_set else ""
        raise UserError(
            f"{path} has none of {what}{where}: choose --who {', '.join(names)}, or another --set"
        )
    return found
