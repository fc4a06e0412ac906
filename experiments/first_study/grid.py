"""What the first study is made of: tasks, methods, and the learning rates that each may choose from."""

from dataclasses import dataclass

TASKS = ("multi30k", "samsum", "strategyqa", "dolly", "multi30k_long", "samsum_long")
"""Of conf/experiment/first_study, in the order in which they are run. What ends in `long` is the same task
in many updates, the study's second regime."""

METHODS: dict[str, tuple[str, ...]] = {
    "sft": ("objective=sft",),
    "seqkd": ("objective=seqkd",),
    "kd": ("objective=kd",),
    "imitkd": ("objective=imitkd",),
    "minillm": ("objective=minillm",),
    "gkd": ("objective=gkd",),
    "distillm": ("objective=distillm",),
    "tv": ("objective=fdistill_tv",),
    "rkl_mixed": ("objective.distance=rkl", "objective.beta=0.5"),
    "amm_beta0": ("objective=amm", "objective.beta=0"),
    "amm_beta.25": ("objective=amm", "objective.beta=0.25"),
    "amm_beta.5": ("objective=amm", "objective.beta=0.5"),
    "amm_beta.75": ("objective=amm", "objective.beta=0.75"),
    "amm_beta1": ("objective=amm", "objective.beta=1"),
    "amm_learned": ("objective=amm", "critic=learned"),
    "amm_closed_form.1": ("objective=amm_closed_form", "critic.alpha=0.1"),
    "amm_closed_form.25": ("objective=amm_closed_form", "critic.alpha=0.25"),
    "amm_closed_form.5": ("objective=amm_closed_form", "critic.alpha=0.5"),
    "amm.5_beta1": ("objective=amm", "objective.beta=1", "critic.alpha=0.5"),
    "amm_slow_critic_beta1": ("objective=amm", "objective.beta=1"),
    "amm_slow_critic_beta.5": ("objective=amm", "objective.beta=0.5"),
    "amm_rising_linear": (
        "objective=amm", "objective.beta=1", "critic.alpha_start=0.01", "critic.alpha_path=linear",
    ),
    "amm_rising.01": ("objective=amm", "objective.beta=1", "critic.alpha_start=0.01"),
    "amm_rising.001": ("objective=amm", "objective.beta=1", "critic.alpha_start=0.001"),
    "amm_closed_form.25_beta1": ("objective=amm_closed_form", "objective.beta=1", "critic.alpha=0.25"),
    "amm_closed_form.5_beta1": ("objective=amm_closed_form", "objective.beta=1", "critic.alpha=0.5"),
    "amm_closed_form.25_beta1_longer": (
        "objective=amm_closed_form", "objective.beta=1", "critic.alpha=0.25", "optim.student.updates=330",
    ),
    "distillm_longer": ("objective=distillm", "optim.student.updates=330"),
}  # fmt: skip
"""Name -> what it adds to the task's experiment. The residual critic where none is named."""

RISING = ("amm_rising_linear", "amm_rising.01", "amm_rising.001")
"""Alpha rises to .25 over the run; the critic is slow and beta 1."""

COMPARED = (
    "sft", "seqkd", "kd", "minillm", "gkd", "distillm", "tv",
    "amm_beta.5", "amm_beta1", "amm_slow_critic_beta1", "amm_slow_critic_beta.5", *RISING,
    "amm_closed_form.25", "amm_closed_form.25_beta1",
)  # fmt: skip
LONG = (
    "sft", "kd", "gkd", "distillm", "tv", "amm_beta.5", "amm_beta1", "amm_slow_critic_beta1",
    "amm_slow_critic_beta.5", *RISING, "amm_closed_form.25_beta1",
)  # fmt: skip
METHODS_OF = {
    "samsum": COMPARED, "strategyqa": COMPARED, "dolly": COMPARED, "multi30k_long": LONG, "samsum_long": LONG,
}  # fmt: skip
"""Not all of METHODS where the first task told what to hold on the others."""

AT_ONE_RATE: dict[str, dict[str, float]] = {
    "multi30k": dict.fromkeys(
        ("amm.5_beta1", "amm_slow_critic_beta1", "amm_slow_critic_beta.5", *RISING,
         "amm_closed_form.25_beta1", "amm_closed_form.5_beta1", "amm_closed_form.25_beta1_longer",
         "distillm_longer"), 3e-3,
    ),
}  # fmt: skip
"""What was tried after the others had run, at the learning rate that they chose. `longer` ones take on
captions about the seconds that gkd takes for its 200 updates."""

EQUAL_SECONDS: dict[str, tuple[str, ...]] = {
    "multi30k": ("amm_closed_form.25_beta1_longer", "distillm_longer", "gkd"),
}
"""What is compared at about equal seconds; nothing else is compared with a `longer` one."""

LEARNING_RATES: dict[str, tuple[float, ...]] = {
    "multi30k": (3e-4, 1e-3, 3e-3, 1e-2),
    "samsum": (3e-4, 1e-3, 3e-3, 1e-2),
    "strategyqa": (2e-4, 5e-4, 1e-3, 2e-3),
    "dolly": (2e-4, 5e-4, 1e-3, 2e-3),
    "multi30k_long": (3e-3, 1e-2, 3e-2),
    "samsum_long": (3e-3, 1e-2, 3e-2),
}
"""Every method chooses among these on the validation split, with the first seed: it runs at the two in the
middle (the first two of three), and then at whatever stands beside the best so far. `CLOSE` calls are left
to all seeds."""

CLOSE = 0.05
"""A learning rate whose first seed validates within this share of the best has its other seeds run too, and
the mean decides: one seed and a few hundred responses tell no more."""

CRITICS = {"amm_beta": 3.0, "amm_learned": 3.0, "amm.5_": 3.0, "amm_slow_critic": 1 / 3, "amm_rising": 1 / 3}
"""How many times the student's learning rate the critic's is, by the beginning of the method's name: three
times was the project's default."""

SEEDS = (0, 1, 2)
"""These choose the learning rate; more of them (`--seeds 0 1 2 3 4`) run at it and choose nothing."""


@dataclass(frozen=True)
class Point:
    """One run of the study."""

    task: str
    method: str
    learning_rate: float
    seed: int

    @property
    def place(self) -> str:
        """Its directory, below the study's."""
        return f"{self.task}/{self.method}/lr{self.learning_rate:g}/seed{self.seed}"


def known_methods(task: str) -> list[str]:
    """All methods of a task, in their order."""
    return list(METHODS_OF.get(task, METHODS))


def grid_of(task: str, method: str) -> tuple[float, ...]:
    """The learning rates that a method may choose from."""
    only = AT_ONE_RATE.get(task, {}).get(method)
    return LEARNING_RATES[task] if only is None else (only,)
