"""The n-gram kernel between responses, and what is made of its values."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from amd_lightning.objectives.kernels import kernel_advantages, kernel_scores, mmd_squared, ngram_kernel

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10**6)
sizes = st.sampled_from([(1,), (2,), (1, 2), (1, 3), (3, 2, 1)])

Response = tuple[int, ...]


def padded(responses: list[Response], filler: int = -100) -> tuple[Tensor, Tensor]:
    """[A, T] ids, and the mask."""
    length = max(map(len, responses))
    ids = torch.tensor([[*response, *[filler] * (length - len(response))] for response in responses])
    return ids, torch.tensor([[t < len(response) for t in range(length)] for response in responses])


def some(seed: int, count: int = 4, vocabulary: int = 3, longest: int = 5) -> list[Response]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [tuple(torch.randint(vocabulary, (n,), generator=generator).tolist()) for n in lengths]


def kernel(a: list[Response], b: list[Response], sizes: tuple[int, ...] = (1, 2)) -> Tensor:
    return ngram_kernel(*padded(a), *padded(b), sizes=sizes)


def by_hand(a: Response, b: Response, size: int) -> float:
    """One Counter of tuples each: no codes, no padding."""

    def shares(response: Response) -> dict[tuple, float]:
        marked = (None,) * (size - 1) + response
        grams = Counter(marked[t : t + size] for t in range(len(response)))
        return {gram: count / len(response) for gram, count in grams.items()}

    of_a, of_b = shares(a), shares(b)
    return sum((of_a[gram] * of_b.get(gram, 0.0)) ** 0.5 for gram in of_a)


def similarities(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(seed: int, *shape: int) -> Tensor:
    values = similarities(seed, *shape, shape[-1])
    return (values + values.mT) / 2


# --- The kernel ---


@quick
@given(seed=seeds, sizes=sizes)
def test_kernel_is_that_of_the_counted_ngrams(seed: int, sizes: tuple[int, ...]) -> None:
    a, b = some(seed), some(seed + 1, count=3, longest=7)
    values = [[sum(by_hand(x, y, n) for n in sizes) / len(sizes) for y in b] for x in a]
    torch.testing.assert_close(kernel(a, b, sizes), torch.tensor(values))


@quick
@given(seed=seeds, sizes=sizes)
def test_kernel_is_positive_semi_definite_and_one_at_equality(seed: int, sizes: tuple[int, ...]) -> None:
    responses = sorted(set(some(seed, count=12, vocabulary=2)))
    gram = kernel(responses, responses, sizes)
    torch.testing.assert_close(gram, gram.mT)
    torch.testing.assert_close(gram.diagonal(), torch.ones(len(gram)))
    assert gram.min() >= 0.0
    assert gram.max() <= 1.0 + 1e-6
    assert torch.linalg.eigvalsh(gram.double()).min() > -1e-6


def test_kernel_by_hand() -> None:
    # Tokens: halves of {1, 2} against thirds of {1, 1, 2}; bigrams ^1, 12 against ^1, 11, 12.
    value = kernel([(1, 2)], [(1, 1, 2)]).item()
    tokens = (1 / 2 * 2 / 3) ** 0.5 + (1 / 2 * 1 / 3) ** 0.5
    bigrams = 2 * (1 / 2 * 1 / 3) ** 0.5
    assert value == pytest.approx((tokens + bigrams) / 2)
    assert kernel([(1, 2)], [(2, 1)], sizes=(1,)).item() == pytest.approx(1.0)
    assert kernel([(1, 2)], [(2, 1)], sizes=(2,)).item() == 0.0


def test_the_last_token_counts_and_one_token_has_ngrams_of_every_size() -> None:
    assert kernel([(5, 0)], [(5, 1)], sizes=(1,)).item() == pytest.approx(0.5)
    values = kernel([(5,)], [(5,), (6,), (5, 5)], sizes=(3,))
    torch.testing.assert_close(values, torch.tensor([[1.0, 0.0, 0.5**0.5]]))


@quick
@given(seed=seeds, extra=st.integers(1, 4), filler=st.integers(-100, 3))
def test_padding_changes_nothing(seed: int, extra: int, filler: int) -> None:
    a, b = some(seed), some(seed + 1, count=2)
    a_ids, a_mask = padded(a, filler)
    wider = ngram_kernel(pad(a_ids, (0, extra), value=filler), pad(a_mask, (0, extra)), *padded(b))
    torch.testing.assert_close(wider, kernel(a, b))


@quick
@given(seed=seeds)
def test_the_order_of_responses_and_the_names_of_tokens_do_not_matter(seed: int) -> None:
    a, b = some(seed), some(seed + 1, count=2)
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed)).tolist()
    torch.testing.assert_close(kernel([a[i] for i in order], b), kernel(a, b)[order])

    def renamed(side: list[Response]) -> list[Response]:
        return [tuple(50_000 - 7 * token for token in response) for response in side]

    torch.testing.assert_close(kernel(renamed(a), renamed(b)), kernel(a, b))


def test_prompts_are_kept_apart() -> None:
    prompts = [(some(seed), some(seed + 1, count=3)) for seed in (10, 20, 30)]

    def stacked(side: int) -> list[Tensor]:
        tensors = padded([response for prompt in prompts for response in prompt[side]])
        return [tensor.view(3, -1, tensor.shape[-1]) for tensor in tensors]

    (a_ids, a_mask), (b_ids, b_mask) = stacked(0), stacked(1)
    torch.testing.assert_close(
        ngram_kernel(a_ids, a_mask, b_ids, b_mask), torch.stack([kernel(*pair) for pair in prompts])
    )


def test_a_response_without_tokens_is_similar_to_none() -> None:
    ids, mask = padded([(1, 2), (1, 2)])
    mask[0] = False
    assert torch.equal(ngram_kernel(ids, mask, ids, mask)[0], torch.zeros(2))


# --- Scores, advantages and the MMD ---


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@quick
@given(seed=seeds, count=st.integers(2, 5), teachers=st.integers(1, 4))
def test_scores_and_advantages_are_their_sums(seed: int, count: int, teachers: int) -> None:
    among, with_teacher = symmetric(seed, count), similarities(seed + 1, count, teachers)
    scores, expected = [], []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        scores.append(float(with_teacher[i].mean()) - mean([float(among[i, j]) for j in others]))
        without_i = [
            float(with_teacher[j].mean())
            - (mean([float(among[j, k]) for k in others if k != j]) if count > 2 else 0.0)
            for j in others
        ]
        expected.append(scores[i] - mean(without_i))
    assert kernel_scores(among, with_teacher).tolist() == pytest.approx(scores)
    assert kernel_advantages(among, with_teacher).tolist() == pytest.approx(expected)


@quick
@given(seed=seeds, count=st.integers(2, 5))
def test_the_diagonal_is_never_read_and_prompts_are_kept(seed: int, count: int) -> None:
    among, with_teacher = symmetric(seed, 3, count), similarities(seed + 1, 3, count, 4)
    teacher = symmetric(seed + 2, 3, 4)
    values = [
        kernel_scores(among, with_teacher),
        kernel_advantages(among, with_teacher),
        mmd_squared(among, with_teacher, teacher),
    ]
    spoiled = among + torch.diag_embed(torch.full((3, count), torch.nan))
    for prompt in range(3):
        one = (spoiled[prompt], with_teacher[prompt])
        again = [kernel_scores(*one), kernel_advantages(*one), mmd_squared(*one, teacher[prompt])]
        for value, alone in zip(values, again, strict=True):
            torch.testing.assert_close(value[prompt], alone)


@pytest.mark.parametrize("count", [3, 4])
def test_an_advantage_moves_with_its_own_similarities_alone_as_the_score_does(count: int) -> None:
    """The baseline has no term in y_i: changing everything about y_i changes A_i by what R_i changes."""
    among, with_teacher = symmetric(0, count), similarities(1, count, 2)
    changed, changed_teacher = among.clone(), with_teacher.clone()
    changed[0, 1:] = changed[1:, 0] = similarities(2, count - 1)
    changed_teacher[0] += 0.3
    by_score = (kernel_scores(changed, changed_teacher) - kernel_scores(among, with_teacher))[0]
    by_advantage = (kernel_advantages(changed, changed_teacher) - kernel_advantages(among, with_teacher))[0]
    torch.testing.assert_close(by_advantage, by_score)


def test_mmd_squared_by_hand() -> None:
    within, between = torch.tensor([[9.0, 0.2], [0.2, 9.0]]), torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    teacher = torch.tensor([[9.0, 0.6], [0.6, 9.0]])
    assert mmd_squared(within, between, teacher).item() == pytest.approx(0.2 - 2 * 0.25 + 0.6)
    # Two copies of one response on either side are no distance apart; two unlike ones are negative.
    ones = torch.ones(2, 2)
    assert mmd_squared(ones, ones, ones).item() == 0.0
    assert mmd_squared(torch.eye(2), torch.eye(2), torch.eye(2)).item() == pytest.approx(-1.0)


def test_what_is_refused() -> None:
    one, two = torch.ones(1, 1), torch.ones(2, 2)
    for function in (kernel_scores, kernel_advantages):
        with pytest.raises(ValueError, match="two responses"):
            function(one, torch.ones(1, 3))
    for arguments in [(one, torch.ones(1, 2), two), (two, torch.ones(2, 1), one)]:
        with pytest.raises(ValueError, match="two responses"):
            mmd_squared(*arguments)
    for wrong in [(), (0, 1)]:
        with pytest.raises(ValueError, match="sizes"):
            kernel([(1,)], [(1,)], sizes=wrong)
