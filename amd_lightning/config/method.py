"""What is distilled how: objective, critics, rollouts."""

from dataclasses import dataclass

from amd_lightning.config.choices import (
    Actions,
    AlphaPath,
    Backend,
    Baseline,
    CriticKind,
    Distance,
    Features,
    Normalise,
    Returns,
    Writer,
)
from amd_lightning.config.knobs import knob, section


@dataclass
class HorizonConfig:
    """How far an action is held responsible for what follows it, on student-written states."""

    gamma: float = knob(
        0.0,
        "what a distance one step later counts; 0: nothing (the usual), 1: unbiased, as MiniLLM's returns",
        low=0.0,
        high=1.0,
    )
    returns: Returns = knob(
        Returns.expected,
        "expected: the distance itself at later states; sampled: estimated by the action written there",
    )
    baseline: Baseline = knob(
        Baseline.time_step,
        "subtracted from returns: none, the other responses' at the same step (time_step), or those to the "
        "same prompt alone (leave_one_out)",
    )
    centre: bool = knob(True, "subtract the token mean from the distances, so that ending early is no gain")
    length_normalise: bool = knob(False, "divide returns by the number of later tokens, as MiniLLM does")


@dataclass
class KernelConfig:
    """A sequence-level term: responses as near to the teacher's samples as these are to each other."""

    weight: float = knob(0.0, "weight of the term beside the distance; 0 leaves it out", low=0.0)
    teacher_samples: int = knob(8, "M, the teacher's samples for every prompt (cached)", low=1)
    ngram: int = knob(2, "longest n-gram whose counts make the similarity", low=1)


@dataclass
class AdaptiveBetaConfig:
    """A beta that starts at 1 and falls towards objective.beta as the validation loss rises (DistiLLM)."""

    step: float = knob(
        0.0, "by how much a rise of the validation loss lowers beta; 0: objective.beta throughout", low=0.0
    )
    tolerance: float = knob(
        0.1, "nats a token by which kl_off must be above its reference to count as a rise", low=0.0
    )


@dataclass
class ObjectiveConfig:
    """A distance x a beta: J = beta·off + (1 − beta)·on."""

    distance: Distance = knob(Distance.moment_matching, "what is compared at a state")
    beta: float = knob(
        0.5,
        "weight of off-policy states; 1 never generates, 0 uses student-written states alone",
        low=0.0,
        high=1.0,
    )
    normalise: Normalise = knob(
        Normalise.token, "each source's loss is a mean over its tokens, or over its sequences"
    )
    js_mixture: float = knob(0.5, "js: the teacher's share of the middle", low=0.0, high=1.0)
    skew: float = knob(
        0.1, "skew_kl, skew_rkl: how much of the first distribution is in the second", low=0.0, below=1.0
    )
    akl_head: float = knob(
        0.5, "akl: the teacher's probability that makes the head of its distribution", above=0.0, high=1.0
    )
    ab_alpha: float = knob(0.2, "alpha_beta: exponent of the teacher's probabilities", low=0.0)
    ab_beta: float = knob(0.7, "alpha_beta: exponent of the student's probabilities", low=0.0)
    teacher_temperature: float = knob(
        1.0, "divides the teacher's logits in the distance; the loss is not rescaled", above=0.0
    )
    student_temperature: float = knob(
        1.0, "divides the student's logits in the distance; the loss is not rescaled", above=0.0
    )
    sft_weight: float = knob(
        0.0,
        "share of maximum likelihood of the off-policy responses in the loss, the rest being the distance's "
        "(1 less the peers' kd_ratio)",
        low=0.0,
        below=1.0,
    )
    adaptive_beta: AdaptiveBetaConfig = section(AdaptiveBetaConfig, AdaptiveBetaConfig.__doc__ or "")
    horizon: HorizonConfig = section(HorizonConfig, HorizonConfig.__doc__ or "")
    kernel: KernelConfig = section(KernelConfig, KernelConfig.__doc__ or "")


