"""Models and tokenizers are saved for anybody to load, and what cannot be loaded is refused in words."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
)

from amd_lightning.data import sources
from amd_lightning.data.tokenizer import train_tokenizer
from amd_lightning.errors import HubUnreachableError, ModelError
from amd_lightning.models.loading import (
    build_model,
    build_t5,
    fingerprint,
    is_causal,
    load_policy,
    load_tokenizer,
    save_policy,
)
from amd_lightning.policies import Policy
from tests.data.hub_stub import HubStub
from tests.families import gpt2, llama, opt
from tests.helpers import bart, prompts, t5

TOKENIZER = train_tokenizer(["Shall we meet at noon? Yes!"], 262)
ARCHITECTURE = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
}
MODELS = {"built": lambda: build_t5(ARCHITECTURE, TOKENIZER, 270), "untied": t5, "bart": bart}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(
            input_ids=torch.tensor([[5, 6, 1]]), decoder_input_ids=torch.tensor([[0, 7]])
        ).logits
    return found


@pytest.mark.parametrize("name", MODELS)
def test_plain_transformers_loads_what_is_saved(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = MODELS[name]()
    save_policy(policy, TOKENIZER, tmp_path, max_tokens=12)
    ours = load_policy(str(tmp_path))
    assert "Loading weights" not in capfd.readouterr().err  # nor "Writing model shards"
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain), logits(policy.model), rtol=0, atol=0)
    torch.testing.assert_close(logits(ours.model), logits(policy.model), rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == TOKENIZER.get_vocab()
    assert load_tokenizer(str(tmp_path)).get_vocab() == TOKENIZER.get_vocab()
    settings = plain.generation_config
    assert (settings.max_new_tokens, settings.eos_token_id) == (12, policy.end_ids[0])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json"] * 4 + [".safetensors"]
    assert len(plain.generate(torch.tensor([[5, 6, 1]]), do_sample=False)[0]) <= 13


def test_a_built_t5_ends_and_starts_with_the_tokenizers_ids() -> None:
    torch.manual_seed(0)
    policy = build_t5(ARCHITECTURE, TOKENIZER, 270)
    assert policy.vocabulary_size == 270
    assert policy.end_ids == [1]
    config = policy.model.config
    assert (config.pad_token_id, config.decoder_start_token_id) == (0, 0)
    torch.manual_seed(0)
    again = build_t5(ARCHITECTURE, TOKENIZER, 270)
    torch.testing.assert_close(logits(again.model), logits(policy.model), rtol=0, atol=0)


@pytest.mark.parametrize("causal", [llama, gpt2, opt], ids=["llama", "gpt2", "opt"])
def test_causal_models_are_loaded_as_such(causal: Callable[[], Policy], tmp_path: Path) -> None:
    policy = causal()
    save_policy(policy, TOKENIZER, tmp_path, max_tokens=12)
    ids = torch.tensor([[5, 6, 1]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.generation_config.max_new_tokens == 12
    for model in (plain.eval(), load_policy(str(tmp_path)).model):
        assert type(model) is type(policy.model)
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, policy.model(ids).logits, rtol=0, atol=0)
    assert is_causal(str(tmp_path), None)


def test_an_encoder_decoder_is_not_causal(tmp_path: Path) -> None:
    save_policy(t5(), TOKENIZER, tmp_path, 4)
    assert not is_causal(str(tmp_path), None)


def test_a_tokenizer_without_a_pad_token_pads_with_eos(tmp_path: Path) -> None:
    bare = train_tokenizer(["Shall we meet at noon? Yes!"], 262)
    bare.pad_token = None
    bare.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token_id == bare.eos_token_id


def test_a_built_llama_has_the_asked_for_shape_and_attention() -> None:
    tokenizer = train_tokenizer(["Shall we meet at noon? Yes!"], 262, causal=True)
    fields = {**ARCHITECTURE, "num_decoder_layers": 2, "dropout_rate": 0.1, "family": "llama"}
    del fields["num_layers"]
    torch.manual_seed(0)
    policy = build_model(fields, tokenizer, 270)
    config = policy.model.config
    assert (config.hidden_size, config.head_dim, config.intermediate_size) == (16, 8, 24)
    assert (config.num_hidden_layers, config.num_attention_heads, config.attention_dropout) == (2, 2, 0.1)
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 1, 3)
    assert policy.vocabulary_size == 270
    assert policy.head_parameters[0] is policy.model.get_input_embeddings().weight
    for layer in policy.model.model.layers:
        attention: Any = layer.self_attn
        copied = attention.o_proj.weight @ attention.v_proj.weight
        torch.testing.assert_close(copied, torch.eye(16), rtol=0, atol=1e-5)
        q, k = attention.q_proj.weight.flatten(), attention.k_proj.weight.flatten()
        assert torch.corrcoef(torch.stack([q, k]))[0, 1] > 0.5
        assert 0.2 < float(q.std()) < 0.3  # 16 ** -.5


def test_a_built_model_is_of_its_family() -> None:
    torch.manual_seed(0)
    expected = build_t5(ARCHITECTURE, TOKENIZER, 270)
    torch.manual_seed(0)
    policy = build_model({**ARCHITECTURE, "family": "t5"}, TOKENIZER, 270)
    torch.testing.assert_close(logits(policy.model), logits(expected.model), rtol=0, atol=0)


def test_the_type_of_the_weights_is_the_one_asked_for(tmp_path: Path) -> None:
    save_policy(t5(), TOKENIZER, tmp_path, 4)
    for dtype in ("float32", "bfloat16"):
        policy = load_policy(str(tmp_path), dtype=dtype)
        assert {parameter.dtype for parameter in policy.parameters()} == {getattr(torch, dtype)}


# -- what cannot be loaded ---------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_policy, load_tokenizer])
def test_a_missing_folder_is_refused(load: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"there is no model folder .*/nowhere; give one that save_pretrained"
    ):
        load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("load", [load_policy, load_tokenizer])
def test_a_folder_without_a_model_is_refused(load: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{tmp_path} cannot be loaded: "):
        load(str(tmp_path))


def test_a_folder_with_pickled_weights_alone_is_refused(tmp_path: Path) -> None:
    policy = t5()
    policy.model.config.save_pretrained(tmp_path)
    torch.save(policy.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be loaded: .*safetensors"):
        load_policy(str(tmp_path))


def test_an_encoder_only_folder_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        eos_token_id=1,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is no causal model: its tokens see what follows them; use a"):
        load_policy(str(tmp_path))


@pytest.mark.parametrize("load", [load_policy, load_tokenizer, lambda path: fingerprint(path, None)])
def test_a_hub_id_is_refused_without_a_hub(load: Any) -> None:
    with pytest.raises(HubUnreachableError, match=r"the hub cannot be reached for .* google/t5-none: give a"):
        load("google/t5-none")


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert 2 * sources.PROBE_SECONDS <= 20.0
    with HubStub({}, "hang") as hub:
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        start = time.monotonic()
        with pytest.raises(HubUnreachableError):
            load_policy("google/t5-none")
        assert time.monotonic() - start < 20.0


# -- fingerprints ------------------------------------------------------------------------------------


def test_a_folder_is_identified_by_its_contents(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    for folder, seed in ((one, 0), (same, 0), (other, 1)):
        save_policy(t5(seed), TOKENIZER, folder, 4)
    assert fingerprint(str(one), None) == fingerprint(str(same), None) != fingerprint(str(other), None)


def test_responding_after_loading_ignores_the_saved_settings(tmp_path: Path) -> None:
    save_policy(t5(), TOKENIZER, tmp_path, max_tokens=3)
    policy: Policy = load_policy(str(tmp_path))
    policy.model.config.eos_token_id = 31
    torch.manual_seed(0)
    ids, _ = policy.respond(prompts([3] * 30), 9)
    assert ids.shape[-1] == 9
