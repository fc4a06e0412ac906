"""What the tests of the exact testbed hold, as numbers: tables in Markdown, on the standard output.

    python -m experiments.exact.tables [--vocabulary 8] [--horizon 4] [--seeds 100]

Every response of a small world is enumerated, in float64, with and without a token that ends responses. The
worlds, formulas and estimators are those of tests/exact; distances, critics and estimators the package's.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from amd_lightning.objectives.divergences import kl, tv
from amd_lightning.objectives.kernels import kernel_advantages, kernel_scores
from amd_lightning.objectives.moments import moment_gap
from amd_lightning.objectives.policy_gradient import mixture_importance, returns_after
from tests.exact import estimators
from tests.exact.cases import Case, make_case, student_gradient
from tests.exact.family import FAMILY, tanh_half_log_ratio
from tests.exact.formulas import frozen_critic
from tests.exact.testbed import (
    DTYPE,
    World,
    action_values,
    expected_return,
    random_logits,
    response_probabilities,
    visitation,
    worst_case_gap,
    worst_reward,
)

HERE = Path(__file__).parent
FINITE_STEP = 1e-5


def main() -> None:
    """The command."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    asked.add_argument("--vocabulary", type=int, default=8, help="V")
    asked.add_argument("--horizon", type=int, default=4, help="T")
    asked.add_argument("--seeds", type=int, default=100, help="teachers, students and rewards")
    options = asked.parse_args()
    torch.set_num_threads(1)
    worlds = [World(options.vocabulary, options.horizon, eos=eos) for eos in (None, 0)]
    print(
        f"**Identities, V = {worlds[0].vocabulary_size}, T = {worlds[0].horizon}, {options.seeds} seeds**\n"
    )
    table(["", "statement", "no EOS", "EOS"], identities(worlds, range(options.seeds)))
    print("**Frozen critics: their gap's gradient less the divergence's, the largest entry**\n")
    table(["critic of", "no EOS", "EOS"], critic_family(worlds))
    print("**The gradient in a state's logits, mean norm, at a distance from the teacher**\n")
    table(["critic", *(f"{distance:g}" for distance in DISTANCES)], fading(worlds[0]))
    for name in estimators.WORLDS:
        print(f"**Estimators, three responses a batch, {name}: f = sign, a random f, rkl**\n")
        table(["", "variance", "relative bias"], estimator_rows(name))
    print("**Drawn from a mixture with the teacher, one response: f = sign, a random f, rkl**\n")
    table(
        ["world, the teacher's share", "bias", "variance", "with no weight on the direct term"], mixed_rows()
    )
    print("**The kernel term: variance with its baseline over that without, by responses a prompt**\n")
    table(["teacher", *map(str, GROUPS)], kernel_rows())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, and an empty line behind it."""
    for cells in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(cells) + " |")
    print()


# -- identities ------------------------------------------------------------------------------------


def identities(worlds: Sequence[World], seeds: Sequence[int]) -> Iterable[list[str]]:
    """A row each: what is stated, and by how much it is missed."""
    for name, (statement, measure) in IDENTITIES.items():
        yield [name, statement, *(measure(world, seeds) for world in worlds)]


def values(case: Case) -> tuple[Tensor, Tensor]:
    """Q of the student's and of the teacher's actions."""
    return tuple(action_values(case.world, policy, case.reward) for policy in (case.q, case.p))  # type: ignore[return-value]


def gap(case: Case, critic: Tensor) -> Tensor:
    """The package's, at each state."""
    return moment_gap(case.p, case.q, critic)


def twice_tv(case: Case) -> Tensor:
    """The package's, at each state."""
    return 2 * tv(case.p.log(), case.q.log())


def error(found: Iterable[float]) -> str:
    """The largest, as it is printed."""
    return f"{max(map(abs, found)):.0e}"


def _i1(world: World, seeds: Sequence[int]) -> str:
    cases = [make_case(world, seed) for seed in seeds]
    return error(case.off(gap(case, values(case)[0])) - case.gap for case in cases)


def _i2(world: World, seeds: Sequence[int]) -> str:
    cases = [make_case(world, seed) for seed in seeds]
    return error(case.on(gap(case, values(case)[1])) - case.gap for case in cases)


