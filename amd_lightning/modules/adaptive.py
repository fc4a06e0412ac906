"""β that follows the validation loss: more of the student's states as that rises."""

from collections.abc import Mapping
from typing import Any


class AdaptiveBeta:
    """β = max(floor, 1 − step · rises), a rise being a validation loss that is worse than its reference.

    DistiLLM's adaptive use of student-written states (Ko et al. 2024, arXiv 2402.03898; its code has step .1
    and tolerance .1): its threshold φ is 1 − β. The reference is the first loss, and after every rise the
    loss that was one. The code's loss is the cross-entropy of the data's responses, measured once before
    training too; here it is KL(teacher‖student) on the same states, which is 0 for a perfect student.

    Args:
        floor: the lowest β.
        step: by how much a rise lowers β.
        tolerance: nats a token, how much worse a loss must be to count.
    """

    LOSS = "kl_off"
    """The validation metric that is watched."""

    def __init__(self, floor: float, step: float, tolerance: float) -> None:
        self.floor = floor
        self.step = step
        self.tolerance = tolerance
        self.rises = 0
        self.reference: float | None = None

    @property
    def beta(self) -> float:
        """As it is now."""
        return max(self.floor, round(1.0 - self.step * self.rises, 9))  # exactly 0 where it comes to 0

    def validated(self, metrics: Mapping[str, float | None]) -> None:
        """Take in a validation."""
        loss = metrics[self.LOSS]
        assert loss is not None
        if self.reference is None:
            self.reference = loss
        elif loss >= self.reference + self.tolerance:
            self.rises += 1
            self.reference = loss

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"rises": self.rises, "reference": self.reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.rises, self.reference = state["rises"], state["reference"]
