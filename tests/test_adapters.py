"""LoRA: what learns, what is saved, and that adapters and merged weights are one policy."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from amd_lightning.data.tokenizer import train_tokenizer
from amd_lightning.errors import ModelError
from amd_lightning.models import adapters
from amd_lightning.models.adapters import (
    Lora,
    add_adapters,
    has_adapters,
    load_adapters,
    merged,
    save_adapters,
)
from amd_lightning.models.families import policy_for
from amd_lightning.models.loading import fingerprint, load_policy, load_tokenizer, save_policy
from amd_lightning.modules.optim import Optimisation
from amd_lightning.policies import Policy
from tests.helpers import VOCABULARY, bart, rollout, t5

LORA = Lora(rank=2, alpha=6.0, dropout=0.0, target_modules=("all-linear",))
TOKENIZER = train_tokenizer(["Shall we meet at noon? Yes!"], 262)
ROLLOUT = rollout([3, 4], [[3], [4]], [[True], [True]])


def llama() -> Policy:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=1,
        bos_token_id=None,
    )
    return policy_for(LlamaForCausalLM(config).eval())


def gpt2() -> Policy:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, eos_token_id=1, bos_token_id=None
    )
    return policy_for(GPT2LMHeadModel(config).eval())


FAMILIES: dict[str, Callable[[], Policy]] = {
    "t5": t5,
    "tied": lambda: t5(tied=True),
    "bart": bart,
    "llama": llama,
    "gpt2": gpt2,
}


def logits(policy: Policy) -> Tensor:
    with torch.no_grad():
        return policy.logits(policy.hidden(ROLLOUT))


def trained(policy: Policy, lora: Lora = LORA) -> Policy:
    """The policy with adapters that are not zero any more."""
    add_adapters(policy.model, lora)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return policy


@pytest.mark.parametrize("name", FAMILIES)
def test_fresh_adapters_change_nothing_and_alone_learn(name: str) -> None:
    policy = FAMILIES[name]()
    before = logits(policy)
    weights = {key: value.clone() for key, value in policy.state_dict().items()}
    add_adapters(policy.model, LORA)
    torch.testing.assert_close(logits(policy), before)
    learning = [key for key, value in policy.named_parameters() if value.requires_grad]
    assert learning
    assert all("lora_" in key for key in learning)
    optimizer = Optimisation(learning_rate=0.1).optimizer(policy.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(learning)
    for _ in range(2):  # the second moves A, whose gradient is 0 while B is
        optimizer.zero_grad()
        policy.log_probs(policy.hidden(ROLLOUT)).square().mean().backward()
        optimizer.step()
    after = policy.state_dict()
    assert all(value.abs().sum() > 0 for key, value in after.items() if "lora_" in key)
    frozen = {key.replace(".base_layer", ""): value for key, value in after.items() if "lora_" not in key}
    assert frozen.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(frozen[key], value, rtol=0, atol=0)
    assert (logits(policy) - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_alone_merged_and_read_again_they_are_one_policy(name: str, tmp_path: Path) -> None:
    policy = trained(FAMILIES[name]())
    expected = logits(policy)
    assert (expected - logits(FAMILIES[name]())).abs().max() > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft would look for its base on the hub
        save_adapters(policy.model, tmp_path, "somewhere/base", "v1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [adapters.CONFIG, adapters.WEIGHTS]
    assert adapters.base_of(tmp_path) == ("somewhere/base", "v1")

    again = FAMILIES[name]()
    load_adapters(again.model, tmp_path)
    torch.testing.assert_close(logits(again), expected)
    assert [key for key, value in again.named_parameters() if value.requires_grad] == [
        key for key, value in policy.named_parameters() if value.requires_grad
    ]
    plain = FAMILIES[name]()
    PeftModel.from_pretrained(plain.model, tmp_path)  # without this project
    torch.testing.assert_close(logits(plain), expected)

    whole = policy_for(merged(policy.model))
    torch.testing.assert_close(logits(whole), expected, rtol=1e-4, atol=1e-4)
    assert has_adapters(policy.model)
    assert not has_adapters(whole.model)
    assert whole.model.state_dict().keys() == FAMILIES[name]().model.state_dict().keys()
    assert all(parameter.requires_grad for parameter in whole.parameters())


def test_a_merged_student_loads_without_this_project(tmp_path: Path) -> None:
    policy = trained(t5())
    save_policy(policy, TOKENIZER, tmp_path, 12)
    assert not (tmp_path / adapters.CONFIG).exists()
    plain = policy_for(AutoModelForSeq2SeqLM.from_pretrained(tmp_path))
    torch.testing.assert_close(logits(plain), logits(policy), rtol=1e-4, atol=1e-4)
    assert has_adapters(policy.model)


def test_a_path_to_adapters_is_their_base_with_them_merged(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapters"
    save_policy(t5(), TOKENIZER, base, 12)
    folder.mkdir()
    policy = trained(t5())
    save_adapters(policy.model, folder, str(base), None)
    loaded = load_policy(str(folder))
    assert not has_adapters(loaded.model)
    torch.testing.assert_close(logits(loaded), logits(policy), rtol=1e-4, atol=1e-4)
    assert load_tokenizer(str(folder)).get_vocab() == TOKENIZER.get_vocab()

    before = fingerprint(str(folder), None)
    save_policy(t5(1), TOKENIZER, base, 12)
    assert fingerprint(str(folder), None) != before  # another base is another model


def test_adapters_stay_float32_on_a_model_in_bfloat16() -> None:
    policy = trained(FAMILIES["t5"]().to(torch.bfloat16))
    types = {
        key: value.dtype for key, value in policy.named_parameters() if value.requires_grad or "shared" in key
    }
    assert set(types.values()) == {torch.float32, torch.bfloat16}
    assert types["model.shared.weight"] is torch.bfloat16
    assert logits(policy).isfinite().all()
    assert {value.dtype for value in merged(policy.model).parameters()} == {torch.bfloat16}


def test_an_adapted_head_of_its_own_merges() -> None:
    policy = trained(t5(), Lora(2, 6.0, 0.0, ("lm_head", "q")))
    assert any("lora" in key for key, _ in policy.model.lm_head.named_parameters())
    torch.testing.assert_close(logits(policy_for(merged(policy.model))), logits(policy), rtol=1e-4, atol=1e-4)


def test_layers_that_are_not_there_and_a_tied_head_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"target_modules=\['nothing'\] does not fit T5ForCond.*; name layers"
    ):
        add_adapters(t5().model, Lora(2, 4.0, 0.0, ("nothing",)))
    with pytest.raises(ModelError, match=r"takes in the head, which shares its weights .*; leave it out"):
        add_adapters(t5(tied=True).model, Lora(2, 4.0, 0.0, ("lm_head",)))


def test_adapters_without_their_base_are_refused(tmp_path: Path) -> None:
    save_adapters(trained(t5()).model, tmp_path, str(tmp_path / "gone"), None)
    with pytest.raises(ModelError, match=r"on the model folder .*gone, which is not there; put it back"):
        load_policy(str(tmp_path))
    settings = json.loads((tmp_path / adapters.CONFIG).read_text())
    (tmp_path / adapters.CONFIG).write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="name no base; set base_model_name_or_path"):
        load_policy(str(tmp_path))
    (tmp_path / adapters.CONFIG).write_text("[")
    with pytest.raises(ModelError, match="is no JSON object"):
        load_policy(str(tmp_path))


def test_adapters_of_another_model_pickled_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    save_adapters(trained(t5(num_layers=2, num_decoder_layers=2)).model, folder, "base", None)
    with pytest.raises(ModelError, match=r"do not fit T5ForCond.* are too many; give the base"):
        load_adapters(t5().model, folder)
    (folder / adapters.WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"have no adapter_model.safetensors; save them again"):
        load_adapters(t5().model, folder)
    (folder / "adapter_model.bin").rename(folder / adapters.WEIGHTS)
    (folder / adapters.CONFIG).write_text('{"peft_type": "IA3", "base_model_name_or_path": "base"}')
    with pytest.raises(ModelError, match=r"are .*IA3, not LoRA"):
        load_adapters(t5().model, folder)