@dataclass
class CriticConfig:
    """The Q-critics of distance=moment_matching."""

    kind: CriticKind = knob(
        CriticKind.residual,
        "residual (closed form + learned shift), learned (unbounded, ridge), linear and tanh (plain forms), "
        "closed_form, sign (2TV), kernel (unit ball over the teacher's token embeddings)",
    )
    alpha: float = knob(
        0.25,
        "the ridge's mixture alpha·teacher + (1 − alpha)·student: small covers modes, large seeks them",
        above=0.0,
        below=1.0,
    )
    alpha_start: float | None = knob(
        None,
        "alpha before the first update, from where it moves to critic.alpha over the run: small, to cover "
        "modes first and seek them later; null: critic.alpha throughout",
        above=0.0,
        below=1.0,
    )
    alpha_path: AlphaPath = knob(
        AlphaPath.geometric,
        "with alpha_start: geometric, the same factor in every update, or linear, the same step",
    )
    ridge: float = knob(
        2.0, "weight of the ridge; 2 at alpha .5 makes the closed form tanh(½ log p/q)", low=0.0
    )
    steps: int = knob(3, "K, critic ascent steps an update, on the same batch", low=1)
    rank: int = knob(64, "hidden width of the critic's head", low=1)
    features: Features = knob(Features.both, "whose hidden state the head sees: both, student or teacher")
    shared: bool = knob(False, "one critic for off- and on-policy states in place of two")
    actions: Actions = knob(
        Actions.auto,
        "what critic steps look at: top_k (the likeliest actions, and the rest lumped into one), sampled "
        "(draws from both policies), full (keeps [N, V] of a batch in memory); auto: full where the "
        "vocabulary is under 16 times top_k, else top_k",
    )
    top_k: int = knob(64, "actions=top_k and auto: how many", low=1)
    samples: int = knob(32, "actions=sampled: draws from each policy at each state", low=1)


@dataclass
class ReplayConfig:
    """A buffer of student-written responses with their prompts, for updates that do not write anew."""

    capacity: int = knob(0, "prompts it holds; until it is full, every update writes; 0: no buffer", low=0)
    refresh: float = knob(
        0.5, "probability that an update writes anew, once the buffer is full", low=0.0, high=1.0
    )
    decay: bool = knob(False, "let refresh fall linearly to 0 over the run, as DistiLLM does")
    shuffle: bool = knob(
        False,
        "updates that write train on prompts drawn from the buffer too, after adding to it (DistiLLM's GKD "
        "and ImitKD)",
    )


@dataclass
class RolloutConfig:
    """Who writes the states."""

    off_policy: Writer = knob(
        Writer.data, "off-policy responses: the data's, or the teacher's (sampled once, cached)"
    )
    temperature: float = knob(1.0, "temperature at which the student writes its own states", above=0.0)
    responses: int = knob(1, "responses that the student writes to each prompt", low=1)
    backend: Backend = knob(
        Backend.hf,
        "what writes the student's states: hf, transformers in place; vllm, an engine in the same process "
        "and on the same GPU, given the weights before every writing (extra vllm); evaluation is always hf's",
    )
    vllm_memory_share: float = knob(
        0.3,
        "what vLLM's engine may take of the GPU's memory, keys and values included "
        "(TRL's share beside a trainer)",
        above=0.0,
        below=1.0,
    )
    teacher_share: float = knob(
        0.0,
        "the teacher's share of the mixture that student-written states are drawn from; tokens are weighed "
        "by their importance (MiniLLM's teacher-mixed sampling)",
        low=0.0,
        below=1.0,
    )
    replay: ReplayConfig = section(ReplayConfig, ReplayConfig.__doc__ or "")
    reuse: int = knob(
        1,
        "updates in a row that one writing of the student serves, with its prompts (MiniLLM's inner epochs)",
        low=1,
    )
    teacher_top_k: int | None = knob(
        None,
        "at off-policy states, compare with the teacher's so many likeliest actions and the rest lumped into "
        "one, written down once (cached): training then asks no teacher there; null asks it live",
        low=1,
    )
