"""How much of an update are matrix products that the method cannot do without."""

import statistics
from typing import Any

from matmuls import FLOPS

BATCH, PROMPT, RESPONSE = 8, 64, 64


def layers(width: int, count: int, context: float) -> float:
    """FLOPs of a token in the Llamas of `pair.py`, head left out: products with weights, and attention."""
    middle = int(width * 2.7) // 16 * 16
    return count * (2 * (4 * width**2 + 3 * width * middle) + 4 * width * context)


def products(vocabulary: int) -> dict[str, float]:
    """FLOPs of an update by part; a backward pass is twice its forward pass."""
    tokens, states = BATCH * (PROMPT + RESPONSE - 1), BATCH * RESPONSE
    context = (PROMPT + RESPONSE) / 2
    student, teacher = layers(160, 6, context), layers(320, 8, context)
    return {
        "generation": tokens * student + states * 2 * 160 * vocabulary,
        "teacher_forward": tokens * teacher,
        "student_forward": tokens * student,
        "student_backward": 2 * tokens * student,
        "distance": states * 2 * vocabulary * (320 + 3 * 160),
    }


def share(ours: dict[str, Any], rate: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """Shares of the time that the products would take at the measured rate: all of it, and by part.

    Args:
        ours: a worker's answer, with `parts` (name -> seconds an update, of the same clock).
        rate: the answer of `matmuls.py`.
    """
    flops_a_second = FLOPS / statistics.median(rate["seconds"])
    least = {name: flops / flops_a_second for name, flops in products(vocabulary).items()}
    update, parts = statistics.median(ours["seconds"]), dict(ours["parts"])
    parts["between updates"] = max(0.0, update - sum(parts.values()))
    without = update - parts["generation"]
    needed = sum(seconds for name, seconds in least.items() if name != "generation")
    lines: dict[str, Any] = {
        "arithmetic, without generation": {
            "ratio": round(needed / without, 3),
            "target": 0.7,
            "reached": needed / without >= 0.7,
        },
        "arithmetic, with generation": {"ratio": round(sum(least.values()) / update, 3), "target": None},
    }
    for name, seconds in parts.items():
        lines[f"arithmetic, {name}"] = {
            "ratio": round(least.get(name, 0.0) / seconds, 3) if seconds else None,
            "seconds": round(seconds, 4),
            "products": round(least.get(name, 0.0), 4),
            "target": None,
        }
    return lines
