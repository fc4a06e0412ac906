"""Text metrics: what a reader would call a good response.

rouge_l     rougeL F1 of `rouge-score`, stemmed, the best over the references, mean × 100
accuracy    share of responses that the task's own checker accepts, 0..1
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

Checker = Callable[[str, Sequence[str]], bool]
"""Whether a response is correct, given the references."""


def rouge_l(responses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean rougeL F1 × 100, the best over each response's references (0 to 100)."""
    scores = [
        _best_rouge_l(response, tuple(golds)) for response, golds in zip(responses, references, strict=True)
    ]
    return 100.0 * sum(scores) / len(scores)


def accuracy(responses: Sequence[str], references: Sequence[Sequence[str]], checker: Checker) -> float:
    """Share of responses that `checker` accepts, 0 to 1."""
    correct = [checker(response, golds) for response, golds in zip(responses, references, strict=True)]
    return sum(correct) / len(correct)


class _Words:
    """rouge_score's own words and stems, each text's once: they are most of the time."""

    def __init__(self) -> None:
        self.tokenize = lru_cache(maxsize=100_000)(DefaultTokenizer(use_stemmer=True).tokenize)


@lru_cache(maxsize=1)
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=_Words())


@lru_cache(maxsize=100_000)
def _best_rouge_l(response: str, references: tuple[str, ...]) -> float:
    return max(_scorer().score(reference, response)["rougeL"].fmeasure for reference in references)
