"""What every backend owes the rollouts, held by transformers and by vLLM's adapter on a stand-in for vLLM."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from amd_lightning.backends import Backend, HfBackend, VllmBackend, require_vllm
from amd_lightning.config.choices import Distance
from amd_lightning.errors import UserError
from amd_lightning.policies import Policy
from amd_lightning.rollouts import BackendSampler
from tests import fake_vllm
from tests.helpers import llama, prompts, t5
from tests.test_rules import demo

MAKE: dict[str, Callable[[], Backend]] = {"hf": HfBackend, "vllm": lambda: VllmBackend(64, 0.3)}
SHARP = 1e-6  # a temperature at which sampling is the most likely token


@pytest.fixture(params=MAKE)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    _stand_in(monkeypatch)
    return MAKE[request.param]()


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> VllmBackend:
    _stand_in(monkeypatch)
    return VllmBackend(64, 0.3)


def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)
    monkeypatch.setattr("amd_lightning.backends.require_vllm", lambda: None)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def likeliest(policy: Policy, max_tokens: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return policy.respond(prompts([2, 4, 3]), max_tokens, sample=False)


def test_it_writes_what_the_policy_would(backend: Backend) -> None:
    policy = llama()
    backend.sync(policy)
    ids, mask = backend.generate(prompts([2, 4, 3]), 6, SHARP)
    expected_ids, expected_mask = likeliest(policy)
    assert torch.equal(mask, expected_mask)
    assert torch.equal(ids[mask], expected_ids[mask])
    assert (ids[~mask] == policy.pad_id).all()


def test_it_writes_with_the_weights_of_the_last_sync(backend: Backend) -> None:
    for seed in (0, 1):
        backend.sync(llama(seed))
        ids, mask = backend.generate(prompts([2, 4, 3]), 6, SHARP)
        assert torch.equal(ids[mask], likeliest(llama(seed))[0][mask])


def test_a_response_ends_with_its_first_end_token_or_at_the_limit(backend: Backend) -> None:
    policy = llama()
    backend.sync(policy)
    torch.manual_seed(0)
    ids, mask = backend.generate(prompts([3] * 64), 5, 5.0)
    assert ids.dtype == torch.long
    assert mask.dtype == torch.bool
    assert ids.shape == mask.shape
    ended = torch.isin(ids, torch.tensor(policy.end_ids))
    for row, ends, kept in zip(ids, ended, mask, strict=True):
        length = int(ends.nonzero()[0]) + 1 if ends.any() else 5
        assert int(kept.sum()) == length <= 5, row
        assert kept[:length].all()
    assert 0 < int(ended.any(-1).sum()) < 64


def test_the_same_seed_writes_the_same_and_the_next_call_something_else(backend: Backend) -> None:
    backend.sync(llama())
    torch.manual_seed(3)
    first, second = (backend.generate(prompts([3] * 8), 6, 5.0)[0] for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(backend.generate(prompts([3] * 8), 6, 5.0)[0], first)
    assert first.shape != second.shape or not torch.equal(first, second)


def test_ids_beyond_the_vocabulary_are_never_written(backend: Backend) -> None:
    policy = llama()
    policy.limit_vocabulary(20)
    backend.sync(policy)
    ids, mask = backend.generate(prompts([3] * 32), 6, 50.0)
    assert int(ids[mask].max()) < 20


def test_vllm_gets_ids_without_padding_and_every_setting(vllm: VllmBackend) -> None:
    policy, some = llama(), prompts([2, 4, 3])
    vllm.sync(policy)
    vllm.generate(some, 6, 0.7)
    engine = vllm._engine
    assert [len(ids) for ids in engine.prompts] == [2, 4, 3]
    for how in engine.settings:
        assert (how.max_tokens, how.temperature, how.top_p, how.top_k) == (6, 0.7, 1.0, -1)
        assert how.stop_token_ids == policy.end_ids
    assert len({how.seed for how in engine.settings}) == 3
    vllm.sync(policy)
    assert vllm._engine is engine
    assert engine.forgotten == 2


def test_the_samplers_make_the_same_rollout_of_it(vllm: VllmBackend) -> None:
    policy, some = llama(), prompts([2, 4])
    one, other = BackendSampler(6, SHARP, 3)(policy, some), BackendSampler(6, SHARP, 3, vllm)(policy, some)
    assert torch.equal(one.response_mask, other.response_mask)
    assert torch.equal(one.response_ids[one.response_mask], other.response_ids[one.response_mask])
    assert not other.off_policy.any()


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.skipif("vllm" in sys.modules, reason="vLLM is there")
def test_a_missing_package_is_refused_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'amd-lightning\[vllm\]'"):
        require_vllm()


def test_an_encoder_decoder_is_refused(vllm: VllmBackend) -> None:
    with pytest.raises(UserError, match=r"encoder-decoder; set rollout\.backend=hf"):
        vllm.sync(t5())


VLLM = {"rollout__backend": "vllm", "trainer__accelerator": "gpu"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (VLLM, "causal models only, not T5"),
    ({"rollout__backend": "vllm"}, "needs a GPU"),
    ({**VLLM, "trainer__devices": 2}, "on one device, not 2"),
    ({**VLLM, "pair__student__lora__rank": 4}, "takes no adapters"),
    ({**VLLM, "rollout__teacher_share": 0.2}, "cannot mix in the teacher"),
    ({"trainer__compile": True, "trainer__devices": 2}, "trains on one device, not 2"),
    ({"trainer__compile": True, "pair__student__lora__rank": 4}, "compiles no adapters"),
    ({"trainer__compile": True, "pair__teacher__gradient_checkpointing": True}, "no gradient checkpointing"),
    ({"trainer__compile": True, "pair__teacher__quantization": "nf4"}, "compiles no quantized teacher"),
]


@pytest.mark.parametrize("values, message", REFUSED)
def test_what_a_backend_or_compiling_cannot_do_is_refused(values: dict[str, Any], message: str) -> None:
    from amd_lightning.config.rules import problems

    assert any(message in problem for problem in problems(demo(**values)))


def test_a_backend_that_never_writes_is_ignored_and_says_so() -> None:
    from amd_lightning.config.rules import ignored_options

    config = demo(objective__beta=1.0, objective__distance=Distance.kl, **VLLM)
    assert "rollout.backend" in ignored_options(config, ["rollout.backend"])
