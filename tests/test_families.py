"""A policy of any family says and writes what its model does with each row by itself, and nothing else is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from amd_lightning.errors import ModelError
from amd_lightning.models.families import policy_for
from amd_lightning.policies import Policy
from amd_lightning.types import PromptBatch, Rollout
from tests.families import CAUSAL, FAMILIES, POSITIONS, gpt2, llama, opt, own_logits
from tests.helpers import EOS, VOCABULARY, prompts, rollout, t5

# One-token prompts and responses among longer ones, two responses to each prompt.
RAGGED = rollout([5, 1, 4, 1], [[3, 1], [5, 2], [1, 4], [1, 1]], [[True, False]] * 4)


@pytest.fixture(params=FAMILIES)
def policy(request: pytest.FixtureRequest) -> Policy:
    return FAMILIES[request.param]().double()


@pytest.fixture(params=CAUSAL)
def causal(request: pytest.FixtureRequest) -> Policy:
    return CAUSAL[request.param]().double()


def padded(prompt: PromptBatch, left: int, right: int, pad_id: int) -> PromptBatch:
    """The same prompts with more padding on both sides, of any id."""
    ids, mask = (torch.nn.functional.pad(part, (left, right)) for part in prompt)
    return PromptBatch(torch.where(mask.bool(), ids, pad_id), mask)


# -- what is said ----------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_those_of_each_response_by_itself(policy: Policy) -> None:
    found, own = policy.logits(policy.hidden(RAGGED)), own_logits(policy, RAGGED)
    assert found.shape == (18, VOCABULARY)
    torch.testing.assert_close(found, own, rtol=0, atol=1e-10)
    assert own.std(0).median() > 1e-2  # states differ, and so would a shift


@torch.no_grad()
def test_the_sides_of_padding_and_its_ids_change_nothing(causal: Policy) -> None:
    expected = causal.hidden(RAGGED)
    for left, right in ((3, 0), (0, 3), (2, 2)):
        for pad_id in (EOS, VOCABULARY + 7):  # a pad token added to the tokenizer alone
            wider = RAGGED._replace(
                prompt=padded(RAGGED.prompt, left, right, pad_id),
                response_ids=torch.nn.functional.pad(RAGGED.response_ids, (0, 2), value=7),
                response_mask=torch.nn.functional.pad(RAGGED.response_mask, (0, 2)),
            )
            torch.testing.assert_close(causal.hidden(wider), expected, rtol=0, atol=1e-12)


def test_gradients_are_those_of_each_response_by_itself(policy: Policy) -> None:
    target = torch.randn(18, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = dict(policy.named_parameters())

    def gradients(logits: Tensor) -> list[Tensor | None]:
        loss = (logits.log_softmax(-1) * target).sum()
        return list(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True))

    found, own = gradients(policy.logits(policy.hidden(RAGGED))), gradients(own_logits(policy, RAGGED))
    for name, ours, expected in zip(parameters, found, own, strict=True):
        assert ours is not None, name
        assert expected is not None, name
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6, msg=name)
        assert float(ours.abs().max()) > 1e-9 or "k_proj.bias" in name, name  # attention cancels a key's bias


def test_the_head_never_meets_a_prompt(causal: Policy) -> None:
    rows: list[int] = []
    head = causal.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, __, logits: rows.append(logits.shape[:-1].numel()))
    hidden = causal.hidden(RAGGED)
    causal.logits(hidden)
    handle.remove()
    assert rows == [0, 18]


def test_tied_and_untied_heads_are_those_of_the_model() -> None:
    pairs = (llama(tie_word_embeddings=True), llama()), (gpt2(), gpt2(tie_word_embeddings=False))
    for tied, untied in pairs:
        assert untied.parameter_count - tied.parameter_count == VOCABULARY * 16
        assert tied.head_parameters[0] is tied.model.get_input_embeddings().weight
        assert untied.head_parameters[0] is not untied.model.get_input_embeddings().weight
    assert opt().hidden_size == 8  # of what the head sees, not of the layers


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_beams", [1, 3])
@torch.no_grad()
def test_a_batch_writes_what_the_model_writes_to_each_prompt(causal: Policy, num_beams: int) -> None:
    some = prompts([6, 1, 3, 4, 2], pad_id=EOS)
    ids, mask = causal.respond(some, 9, sample=False, num_beams=num_beams)
    causal.model.generation_config = GenerationConfig(
        do_sample=False, num_beams=num_beams, max_new_tokens=9, eos_token_id=EOS, pad_token_id=EOS
    )
    written = []
    for row, (prompt, length) in enumerate(zip(some.input_ids, some.attention_mask.sum(1), strict=True)):
        model: Any = causal.model
        own = model.generate(prompt[None, :length], attention_mask=torch.ones(1, length))[0, length:]
        end = own.tolist().index(EOS) + 1 if EOS in own else 9
        assert ids[row][mask[row]].tolist() == own[:end].tolist()
        written.append(tuple(own.tolist()))
    assert len(set(written)) > 2


@pytest.mark.parametrize("model", [gpt2, opt], ids=["no pad token", "BOS is EOS"])
def test_a_response_ends_with_its_first_end_token(model: Callable[[], Policy]) -> None:
    policy = model()
    some = prompts([3] * 100 + [1] * 100, pad_id=EOS)
    torch.manual_seed(0)
    ids, mask = policy.respond(some, 12)
    ends = [row.tolist().index(EOS) + 1 if EOS in row else 12 for row in ids]
    assert mask.sum(-1).tolist() == ends
    assert len(set(ends)) > 3
    assert policy.model.config.pad_token_id in (None, 0)


def test_any_of_several_end_tokens_ends_a_response() -> None:
    policy = llama(eos_token_id=[EOS, 9, 4])
    assert policy.end_ids == [EOS, 9, 4]
    torch.manual_seed(0)
    ids, mask = policy.respond(prompts([3, 2] * 150), 12)
    last = {row[ended][-1].item() for row, ended in zip(ids, mask, strict=True) if ended.sum() < 12}
    assert last == {EOS, 9, 4}
    assert not torch.isin(ids[:, :-1][mask[:, 1:]], torch.tensor([EOS, 9, 4])).any()


def test_a_checkpoints_settings_do_not_shape_samples() -> None:
    policy = llama(vocab_size=60)
    policy.model.generation_config = GenerationConfig(
        do_sample=False, repetition_penalty=30.0, top_k=2, temperature=0.1, eos_token_id=7, min_new_tokens=3
    )
    one, draws = prompts([3]), 20_000
    torch.manual_seed(0)
    ids, _ = policy.respond(PromptBatch(*(part.expand(draws, -1) for part in one)), 1)
    state = Rollout(one, torch.full((1, 1, 1), EOS), torch.ones(1, 1, 1).bool(), torch.ones(1, 1).bool())
    with torch.no_grad():
        p = policy.log_probs(policy.hidden(state))[0].exp()
    frequencies = ids[:, 0].bincount(minlength=60) / draws
    assert (frequencies - p).abs().sum() < 0.05
    assert float(frequencies[VOCABULARY:].sum()) > 0.1  # rows beyond the tokenizer's words are drawn too


# -- what is refused -------------------------------------------------------------------------------


def test_more_tokens_than_positions_are_refused() -> None:
    policy = gpt2()
    assert policy.respond(prompts([POSITIONS - 7]), 8)[0].shape[1] <= 8
    with pytest.raises(ModelError, match=rf"GPT2LMHeadModel has {POSITIONS} positions and .* need 49; lower"):
        policy.respond(prompts([POSITIONS - 7]), 9)
    policy.hidden(rollout([POSITIONS - 7, 1], [[8], [20]], [[True]] * 2))
    with pytest.raises(ModelError, match=r"need 49; lower data\.max_prompt_tokens or data\.max_response"):
        policy.hidden(rollout([POSITIONS - 7], [[9]], [[True]]))


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot begin after an empty prompt; give every prompt some text"):
        llama().hidden(rollout([2, 0], [[3], [2]], [[True]] * 2))
    with pytest.raises(ModelError, match="empty prompt"):
        llama().respond(prompts([2, 0]), 3)


SMALL = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
REFUSED = [
    ("Gemma2", "Gemma2ForCausalLM", {}, "changes the logits of its head"),
    ("Cohere", "CohereForCausalLM", {}, "changes the logits of its head"),
    ("Granite", "GraniteForCausalLM", {"logits_scaling": 8.0}, "changes the logits of its head"),
    ("Bert", "BertLMHeadModel", {}, "is no causal model: its tokens see what follows them"),
    ("Bert", "BertForMaskedLM", {"eos_token_id": None}, "is no causal model: its tokens see"),
    ("Bert", "BertModel", {}, "has no language-modelling head"),
    ("Llama", "LlamaModel", {}, "has no language-modelling head"),
    ("Llama", "LlamaForSequenceClassification", {}, "has no language-modelling head"),
    ("T5", "T5EncoderModel", {"d_model": 8, "d_ff": 8, "num_layers": 1}, "has no language-modelling head"),
    ("Llama", "LlamaForCausalLM", {"eos_token_id": None}, "has no end token; set eos_token_id"),
]


def small(config: str, model: str, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    kind = getattr(transformers, f"{config}Config")
    found: PreTrainedModel = getattr(transformers, model)(kind(**SMALL | fields))
    return found


@pytest.mark.parametrize("config, model, fields, words", REFUSED)
def test_what_is_no_policy_is_refused(config: str, model: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=f"{model} {words}"):
        policy_for(small(config, model, **fields))


def test_a_cap_or_scale_is_found_in_low_precision_and_on_small_logits() -> None:
    for family, fields in (("Gemma2", {}), ("Cohere", {}), ("Granite", {"logits_scaling": 8.0})):
        with pytest.raises(ModelError, match="changes the logits of its head"):
            policy_for(small(family, f"{family}ForCausalLM", **fields).bfloat16())


@pytest.mark.parametrize(
    "config, model, fields",
    [
        ("Gemma2", "Gemma2ForCausalLM", {"final_logit_softcapping": None}),
        ("Cohere", "CohereForCausalLM", {"logit_scale": 1.0}),
        ("Gemma", "GemmaForCausalLM", {}),
        ("Mistral", "MistralForCausalLM", {}),
        ("GPTNeoX", "GPTNeoXForCausalLM", {}),
        ("Phi", "PhiForCausalLM", {}),  # a head with a bias
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_causal_models_pass(
    config: str, model: str, fields: dict[str, Any], dtype: torch.dtype
) -> None:
    found: Any = small(config, model, **fields)
    policy = policy_for(found.to(dtype)).double()
    some = Rollout(*rollout([3, 1], [[3], [2]], [[True]] * 2)[:4])
    some = some._replace(
        prompt=PromptBatch(some.prompt.input_ids % 20, some.prompt.attention_mask),
        response_ids=some.response_ids % 20,
    )
    with torch.no_grad():
        own = own_logits(policy, some)
        torch.testing.assert_close(policy.logits(policy.hidden(some)), own, rtol=0, atol=1e-6)


def test_the_check_leaves_mode_and_random_stream_alone() -> None:
    model = t5(dropout_rate=0.5).model.train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    policy = policy_for(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert policy.model.training
    assert not any(module._forward_hooks for module in policy.modules())
