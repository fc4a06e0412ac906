"""What a policy says about a response is what its own model says, and what it writes is drawn from that."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from amd_lightning import policies
from amd_lightning.policies import Policy, until_end
from amd_lightning.types import Rollout, join_responses
from tests.families import FAMILIES, own_logits
from tests.helpers import EOS, PAD, VOCABULARY, prompts, rollout, t5


@pytest.fixture(params=FAMILIES)
def policy(request: pytest.FixtureRequest) -> Policy:
    return FAMILIES[request.param]()


def states(off_policy: bool = True, seed: int = 0) -> Rollout:
    return rollout([5, 2, 4], [[3], [5], [1]], [[off_policy]] * 3, seed=seed)


@torch.no_grad()
def test_logits_are_the_models_own_in_the_order_of_the_mask(policy: Policy) -> None:
    some = states()
    hidden = policy.hidden(some)
    assert hidden.shape == (9, policy.hidden_size)
    assert policy.vocabulary_size == VOCABULARY
    torch.testing.assert_close(policy.logits(hidden), own_logits(policy, some), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(policy.log_probs(hidden), policy.logits(hidden).log_softmax(-1))


@torch.no_grad()
def test_several_responses_to_a_prompt_are_several_rollouts(policy: Policy) -> None:
    one, other = states(), states(off_policy=False, seed=3)
    together = join_responses([one, other])
    torch.testing.assert_close(
        policy.logits(policy.hidden(together)), own_logits(policy, together), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_padding_changes_nothing(policy: Policy) -> None:
    some = states()
    wider = some._replace(
        prompt=type(some.prompt)(*(torch.nn.functional.pad(part, (0, 4)) for part in some.prompt)),
        response_ids=torch.nn.functional.pad(some.response_ids, (0, 3), value=7),
        response_mask=torch.nn.functional.pad(some.response_mask, (0, 3)),
    )
    torch.testing.assert_close(policy.hidden(wider), policy.hidden(some), rtol=1e-4, atol=1e-5)


def test_hidden_leaves_the_head_as_it_was() -> None:
    policy = t5()
    before = own_logits(policy, states())
    policy.hidden(states())
    torch.testing.assert_close(own_logits(policy, states()), before)


def test_log_probs_are_float32_for_a_bfloat16_model_and_float64_for_a_double() -> None:
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        policy = t5().to(dtype)
        log_probs = policy.log_probs(policy.hidden(states()))
        assert log_probs.dtype == expected
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(9, dtype=expected))


@torch.no_grad()
def test_a_temperature_divides_the_logits_and_nothing_else(policy: Policy) -> None:
    hidden = policy.hidden(states())
    for temperature in (0.5, 1.0, 3.0):
        expected = (policy.logits(hidden) / temperature).log_softmax(-1)
        torch.testing.assert_close(policy.log_probs(hidden, temperature), expected)
    torch.testing.assert_close(policy.log_probs(hidden, 1.0), policy.log_probs(hidden), rtol=0, atol=0)


def test_a_temperature_is_taken_in_float32_whatever_the_models_precision() -> None:
    policy = t5().bfloat16()
    hidden = policy.hidden(states())
    expected = (policy.logits(hidden).float() / 3.0).log_softmax(-1)
    torch.testing.assert_close(policy.log_probs(hidden, 3.0), expected)


def test_the_heads_parameters_are_all_that_a_logit_needs(policy: Policy) -> None:
    """Besides the features: with a gradient from the logits, tied or not."""
    some = states()
    with torch.no_grad():
        hidden = policy.hidden(some)
    parameters = policy.head_parameters
    policy.logits(hidden).square().sum().backward()
    reached = {name for name, value in policy.named_parameters() if value.grad is not None}
    assert reached == {
        name for name, value in policy.named_parameters() if any(value is own for own in parameters)
    }
    assert len(reached) == len(parameters) == 1


def test_token_embeddings_are_the_heads_rows(policy: Policy) -> None:
    hidden = policy.hidden(states()).detach()
    assert policy.token_embeddings.shape == (VOCABULARY, policy.hidden_size)
    assert not policy.token_embeddings.requires_grad
    bias = getattr(policy.model, "final_logits_bias", 0.0)
    torch.testing.assert_close(hidden @ policy.token_embeddings.T + bias, policy.logits(hidden))


def test_tied_parameters_count_once() -> None:
    tied, untied = t5(tied=True), t5()
    assert tied.parameter_count == sum(value.numel() for value in set(tied.model.parameters()))
    assert untied.parameter_count - tied.parameter_count == VOCABULARY * 16


# -- responding --------------------------------------------------------------------------------


def test_the_mask_ends_with_the_first_eos() -> None:
    ids = torch.tensor([[5, EOS, EOS, EOS], [EOS, 4, EOS, 4], [3, 4, 5, 6], [PAD, 9, EOS, 1]])
    assert until_end(ids, [EOS]).sum(-1).tolist() == [2, 1, 4, 3]
    assert until_end(ids, [EOS, 9]).sum(-1).tolist() == [2, 1, 4, 2]


def test_padding_with_eos_does_not_lengthen_a_response() -> None:
    policy = t5(sharpness=1.0, pad_token_id=EOS)
    torch.manual_seed(0)
    ids, mask = policy.respond(prompts([3] * 200, pad_id=EOS), 8)
    ends = [row.tolist().index(EOS) + 1 if EOS in row else 8 for row in ids]
    assert mask.sum(-1).tolist() == ends
    assert len(set(ends)) > 3  # early and late


def first_token_frequencies(policy: Policy, draws: int, **choice: Any) -> Tensor:
    some = prompts([3])
    many = type(some)(*(part.expand(draws, -1) for part in some))
    torch.manual_seed(0)
    ids, _ = policy.respond(many, 2, **choice)
    return ids[:, 0].bincount(minlength=policy.vocabulary_size) / draws


@torch.no_grad()
def first_token_probabilities(policy: Policy) -> Tensor:
    some = rollout([3], [[1]], [[True]])
    return policy.log_probs(policy.hidden(some))[0].exp()


SHIPPED = {
    "top_k": 3,
    "top_p": 0.5,
    "temperature": 0.3,
    "min_length": 4,
    "repetition_penalty": 30.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": [4, 5, 6, 7, 8],
    "forced_bos_token_id": 9,
    "num_beams": 2,
}


@pytest.mark.parametrize("shipped", [{}, SHIPPED], ids=["plain", "with shipped settings"])
def test_samples_are_drawn_from_the_whole_distribution(shipped: dict[str, object]) -> None:
    policy = t5(sharpness=1.0, vocab_size=80)  # transformers' own default keeps the 50 likeliest
    policy.model.generation_config = GenerationConfig(**shipped)
    draws = 20_000
    p = first_token_probabilities(policy)
    deviation = (first_token_frequencies(policy, draws) - p).abs() / (p * (1 - p) / draws).sqrt()
    assert deviation.max() < 4.0  # standard deviations; 80 tokens, one fixed seed
    assert p.min() > 1e-4  # so that a cut of the tail would show


def test_temperature_is_that_of_the_samples() -> None:
    policy = t5()
    p = first_token_probabilities(policy)
    sharper = p.square() / p.square().sum()
    frequencies = first_token_frequencies(policy, 20_000, temperature=0.5)
    assert (frequencies - sharper).abs().sum() < 0.05
    assert (p - sharper).abs().sum() > 0.1


@torch.no_grad()
def test_mixed_samples_are_drawn_from_the_mixture_at_the_students_temperature() -> None:
    student, teacher = t5(1), t5(2, d_model=24)
    p, q = first_token_probabilities(teacher), first_token_probabilities(student)
    mixture = 0.3 * p + 0.7 * q
    for temperature in (1.0, 0.5):
        expected = mixture ** (1 / temperature) / (mixture ** (1 / temperature)).sum()
        frequencies = first_token_frequencies(
            student, 20_000, temperature=temperature, mixed_with=teacher, mixed_share=0.3
        )
        assert (frequencies - expected).abs().sum() < 0.05
    assert min((mixture - q).abs().sum(), (mixture - p).abs().sum()) > 0.2


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_mixture_is_that_of_the_two_policies_at_every_step(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn from, against both policies' own words on what was written: cache, padding and all."""
    student, teacher = FAMILIES[family](), FAMILIES[family]()
    generator = torch.Generator().manual_seed(5)
    for parameter in teacher.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    steps: list[Tensor] = []
    own = policies._Mixture.of

    def recorded(self: Any, written: Tensor, scores: Tensor) -> Tensor:
        steps.append(own(self, written, scores))
        return steps[-1]

    monkeypatch.setattr(policies._Mixture, "of", recorded)
    some = prompts([4, 2, 3, 5, 6], pad_id=student.model.config.pad_token_id or PAD)
    torch.manual_seed(0)
    ids, mask = student.respond(some, 6, mixed_with=teacher, mixed_share=0.3)
    written = Rollout(some, ids.unsqueeze(1), mask.unsqueeze(1), torch.zeros(5, 1, dtype=torch.bool))
    p, q = (policy.log_probs(policy.hidden(written)).exp() for policy in (teacher, student))
    torch.testing.assert_close(torch.stack(steps, 1)[mask].exp(), 0.3 * p + 0.7 * q, rtol=1e-3, atol=1e-5)
    assert len(steps) > 2
    assert (p - q).abs().sum(-1).min() > 0.1


