"""The pictures of docs/pages/method.md: from the world of tests/exact, where every sum is exact, and from
what experiments/distance_by_beta measured.

    python docs/pictures.py     # writes docs/pages/images/*.png
"""

import csv
import sys
from pathlib import Path
from statistics import mean

import torch
from matplotlib.figure import Figure
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from amd_lightning.analysis.compare.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PALE,
    SKY,
    VERMILLION,
    colour,
    grid,
    marker,
)
from amd_lightning.objectives.moments import closed_form_critic, log_ratio, moment_gap
from tests.exact.testbed import (
    World,
    action_values,
    expected_return,
    game_value,
    random_logits,
    visitation,
)

IMAGES = Path(__file__).parent / "pages" / "images"
WORLD = World(vocabulary_size=6, horizon=4, eos=0)
TEACHER, STUDENT = 3, 11
METHODS = (
    ("moment_matching", "residual", "moment matching"),
    ("js", "", "JS"),
    ("skew_kl", "", "skew KL"),
    ("rkl", "", "reverse KL"),
    ("tv", "", "TV"),
    ("kl", "", "KL"),
)
"""Distance and critic as results.csv has them, and their name."""


def policies() -> tuple[Tensor, Tensor]:
    """log p and log q at every state [S, V]."""
    log_p, log_q = (random_logits(WORLD, seed).log_softmax(-1) for seed in (TEACHER, STUDENT))
    return log_p, log_q


def one_state() -> Figure:
    """The two distributions at the first state, two critics of them, and what each action adds to the gap."""
    log_p, log_q = (policy[:1] for policy in policies())
    p, q = log_p.exp(), log_q.exp()
    critics = {
        "closed form, α = .25": closed_form_critic(log_ratio(log_p, log_q), 0.25, 2.0),
        "sign": (p - q).sign(),
    }
    figure, [[left, middle, right]] = grid(1, 3, (11.0, 3.2))
    places = torch.arange(WORLD.vocabulary_size)
    left.bar(places - 0.2, p[0], 0.4, label="teacher p", color=BLUE)
    left.bar(places + 0.2, q[0], 0.4, label="student q", color=VERMILLION)
    left.set_title("at one state", fontsize=10)
    for shift, (name, f), shade in zip((-0.2, 0.2), critics.items(), (GREEN, PALE), strict=True):
        middle.bar(places + shift, f[0], 0.4, label=name, color=shade)
        gap = float(moment_gap(p, q, f))
        right.bar(places + shift, ((p - q) * f)[0], 0.4, label=f"{name}: sum {gap:.2f}", color=shade)
    middle.set_title("the critic's values f(s, a)", fontsize=10)
    right.set_title("(p − q) f: the sum is the moment gap", fontsize=10)
    for axis in (left, middle, right):
        axis.axhline(0, color=BLACK, linewidth=0.6)
        axis.set_xticks(places, ["EOS", *"abcde"])
        axis.set_xlabel("action (next token)", fontsize=9)
        axis.margins(y=0.25)
        axis.legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def identities() -> Figure:
    """I1, I2 and I3: which critic makes which gap the difference in return."""
    figure, [[off, on]] = grid(1, 2, (9.0, 4.0))
    for axis, source in ((off, "off"), (on, "on")):
        for right_one, shade, sign in ((False, PALE, "x"), (True, BLUE, "o")):
            returns, gaps = zip(*(_pairing(seed, source, right_one) for seed in range(60)), strict=True)
            whose = {("off", True): "student's", ("on", True): "teacher's"}.get((source, right_one))
            whose = whose or {"off": "teacher's", "on": "student's"}[source]
            label = f"f = the {whose} Q"
            axis.scatter(returns, gaps, s=22, color=shade, marker=sign, label=label)
        ends = axis.get_xlim()
        axis.plot(ends, ends, color=BLACK, linewidth=0.8, zorder=0)
        axis.set_xlabel("J(teacher) − J(student) of a random reward", fontsize=9)
        axis.legend(fontsize=9, frameon=False)
    off.set_ylabel("L off, on teacher-written states", fontsize=9)
    on.set_ylabel("L on, on student-written states", fontsize=9)
    return figure


