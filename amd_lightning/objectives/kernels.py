"""Whole responses compared: a kernel between token sequences, and the gradient of its squared MMD.

For a kernel k and responses y, y₂ of the student and y', y'₂ of the teacher to one prompt,

    MMD² = E k(y, y₂) − 2 E k(y, y') + E k(y', y'₂)              (Gretton et al. 2012, lemma 6)
    ½ ∇MMD² = −E ∇log q(y) · R(y),    R(y) = E k(y, y') − E k(y, y₂)

R is the reward of a response: similar to the teacher's, unlike the student's other ones. The loss is
−mean_i log q(y_i) · A_i with A_i of `kernel_advantages` as a constant, log q(y_i) the sum over its tokens.

G responses of the student and M of the teacher, drawn independently, to each prompt; leading dimensions
(`...`, prompts) are kept. Similarities are symmetric, and a response's with itself is never looked at.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


@torch.no_grad()
def ngram_kernel(
    a_ids: Tensor, a_mask: Tensor, b_ids: Tensor, b_mask: Tensor, sizes: Sequence[int] = (1, 2)
) -> Tensor:
    """Similarity of responses by the n-grams they share. [..., A, T] and [..., B, U] -> [..., A, B].

    The mean over n of Σ_g √(share of g in a · share of g in b), g the n-grams: the Bhattacharyya coefficient
    of their n-gram distributions. Positive semi-definite, between 0 and 1, and 1 for equal responses (and for
    those with the same n-grams: an MMD of 0 says that these agree on average, not that the policies do).

    Every token ends one n-gram of each size, that of an EOS included; what would lie before the first token
    is a token of its own, so that short responses have n-grams of every size. A response without tokens is
    similar to none. Masks are True up to and including EOS; what the padding holds is never looked at.
    The result is float32; the memory is (A + B)² max(T, U) numbers a prompt.

    Raises ValueError without sizes or for sizes below 1.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be positive, and at least one: {tuple(sizes)}")
    length = max(a_ids.shape[-1], b_ids.shape[-1])
    ids, mask = (
        torch.cat([pad(tensor, (0, length - tensor.shape[-1])) for tensor in pair], dim=-2)
        for pair in ((a_ids, b_ids), (a_mask, b_mask))
    )
    tokens = _ranks(ids.masked_fill(~mask, 0))
    grams = torch.zeros_like(tokens)
    kernel = torch.zeros((), dtype=torch.float32, device=ids.device)
    for size in range(1, max(sizes) + 1):
        # An n-gram is the (n − 1)-gram that ends one token earlier, 0 before the first, and a token.
        grams = _ranks(pad(grams[..., :-1], (1, 0)) * (tokens.amax() + 1) + tokens)
        if size in sizes:
            a, b = _roots_of_shares(grams, mask).split([a_ids.shape[-2], b_ids.shape[-2]], dim=-2)
            kernel = kernel + a @ b.mT
    return kernel / len(set(sizes))


def kernel_scores(student_student: Tensor, student_teacher: Tensor) -> Tensor:
    """R_i = mean_m k(y_i, y'_m) − mean_{j≠i} k(y_i, y_j), a reward. [..., G, G], [..., G, M] -> [..., G].

    Raises ValueError for fewer than two responses of the student.
    """
    among = _without_diagonal(student_student)
    return student_teacher.mean(-1) - among.sum(-1) / (among.shape[-1] - 1)


def kernel_advantages(student_student: Tensor, student_teacher: Tensor) -> Tensor:
    """R_i less a baseline that does not depend on y_i, to be maximised. [..., G, G], [..., G, M] -> [..., G].

    −mean_i ∇log q(y_i) · A_i has the expectation ½ ∇MMD². The mean of the other R_j would not do as a
    baseline: each holds k(y_j, y_i)/(G − 1), which takes that fraction of ½ ∇E k(y, y₂) off the gradient.
    The baseline is their mean without these terms,

        mean_{j≠i} [ mean_m k(y_j, y'_m) − mean_{l≠i,j} k(y_j, y_l) ];

    with G = 2 no l is left, and the first part is all there is.

    Unbiased as `kernel_scores` alone would be, and not always less noisy: the scores' mean is 0 already where
    the policies agree, and the baseline then only adds its own noise, most of it for G = 2. It pays where
    G is larger and the policies differ: against a random policy from about 8 on (experiments/exact).

    Raises ValueError for fewer than two responses of the student.
    """
    scores = kernel_scores(student_student, student_teacher)
    count = scores.shape[-1]
    among = _without_diagonal(student_student)
    with_teacher = student_teacher.mean(-1)
    expected = (with_teacher.sum(-1, keepdim=True) - with_teacher) / (count - 1)
    if count > 2:
        # All ordered pairs less those with i, over the (G − 1)(G − 2) that remain.
        pairs = among.sum((-2, -1)).unsqueeze(-1) - among.sum(-1) - among.sum(-2)
        expected = expected - pairs / ((count - 1) * (count - 2))
    return scores - expected


def mmd_squared(student_student: Tensor, student_teacher: Tensor, teacher_teacher: Tensor) -> Tensor:
    """The unbiased estimate of MMD². [..., G, G], [..., G, M], [..., M, M] -> [...].

    Gretton et al. 2012, lemma 6, a U-statistic: negative at times, having the mean 0 where policies agree.

    Raises ValueError for fewer than two responses on either side.
    """
    within = [
        _without_diagonal(kernel).sum((-2, -1)) / (kernel.shape[-1] * (kernel.shape[-1] - 1))
        for kernel in (student_student, teacher_teacher)
    ]
    return within[0] - 2.0 * student_teacher.mean((-2, -1)) + within[1]


def _without_diagonal(kernel: Tensor) -> Tensor:
    """0 on the diagonal. [..., G, G] -> [..., G, G]."""
    count = kernel.shape[-1]
    if count < 2:
        raise ValueError(f"at least two responses to a prompt are needed to compare them, not {count}")
    return kernel.masked_fill(torch.eye(count, dtype=torch.bool, device=kernel.device), 0.0)


def _ranks(codes: Tensor) -> Tensor:
    """Each code's rank among its prompt's, from 1: small numbers, equal for equal codes. [..., A, T] long."""
    ordered, order = codes.flatten(-2).sort(dim=-1)
    new = pad((ordered[..., 1:] != ordered[..., :-1]).long(), (1, 0), value=1)
    return torch.zeros_like(ordered).scatter(-1, order, new.cumsum(-1)).view_as(codes)


def _roots_of_shares(grams: Tensor, mask: Tensor) -> Tensor:
    """√(count / length) of every n-gram in each response: unit vectors. [..., A, T] -> [..., A, A·T + 1]."""
    responses, length = grams.shape[-2:]
    shape = (*grams.shape[:-1], responses * length + 1)
    counts = torch.zeros(shape, dtype=torch.float32, device=grams.device)
    counts = counts.scatter_add(-1, grams, mask.to(counts.dtype))
    return (counts / mask.sum(-1, keepdim=True).clamp(min=1)).sqrt()
