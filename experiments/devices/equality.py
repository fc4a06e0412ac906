"""Two processes against one: how far the weights lie apart after five updates of the same batches.

    python experiments/devices/equality.py

Tiny random models, K = 2 critic steps, micro-batches of 4 on one process and 2 on each of two; rollouts are
the student's own, drawn from a stream that the prompt decides. Prints a Markdown table: the largest
difference of any weight of student and critics.
"""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.processes import on_ranks
from tests.test_ranks_training import End, trained

CASES = (
    ("rkl", "llama", "plain"),
    ("learned", "llama", "plain"),
    ("residual", "llama", "replay"),
    ("kl", "t5", "sequence"),
    ("learned", "t5", "plain"),
    ("rkl", "t5", "horizon"),
    ("js", "t5", "reuse"),
)
LAYOUTS = {
    "ddp": {"strategy": "ddp"},
    "sharded": {"strategy": "sharded"},
    "sharded, teacher too": {"strategy": "sharded", "sharded_teacher": True},
}


def _apart(one: End, other: End) -> float:
    return max(float((other.weights[name] - value).abs().max()) for name, value in one.weights.items())


def _on_rank(
    method: str, family: str, setting: str, folder: Path, dtype: torch.dtype, options: dict[str, object]
) -> End:
    return trained(method, family, setting, folder, dtype, **options)


def main() -> None:
    """Print a row a case."""
    print("| objective | family | setting | strategy | float32 | float64 |")
    print("|---|---|---|---|--:|--:|")
    for method, family, setting in CASES:
        for name, options in LAYOUTS.items():
            if name != "ddp" and setting != "plain":
                continue
            found = []
            for dtype in (torch.float32, torch.float64):
                with tempfile.TemporaryDirectory() as folder:
                    place = Path(folder)
                    one = trained(method, family, setting, place / "one", dtype)
                    arguments = (method, family, setting, place / "two", dtype, options)
                    two = on_ranks(2, _on_rank, *arguments, folder=place / "ranks")
                found.append(f"{_apart(one, two[0]):.1e}")
            print(f"| {method} | {family} | {setting} | {name} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
