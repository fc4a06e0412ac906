"""Which way a metric is better, by its name."""

RISING = ("auto", "rouge_l", "bleu", "chrf", "accuracy", "exact_match")
"""The metrics of which more is better, and the task's own, which is one of them; less is of all others."""


def rises(metric: str) -> bool:
    """Whether more of `evaluation.metric` is better."""
    return metric.removeprefix("sampled_") in RISING
