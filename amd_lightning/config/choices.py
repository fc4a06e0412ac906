"""The words a configuration may use, one enum a knob.

`StrEnum`s, since a plain enum prints as `Distance.rkl` in the names of runs.
"""

from enum import StrEnum


class Distance(StrEnum):
    """What is compared at a state."""

    moment_matching = "moment_matching"
    kl = "kl"
    rkl = "rkl"
    js = "js"
    tv = "tv"
    skew_kl = "skew_kl"
    skew_rkl = "skew_rkl"
    jeffreys = "jeffreys"
    akl = "akl"
    alpha_beta = "alpha_beta"
    nll = "nll"


class CriticKind(StrEnum):
    """What the critics are made of."""

    residual = "residual"
    learned = "learned"
    linear = "linear"
    tanh = "tanh"
    closed_form = "closed_form"
    sign = "sign"
    kernel = "kernel"


class Features(StrEnum):
    """What a critic with a head sees of a state."""

    both = "both"
    student = "student"
    teacher = "teacher"


class Actions(StrEnum):
    """Which actions the critics' expectations are taken over."""

    auto = "auto"
    full = "full"
    top_k = "top_k"
    sampled = "sampled"


class Returns(StrEnum):
    """What stands for the cost of a later state."""

    expected = "expected"
    sampled = "sampled"


class Baseline(StrEnum):
    """What is subtracted from the returns."""

    none = "none"
    time_step = "time_step"
    leave_one_out = "leave_one_out"


class AttnImplementation(StrEnum):
    """Which code computes attention."""

    eager = "eager"
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"


class Init(StrEnum):
    """What a student that is not loaded starts from."""

    fresh = "fresh"
    layers = "layers"


class Family(StrEnum):
    """What is built where a model is trained from scratch."""

    t5 = "t5"
    llama = "llama"


class Source(StrEnum):
    """Where rows come from."""

    embedded = "embedded"
    files = "files"
    hub = "hub"


class Overlong(StrEnum):
    """What happens to a text that is over its limit."""

    drop = "drop"
    truncate = "truncate"


class Normalise(StrEnum):
    """What a source's loss is a mean over."""

    token = "token"
    sequence = "sequence"


class AlphaPath(StrEnum):
    """How the critics' alpha gets from alpha_start to alpha."""

    geometric = "geometric"
    linear = "linear"


class Schedule(StrEnum):
    """How the learning rate falls."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class Writer(StrEnum):
    """Who wrote the off-policy responses."""

    data = "data"
    teacher = "teacher"


class Backend(StrEnum):
    """What writes the student's responses while it trains."""

    hf = "hf"
    vllm = "vllm"


class Progress(StrEnum):
    """How a stage shows where it is."""

    auto = "auto"
    bar = "bar"
    lines = "lines"
    off = "off"


class WandbMode(StrEnum):
    """Where W&B writes."""

    online = "online"
    offline = "offline"
    disabled = "disabled"