def test_the_best_response_is_the_likeliest_token_at_every_step() -> None:
    policy = t5()
    policy.model.generation_config = GenerationConfig(**{**SHIPPED, "do_sample": True})
    some = prompts([4, 2, 3])
    ids, mask = policy.respond(some, 6, sample=False)
    again, _ = policy.respond(some, 6, sample=False)
    torch.testing.assert_close(again, ids)
    written = Rollout(some, ids.unsqueeze(1), mask.unsqueeze(1), torch.zeros(3, 1, dtype=torch.bool))
    with torch.no_grad():
        likeliest = policy.logits(policy.hidden(written)).argmax(-1)
    torch.testing.assert_close(likeliest, ids[mask])


def test_beams_find_a_likelier_response_than_greedy() -> None:
    policy, some = t5(3), prompts([4] * 20)

    def log_likelihood(**choice: float) -> float:
        ids, mask = policy.respond(some, 5, sample=False, **choice)  # type: ignore[arg-type]
        written = Rollout(some, ids.unsqueeze(1), mask.unsqueeze(1), torch.zeros(20, 1, dtype=torch.bool))
        with torch.no_grad():
            log_probs = policy.log_probs(policy.hidden(written))
        return float(log_probs.gather(-1, ids[mask].unsqueeze(-1)).sum())

    assert log_likelihood(num_beams=4, length_penalty=0.0) > log_likelihood()


@pytest.mark.parametrize("training", [True, False])
def test_responding_leaves_mode_and_settings_as_they_were(training: bool) -> None:
    policy = t5()
    policy.train(training)
    policy.model.generation_config = GenerationConfig(**SHIPPED)
    settings, before = policy.model.generation_config, copy.deepcopy(policy.model.generation_config.to_dict())
    policy.respond(prompts([2]), 3)
    assert policy.model.training is training
    assert policy.model.generation_config is settings
    assert settings.to_dict() == before


def test_mode_and_settings_come_back_after_an_error() -> None:
    policy = t5().train()
    settings = policy.model.generation_config
    with pytest.raises(IndexError):
        policy.respond(prompts([2])._replace(input_ids=torch.tensor([[VOCABULARY + 5, 1]])), 3)
    assert policy.model.training
    assert policy.model.generation_config is settings


def test_no_dropout_while_responding() -> None:
    policy = t5(dropout_rate=0.5).train()
    some = prompts([3] * 10)
    first, second = (policy.respond(some, 6, sample=False)[0] for _ in range(2))
    torch.testing.assert_close(first, second)
