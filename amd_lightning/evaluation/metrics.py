"""Text metrics: what a reader would call a good response.

rouge_l     rougeL F1 of `rouge-score`, stemmed, the best over the references, mean × 100
bleu        corpus BLEU of `sacrebleu` with its own tokenisation (Post 2018), 0..100
accuracy    share of responses that the task's own checker accepts, 0..1
unparsed    share of responses that give no answer in the wording asked for, 0..1 (StrategyQA's yes or no)
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import zip_longest

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics.bleu import BLEU

Checker = Callable[[str, Sequence[str]], bool]
"""Whether a response is correct, given the references."""

Scorer = Callable[[Sequence[str], Sequence[Sequence[str]]], float | None]
"""(responses, references of each) -> a number; None where the task has no such notion."""

OF_EXAMPLES = ("rouge_l", "accuracy", "unparsed")
"""Metrics that are the mean of a score for each response; corpus BLEU is none."""


def rouge_l(responses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean rougeL F1 × 100, the best over each response's references (0 to 100)."""
    scores = [
        _best_rouge_l(response, tuple(golds)) for response, golds in zip(responses, references, strict=True)
    ]
    return 100.0 * sum(scores) / len(scores)


def bleu(responses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU, 0 to 100; responses may have different numbers of references."""
    return _bleu(responses, references)[0]


def signatures(metrics: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, str]:
    """How each of the metrics was computed, for those whose package has a word for it.

    references: of the scored responses, whose numbers are a part of BLEU's.
    """
    return {"bleu": _bleu([""] * len(references), references)[1]} if "bleu" in metrics else {}


def accuracy(responses: Sequence[str], references: Sequence[Sequence[str]], checker: Checker) -> float:
    """Share of responses that `checker` accepts, 0 to 1."""
    correct = [checker(response, golds) for response, golds in zip(responses, references, strict=True)]
    return sum(correct) / len(correct)


def unparsed(
    responses: Sequence[str], references: Sequence[Sequence[str]], parse: Callable[[str], object]
) -> float:
    """Share of responses of which `parse` makes None, 0 to 1; accuracy counts them as wrong."""
    return sum(parse(response) is None for response in responses) / len(responses)


def scorers(
    metrics: Sequence[str], checker: Checker | None, parse: Callable[[str], object] | None = None
) -> Mapping[str, Scorer]:
    """The metrics of these names, in their order.

    Args:
        metrics: names as above.
        checker: for "accuracy", which is None without it.
        parse: reads the answer out of a response, for "unparsed".

    Raises:
        KeyError: an unknown name.
    """
    known: dict[str, Scorer] = {
        "rouge_l": rouge_l,
        "bleu": bleu,
        "accuracy": partial(accuracy, checker=checker) if checker else lambda *_: None,
        "unparsed": partial(unparsed, parse=parse) if parse else lambda *_: None,
    }
    return {name: known[name] for name in metrics}


def example_scores(
    scorers: Mapping[str, Scorer], response: str, references: Sequence[str]
) -> dict[str, float]:
    """One response's share of each metric that has one, by name and in the metric's own unit: the mean of
    them over responses is the metric."""
    found = {name: score([response], [references]) for name, score in scorers.items() if name in OF_EXAMPLES}
    return {name: value for name, value in found.items() if value is not None}


def _bleu(responses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """The score and sacrebleu's signature of it."""
    metric = BLEU()
    # One list for the first reference of every response, one for the second, ..., None where there is none.
    columns = [list(column) for column in zip_longest(*references)]
    score = metric.corpus_score(list(responses), columns).score
    return float(score), str(metric.get_signature())


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