def _i3(world: World, seeds: Sequence[int]) -> str:
    case = make_case(world, seeds[0])
    of_student, of_teacher = values(case)
    off, on = case.off(gap(case, of_teacher)), case.on(gap(case, of_student))
    return f"{case.gap:.3f} vs {off:.3f} / {on:.3f}"


def _i4(world: World, seeds: Sequence[int]) -> str:
    def moved(seed: int) -> float:
        case = make_case(world, seed)
        shifted = case.reward + random_logits(world, seed + 3)[:, :1]
        gaps = gap(case, shifted) - gap(case, case.reward)
        slopes = [frozen_critic(case.p, case.q, critic)[1] for critic in (shifted, case.reward)]
        return float(torch.cat([gaps, (slopes[0] - slopes[1]).flatten()]).abs().max())

    return error(map(moved, seeds))


def _i5(world: World, seeds: Sequence[int]) -> str:
    case = make_case(world, seeds[0])
    corners = torch.tensor(list(product((-1.0, 1.0), repeat=world.vocabulary_size)), dtype=DTYPE)
    best = torch.stack([gap(case, corner.expand_as(case.p)) for corner in corners]).amax(0)
    sign = gap(case, (case.p - case.q).sign())
    return error([float((best - twice_tv(case)).abs().max()), float((sign - twice_tv(case)).abs().max())])


def _i6(world: World, seeds: Sequence[int]) -> str:
    def missed(seed: int) -> float:
        case = make_case(world, seed)
        worst = case._replace(reward=worst_reward(world, case.p, case.q))
        return worst.gap - float(worst_case_gap(world, case.p, case.q))

    return error(map(missed, seeds))


def bounds(world: World, seed: int) -> list[tuple[float, float, float]]:
    """|gap|, the bound by the span of Q, the bound by T − t; for both sides."""
    case = make_case(world, seed, reward_bound=1.0)
    left = (world.horizon - world.time).to(DTYPE)
    found = []
    for expectation, critic in zip((case.off, case.on), values(case), strict=True):
        span = critic.amax(-1) - critic.amin(-1)
        sharp, plain = expectation(span / 2 * twice_tv(case)), expectation(left * twice_tv(case))
        found.append((abs(case.gap), sharp, plain))
    return found


def _i7(world: World, seeds: Sequence[int]) -> str:
    found = [one for seed in seeds for one in bounds(world, seed)]
    return f"{sum(size > plain for size, _, plain in found)} in {len(found)}"


def _i8(world: World, seeds: Sequence[int]) -> str:
    found = [one for seed in seeds for one in bounds(world, seed)]
    shrunk = sum(sharp / plain for _, sharp, plain in found) / len(found)
    return f"{sum(size > sharp for size, sharp, _ in found)} in {len(found)}; {shrunk:.2f} of I7's"


def _i9(world: World, seeds: Sequence[int]) -> str:
    p = random_logits(world, seeds[0]).softmax(-1)
    q = p.clone()
    q[0] = random_logits(world, seeds[0] + 1)[0].softmax(-1)
    case = Case(world, p, q, worst_reward(world, p, q))
    return f"{case.gap:.2f} > {case.off(twice_tv(case)):.2f}"


def _i11(world: World, seeds: Sequence[int]) -> str:
    def missed(seed: int, side: str) -> float:
        case = make_case(world, seed)
        frozen = student_gradient(world, seed, f"L_{side}", critic=(case.p - case.q).sign())
        return float((student_gradient(world, seed, f"tv_{side}") - frozen).abs().max())

    return error(missed(seed, side) for seed in seeds for side in ("off", "on"))


def _i12(world: World, seeds: Sequence[int]) -> str:
    def missed(seed: int) -> tuple[float, float]:
        case = make_case(world, seed)
        logits = random_logits(world, seed + 1).requires_grad_()
        (ascent,) = torch.autograd.grad(expected_return(world, logits.softmax(-1), case.reward), logits)
        of_student, of_teacher = values(case)
        on = student_gradient(world, seed, "L_on", critic=of_teacher)
        off = student_gradient(world, seed, "L_off", critic=of_student)
        return float((on + ascent).abs().max()), float((off + ascent).abs().max())

    on, off = zip(*map(missed, seeds), strict=True)
    return f"{error(on)}; {error(off)}"


