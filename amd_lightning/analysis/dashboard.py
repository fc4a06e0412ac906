"""What a W&B project's dashboard and report show, as plain values: sections, panels, and the keys they read.

The keys are those that runs log (`modules/diagnostics.py`, `evaluation/harness.py`, `training/loggers.py`); a
test compares the finished specification with what real runs left behind.
"""

from typing import NamedTuple

LINE, SCATTER, BAR, TABLE, MEDIA = "line", "scatter", "bar", "table", "media"

METRICS = ("rouge_l", "bleu", "accuracy")
"""A task's own metric of text."""

BETA = "config.objective.beta"
RIVALS = ("moment_matching", "kl", "rkl")
"""The distances of the first comparison."""


class Panel(NamedTuple):
    """One chart.

    Attributes:
        kind: LINE (a key over the run, runs of one objective as their mean and range), SCATTER (a dot a run),
            BAR (the last value), TABLE or MEDIA (what was logged at the step that is chosen).
        title: with the unit, and which way is better where that is not plain.
        keys: what is drawn; a scatter's is one.
        x: what it is drawn against: a key of the history, BETA, or a key of the summary.
        from_zero: whether the y-axis begins there.
    """

    kind: str
    title: str
    keys: tuple[str, ...]
    x: str = "update"
    from_zero: bool = True


class Part(NamedTuple):
    """A section; `only` names the distances that its runs are limited to, () for all runs."""

    title: str
    text: str
    panels: tuple[Panel, ...]
    only: tuple[str, ...] = ()


def parts(metric: str) -> list[Part]:
    """All sections, in reading order.

    Args:
        metric: the task's own metric of text, such as "rouge_l" or "bleu".
    """
    sampled = f"sampled_{metric}"
    return [
        Part(
            "AMMD against KL and reverse KL",
            "Moment matching beside the two divergences that most work starts from: quality of the best and "
            "of the sampled responses, and each method on its rivals' yardsticks, on the validation split.",
            (
                Panel(LINE, f"{metric}, best response", (f"valid/{metric}",), from_zero=False),
                Panel(LINE, f"{metric}, sampled responses", (f"valid/{sampled}",), from_zero=False),
                Panel(BAR, f"{sampled} on the test split", (f"test/student/{sampled}",)),
                Panel(LINE, "KL to the teacher, off-policy (nats a token)", ("valid/kl_off",)),
                Panel(LINE, "reverse KL, on-policy (nats a token)", ("valid/rkl_on",)),
                Panel(LINE, "probe moment distance, on-policy", ("valid/probe_on",)),
            ),
            RIVALS,
        ),
        Part(
            "The β curve",
            "β = 1 trains on states of the data or the teacher alone, β = 0 on the student's own. A dot is a "
            "run's test split after its last update; runs of the same β differ in distance and seed.",
            (
                Panel(SCATTER, f"{sampled} against β", (f"test/student/{sampled}",), BETA, False),
                Panel(SCATTER, f"{metric} against β", (f"test/student/{metric}",), BETA, False),
                Panel(SCATTER, "TV off-policy against β", ("test/student/tv_off",), BETA),
                Panel(SCATTER, "TV on-policy against β", ("test/student/tv_on",), BETA),
            ),
        ),
        Part(
            "Both moment distances",
            "The gap that a run's own critic sees in its batches (the closed form at α = .5 where a method "
            "has no critic; nothing where it asks no teacher), and the probe moment distance, which a fresh "
            "critic measures on held-out states of every method alike.",
            (
                Panel(LINE, "moment gap, off-policy batches", ("train/moment_gap_off",)),
                Panel(LINE, "moment gap, on-policy batches", ("train/moment_gap_on",)),
                Panel(LINE, "moment gap / 2TV: how good the critic is", ("train/gap_over_tv",)),
                Panel(LINE, "probe moment distance, off-policy", ("valid/probe_off",)),
                Panel(LINE, "probe moment distance, on-policy", ("valid/probe_on",)),
            ),
        ),
        Part(
            "Step-wise total variation",
            "Half the L1 distance between teacher and student at a state, mean over tokens of the validation "
            "split; its sum over a response; and how it is spread over tokens.",
            (
                Panel(LINE, "TV at states of the data", ("valid/tv_off",)),
                Panel(LINE, "TV at the student's own states", ("valid/tv_on",)),
                Panel(LINE, "TV summed over a response of the student's", ("valid/tv_sequence_on",)),
                Panel(MEDIA, "TV of each token, data's states", ("valid/tv_off_tokens",)),
                Panel(MEDIA, "TV of each token, student's states", ("valid/tv_on_tokens",)),
            ),
        ),
        Part(
            "Cost against quality",
            "The same quality over what it took: seconds of distillation (compare them on one idle machine "
            "only), tokens that the teacher read, response tokens that the student learned from.",
            (
                Panel(
                    SCATTER,
                    f"{sampled} against seconds of distillation",
                    (f"test/student/{sampled}",),
                    "cost/seconds/distil",
                    False,
                ),
                Panel(
                    SCATTER,
                    f"{sampled} against tokens of the teacher",
                    (f"test/student/{sampled}",),
                    "cost/teacher_tokens",
                    False,
                ),
                Panel(LINE, f"{sampled} over seconds", (f"valid/{sampled}",), "time/seconds", False),
                Panel(
                    LINE,
                    f"{sampled} over tokens of the teacher",
                    (f"valid/{sampled}",),
                    "cost/teacher_tokens",
                    False,
                ),
                Panel(
                    LINE,
                    f"{sampled} over response tokens",
                    (f"valid/{sampled}",),
                    "train/response_tokens",
                    False,
                ),
            ),
        ),
        Part(
            "What they write",
            "The first sampled response to the same prompts at every validation, beside the reference and a "
            "sample of the teacher's; the test split's responses; the figures of each run.",
            (
                Panel(TABLE, "sampled responses at validations", ("valid/responses",)),
                Panel(TABLE, "best responses on the test split", ("test/responses",)),
                Panel(MEDIA, "figures", ("figures/curves", "figures/models")),
            ),
        ),
    ]
