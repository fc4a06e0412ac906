"""vLLM as a backend of rollouts: its adapter against a stand-in with vLLM's calls, beside the hf backend."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from amd_lightning import vllm_sampler
from amd_lightning.errors import ModelError, UserError
from amd_lightning.policies import Policy
from amd_lightning.rollouts import HfSampler, Sampler
from amd_lightning.types import PromptBatch
from amd_lightning.vllm_sampler import VllmSampler
from tests.families import llama
from tests.helpers import prompts, t5


class Engine:
    """The calls of vllm.LLM that are made; writes 5 6 7 … as long as it is asked to, or ends early."""

    made: ClassVar[list["Engine"]] = []

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.weights: dict[str, torch.Tensor] = {}
        self.calls: list[tuple[Any, ...]] = []
        Engine.made.append(self)

    def collective_rpc(self, work: Any, args: tuple[Any, ...]) -> None:
        def load_weights(weights: Any) -> None:
            self.weights = {name: weight.clone() for name, weight in weights}

        model = SimpleNamespace(load_weights=load_weights)
        work(SimpleNamespace(model_runner=SimpleNamespace(model=model)), *args)

    def reset_prefix_cache(self) -> None:
        self.calls.append(("reset",))

    def generate(self, prompts: Any, settings: Any, use_tqdm: bool) -> list[Any]:
        assert len(prompts) == len(settings)
        self.calls.append(("generate", prompts, settings))
        rows = [list(range(5, 5 + one.max_tokens - place % 2)) for place, one in enumerate(settings)]
        for row in rows[1::2]:
            row[-1] = settings[0].stop_token_ids[0]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=row)]) for row in rows]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = Engine, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(vllm_sampler, "find_spec", lambda name: object())
    Engine.made = []
    return Engine


@pytest.fixture
def policy() -> Policy:
    return llama()


def written(sampler: Sampler, policy: Policy, prompt: PromptBatch) -> Any:
    torch.manual_seed(0)
    return sampler(policy, prompt)


@pytest.mark.parametrize("backend", ["hf", "vllm"])
def test_every_backend_answers_every_prompt_with_marked_responses(
    backend: str, policy: Policy, engine: type[Engine]
) -> None:
    prompt = prompts([3, 5])
    sampler = VllmSampler(6, 8, responses=2) if backend == "vllm" else HfSampler(6, responses=2)
    rollout = written(sampler, policy, prompt)
    assert rollout.prompt is prompt
    assert rollout.response_ids.shape[:2] == (2, 2) == rollout.off_policy.shape
    assert rollout.response_ids.shape == rollout.response_mask.shape
    assert rollout.response_ids.shape[-1] <= 6
    assert not rollout.off_policy.any()
    assert rollout.response_mask[..., 0].all()
    ends = torch.isin(rollout.response_ids, torch.tensor(policy.end_ids)) & rollout.response_mask
    assert (ends.sum(-1) <= 1).all()
    assert policy.hidden(rollout).shape[0] == rollout.response_mask.sum()


def test_prompts_reach_vllm_without_padding_and_each_response_has_a_seed(
    policy: Policy, engine: type[Engine]
) -> None:
    prompt = prompts([3, 5])
    rollout = written(VllmSampler(6, 8, temperature=0.7, responses=2), policy, prompt)
    (made,) = engine.made
    _, sent, settings = made.calls[-1]
    own = [ids[mask.bool()].tolist() for ids, mask in zip(*prompt, strict=True)]
    assert [one["prompt_token_ids"] for one in sent] == [own[0], own[0], own[1], own[1]]
    assert {(one.temperature, one.max_tokens, tuple(one.stop_token_ids)) for one in settings} == {
        (0.7, 6, tuple(policy.end_ids))
    }
    assert len({one.seed for one in settings}) == 4
    assert made.options["max_model_len"] == 14
    assert made.options["skip_tokenizer_init"]
    assert rollout.response_ids[0, 0].tolist() == [5, 6, 7, 8, 9, 10]
    assert rollout.response_mask[0].sum(-1).tolist() == [6, 5]
    again = written(VllmSampler(6, 8, temperature=0.7, responses=2), policy, prompt)
    assert [one.seed for one in engine.made[-1].calls[-1][2]] == [one.seed for one in settings]
    assert torch.equal(again.response_ids, rollout.response_ids)


def test_the_engine_is_started_once_and_has_the_weights_of_the_moment(
    policy: Policy, engine: type[Engine]
) -> None:
    sampler = VllmSampler(4, 8)
    sampler(policy, prompts([3]))
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(1.0)
    sampler(policy, prompts([3]))
    (made,) = engine.made
    assert made.calls.count(("reset",)) == 2
    assert set(made.weights) == {name for name, _ in policy.model.named_parameters()}
    for name, weight in policy.model.named_parameters():
        assert torch.equal(made.weights[name], weight)


def test_actions_that_the_pair_does_not_share_are_not_written(policy: Policy, engine: type[Engine]) -> None:
    policy.limit_vocabulary(policy.head_size - 3)
    VllmSampler(4, 8)(policy, prompts([3]))
    settings = engine.made[0].calls[-1][2]
    assert settings[0].allowed_token_ids == list(range(policy.head_size - 3))


def test_what_vllm_cannot_do_is_said(engine: type[Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"causal students alone; set rollout.backend=hf"):
        VllmSampler(4, 8)(t5(), prompts([3]))
    monkeypatch.setattr(vllm_sampler, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'amd_lightning\[vllm\]', or set rollout.backend=hf"):
        vllm_sampler.require_vllm()