def _i14(world: World, seeds: Sequence[int]) -> str:
    cases = [make_case(world, seed) for seed in seeds]
    shares = [
        case.off(twice_tv(case)) / (2 * world.horizon * case.off(kl(case.p.log(), case.q.log()))) ** 0.5
        for case in cases
    ]
    return f"{sum(share > 1 for share in shares)} in {len(shares)}; at most {max(shares):.2f} of it"


def _i15(world: World, seeds: Sequence[int]) -> str:
    def missed(seed: int) -> float:
        case = make_case(world, seed)
        logits = random_logits(world, seed + 1).requires_grad_()
        q = logits.softmax(-1)
        visits, gaps = visitation(world, q), moment_gap(case.p, q, case.reward)
        mean = (visits * gaps).sum() / visits.sum()
        (of_mean,) = torch.autograd.grad(mean, logits, retain_graph=True)
        (centred,) = torch.autograd.grad((visits * (gaps - mean.detach())).sum(), logits)
        return float((of_mean - centred / visits.sum().detach()).abs().max())

    return error(map(missed, seeds))


def _i16(world: World, seeds: Sequence[int]) -> str:
    case, logits = make_case(world, seeds[0]), random_logits(world, seeds[0] + 1)

    def value(logits: Tensor) -> float:
        q = logits.softmax(-1)
        return float((visitation(world, q) * moment_gap(case.p, q, case.reward)).sum())

    gradient = student_gradient(world, seeds[0], "L_on", critic=case.reward)
    missed = []
    for state, action in product(range(0, len(gradient), 7), range(world.vocabulary_size)):
        bump = torch.zeros_like(logits)
        bump[state, action] = FINITE_STEP
        numeric = (value(logits + bump) - value(logits - bump)) / (2 * FINITE_STEP)
        missed.append(numeric - float(gradient[state, action]))
    lower = value(logits - 1e-2 * gradient) < value(logits)
    return f"{error(missed)}; {'lower' if lower else 'NOT lower'}"


IDENTITIES: dict[str, tuple[str, Callable[[World, Sequence[int]], str]]] = {
    "I1": ("J(teacher) − J(student) = L_off, f = Q of the student", _i1),
    "I2": ("J(teacher) − J(student) = L_on, f = Q of the teacher", _i2),
    "I3": ("swapped pairings are wrong", _i3),
    "I4": ("f(s,a) + b(s): the same gap, the same gradient", _i4),
    "I5": ("sup over \\|f\\| ≤ 1: sign(p − q), of value 2TV", _i5),
    "I6": ("sup over \\|r\\| ≤ 1: Σ \\|d_p − d_q\\|", _i6),
    "I7": ("gap ≤ Σ E (T − t) 2TV, violations", _i7),
    "I8": ("the same with the span of Q, violations", _i8),
    "I9": ("\\|f\\| ≤ 1 does not bound the gap", _i9),
    "I11": ("∇2TV = ∇L with f = sign frozen, off and on", _i11),
    "I12": ("∇L_on, Q of the teacher frozen, = −∇J; the same off-policy", _i12),
    "I14": ("2TV_off ≤ √(2 T KL of responses), violations", _i14),
    "I15": ("∇(L_on / E len): gaps centred by it", _i15),
    "I16": ("finite differences of L_on; a step down", _i16),
}


# -- critics ---------------------------------------------------------------------------------------


def critic_family(worlds: Sequence[World]) -> Iterable[list[str]]:
    """By autograd, of the package's gap and of the package's divergence."""
    for name, member in FAMILY.items():
        found = []
        for world in worlds:
            log_p = random_logits(world, 0).log_softmax(-1)
            logits = random_logits(world, 1).requires_grad_()
            log_q = logits.log_softmax(-1)
            p, q = log_p.exp(), log_q.exp()
            gaps = moment_gap(p, q, member.critic(p, q).detach())
            one, other = (
                torch.autograd.grad(value.sum(), logits, retain_graph=True)[0]
                for value in (gaps, member.factor * member.package(log_p, log_q))
            )
            found.append(error([float((one - other).abs().max())]))
        yield [name, *found]


DISTANCES = (1.0, 0.1, 0.01)