def _pairing(seed: int, source: str, right_one: bool) -> tuple[float, float]:
    p, q = (random_logits(WORLD, 3 * seed + who).softmax(-1) for who in (0, 1))
    reward = torch.tanh(random_logits(WORLD, 3 * seed + 2))
    visits = visitation(WORLD, p if source == "off" else q)
    whose = (q if source == "off" else p) if right_one else (p if source == "off" else q)
    gap = game_value(visits, p, q, action_values(WORLD, whose, reward))
    return float(expected_return(WORLD, p, reward) - expected_return(WORLD, q, reward)), float(gap)


def one_dial() -> Figure:
    """The critics as functions of log p/q: the shapes behind the distances."""
    figure, [[bounded, others]] = grid(1, 2, (9.0, 3.8))
    ratio = torch.linspace(-4, 4, 401, dtype=torch.float64)
    for alpha, shade in ((0.1, SKY), (0.25, BLUE), (0.5, GREEN)):
        f = closed_form_critic(ratio, alpha, 1.0 / alpha)  # scaled to a top of 1
        bounded.plot(ratio, f, color=shade, label=f"closed form, α = {alpha:g}", linewidth=1.8)
    bounded.plot(ratio, ratio.sign(), color=BLACK, label="sign (2 TV)", linewidth=1.2, linestyle="--")
    bounded.set_title("bounded critics, scaled to a top of 1", fontsize=10)
    curves = {
        "p/q − 1: KL(p‖q)": (ratio.exp() - 1, ORANGE),
        "log p/q: KL(q‖p)": (ratio, VERMILLION),
        "½ log((p + q)/2q): JS": (0.5 * (0.5 * (1 + ratio.exp())).log(), GREEN),
    }
    for name, (f, shade) in curves.items():
        others.plot(ratio, f, color=shade, label=name, linewidth=1.8)
    others.set_ylim(-4, 4)
    others.set_title("frozen critics with a divergence's gradient", fontsize=10)
    for axis in (bounded, others):
        axis.axhline(0, color=BLACK, linewidth=0.5)
        axis.set_xlabel("log p/q at an action", fontsize=9)
        axis.set_ylabel("f", fontsize=9)
        axis.legend(fontsize=8.5, frameon=False)
    return figure


def demo() -> Figure:
    """What experiments/distance_by_beta measured: every seed as a point, means joined, by beta."""
    figure, [row] = grid(1, 2, (9.0, 3.8))
    with (ROOT / "experiments" / "distance_by_beta" / "results.csv").open(encoding="utf-8") as file:
        rows = [line for line in csv.DictReader(file) if line["updates"] == "500"]
    panels = (("sampled_accuracy", "sampled accuracy (↑)"), ("tv_on", "TV to the teacher, own states (↓)"))
    for axis, (metric, title) in zip(row, panels, strict=True):
        for place, (distance, critic, label) in enumerate(METHODS):
            points = [
                (float(line["beta"]), float(line["value"]))
                for line in rows
                if (line["distance"], line["metric"]) == (distance, metric)
                and line["critic"] == critic
                and line["alpha"] == ("0.25" if critic else "")
            ]
            betas = sorted({beta for beta, _ in points})
            means = [mean(value for beta, value in points if beta == at) for at in betas]
            axis.plot(betas, means, color=colour(place), marker=marker(place), markersize=5, label=label)
            axis.scatter(*zip(*points, strict=True), color=colour(place), s=6, alpha=0.5)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("β, the weight of off-policy states", fontsize=9)
        axis.set_xticks([0, 0.5, 1])
    row[1].legend(fontsize=8.5, frameon=False)
    return figure


PICTURES = {
    "one_state": one_state,
    "identities": identities,
    "one_dial": one_dial,
    "demo": demo,
}


def main() -> None:
    """Write all of them."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw().savefig(IMAGES / f"{name}.png", dpi=100, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    main()
