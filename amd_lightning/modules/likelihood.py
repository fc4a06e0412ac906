"""Maximum likelihood of the stored responses beside a distance."""

from torch import Tensor

from amd_lightning.objectives.divergences import nll
from amd_lightning.types import Tokens


def with_likelihood(
    distance: Tensor, tokens: Tokens, log_q: Tensor, *, share: float, beta: float, temperature: float
) -> Tensor:
    """(1 − share) · distance + share · (−log q of the action written at an off-policy state). [n].

    MiniLLM's, DistiLLM's and DSKD's code mix word-level distillation with the cross-entropy this way (their
    kd_ratio or kd_rate is 1 − share).

    Args:
        tokens: n packed tokens. The weight of an off-policy one holds β, which the likelihood is to be free
            of: a mean over stored tokens (or sequences) whatever β, above 0.
        log_q: [n, V], at the student's `temperature`; the likelihood is that at temperature 1.
    """
    if temperature != 1.0:
        log_q = (temperature * log_q).log_softmax(-1)
    own_weight = tokens.off_policy.to(distance.dtype) / beta  # a bool over a number is of the default type
    likelihood = nll(log_q, tokens.actions) * own_weight
    return (1.0 - share) * distance + share * likelihood