def fading(world: World) -> Iterable[list[str]]:
    """How hard the ridge's and the sign critic pull as the student comes near."""
    teacher, direction = random_logits(world, 0), random_logits(world, 1)
    p = teacher.softmax(-1)
    critics: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "ridge (α .5, λ 2)": tanh_half_log_ratio,
        "sign": lambda p, q: (p - q).sign(),
    }
    for name, critic in critics.items():
        students = [(teacher + distance * direction).softmax(-1) for distance in DISTANCES]
        slopes = [frozen_critic(p, q, critic(p, q))[1] for q in students]
        yield [name, *(f"{float(slope.norm(dim=-1).mean()):.4f}" for slope in slopes)]


# -- estimators ------------------------------------------------------------------------------------

SIZE = 3
COSTS = ("sign", "gap", "rkl")


def estimator_rows(world: str) -> Iterable[list[str]]:
    """Right forms, then wrong ones; a cell has the costs' values in order."""
    cases = [estimators.setting(world, cost) for cost in COSTS]
    for forms in (estimators.right_forms, estimators.wrong_forms):
        for name in forms(cases[0]):
            found = [(case, estimators.estimate(case, SIZE, **forms(case)[name])) for case in cases]
            yield [
                name,
                " / ".join(f"{one.variance:.2f}" for _, one in found),
                " / ".join(f"{estimators.relative_bias(one.mean, case.of_sum):.2g}" for case, one in found),
            ]


SHARES = (0.2, 0.5)


def mixed_rows() -> Iterable[list[str]]:
    """Tokens weighed by their importance: relative bias, variance, and that with an unweighed direct term."""
    for name, share in product(estimators.WORLDS, SHARES):
        found = [mixed(estimators.setting(name, cost), share) for cost in COSTS]
        yield [f"{name} {share}", *(" / ".join(f"{one[i]:.2f}" for one in found) for i in range(3))]


def mixed(case: estimators.Setting, share: float) -> tuple[float, float, float]:
    """A row's numbers for one cost."""
    paths = [list(case.world.path(response)) for response in case.world.responses]
    states = torch.tensor([[s for s, _ in path] + [0] * (case.world.horizon - len(path)) for path in paths])
    log_p, log_q = (policy[states, case.ids].log() for policy in (case.p, case.q))
    weight = mixture_importance(log_p, log_q, share) * case.mask
    probability = response_probabilities(case.world, share * case.p + (1 - share) * case.q)
    later = (weight * returns_after(case.expected, case.mask, 1.0)).unsqueeze(-1) * case.score
    weighed, unweighed = (
        estimators.moments(probability, (later + of_direct.unsqueeze(-1) * case.direct).sum(1))
        for of_direct in (weight, case.mask.to(DTYPE))
    )
    return (
        estimators.relative_bias(weighed.mean, case.of_sum),
        weighed.variance,
        unweighed.variance,
    )


GROUPS = (2, 3, 4, 6, 8, 12, 16)
DRAWS = 20_000


def kernel_rows() -> Iterable[list[str]]:
    """`kernel_advantages` over `kernel_scores`, on drawn batches, 64 responses of the teacher."""
    case, similarity = estimators.kernel_setting("no_eos")
    generator = torch.Generator().manual_seed(0)

    def drawn(probability: Tensor, *shape: int) -> Tensor:
        count = int(torch.tensor(shape).prod())
        return torch.multinomial(probability, count, replacement=True, generator=generator).view(shape)

    teachers = {
        "the student itself": drawn(case.probability, 64),
        "a random policy": drawn(response_probabilities(case.world, case.p), 64),
        "the response least like the student's": (similarity @ case.probability).argmin().unsqueeze(0),
    }
    for name, teacher in teachers.items():
        cells = []
        for size in GROUPS:
            tuples = drawn(case.probability, DRAWS, size)
            weight = torch.full((DRAWS,), 1.0 / DRAWS, dtype=DTYPE)
            with_it, without = (
                estimators.moments(
                    weight, estimators.kernel_vectors(case, similarity, tuples, teacher, rule)
                ).variance
                for rule in (kernel_advantages, kernel_scores)
            )
            cells.append(f"{with_it / without:.2f}")
        yield [name, *cells]


if __name__ == "__main__":
    main()
