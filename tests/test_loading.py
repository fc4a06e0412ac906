"""How a model is loaded: number type, attention, checkpointing, pickles, code of its own; and what is said
where it cannot be."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5Config

from amd_lightning.data.tokenizer import train_tokenizer
from amd_lightning.errors import HubUnreachableError, ModelError
from amd_lightning.models import loading as models
from amd_lightning.models import locating as checkpoints
from amd_lightning.models.adapters import Lora, add_adapters
from amd_lightning.models.loading import (
    checkpoint_activations,
    fingerprint,
    load_policy,
    load_tokenizer,
    save_policy,
)
from amd_lightning.policies import Policy
from tests.data.hub_stub import COMMIT, HubStub
from tests.helpers import prompts, rollout, t5
from tests.test_adapters import gpt2, llama, logits, trained

TOKENIZER = train_tokenizer(["Shall we meet at noon? Yes!"], 262)
ROLLOUT = rollout([3, 4], [[3], [4]], [[True], [True]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_policy(t5(), TOKENIZER, tmp_path / "model", 4)
    return tmp_path / "model"


# -- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_attention_is_computed_by_the_code_asked_for(folder: Path, kind: str) -> None:
    policy = load_policy(str(folder), attn_implementation=kind)
    assert policy.model.config._attn_implementation == kind
    torch.testing.assert_close(logits(policy), logits(load_policy(str(folder))), rtol=1e-4, atol=1e-4)


def test_attention_that_is_not_installed_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be loaded: .*; install flash-attn, or leave pair"):
        load_policy(str(folder), attn_implementation="flash_attention_2")


def test_pickled_weights_are_taken_where_they_are_asked_for_by_name(tmp_path: Path) -> None:
    policy = t5()
    policy.model.config.save_pretrained(tmp_path)
    torch.save(policy.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"safetensors.*; pickled weights .*: pair.NAME.allow_pickle=true"):
        load_policy(str(tmp_path))
    torch.testing.assert_close(logits(load_policy(str(tmp_path), allow_pickle=True)), logits(policy))


def test_code_that_comes_with_a_model_is_run_where_it_is_asked_for_by_name(folder: Path) -> None:
    config = T5Config.from_pretrained(folder)
    config.auto_map = {"AutoConfig": "novel.Config", "AutoModelForSeq2SeqLM": "novel.Model"}
    config.save_pretrained(folder)
    text = (folder / "config.json").read_text().replace('"model_type": "t5"', '"model_type": "novel"')
    (folder / "config.json").write_text(text)
    (folder / "novel.py").write_text(
        "from transformers import T5Config, T5ForConditionalGeneration\n\n\n"
        "class Config(T5Config):\n    model_type = 'novel'\n\n\n"
        "class Model(T5ForConditionalGeneration):\n    config_class = Config\n"
    )
    with pytest.raises(ModelError, match=r"; with code that you have read, set pair.NAME.trust_remote_code"):
        load_policy(str(folder))
    policy = load_policy(str(folder), trust_remote_code=True)
    assert type(policy.model).__name__ == "Model"
    torch.testing.assert_close(logits(policy), logits(t5()))


def test_few_bits_need_bitsandbytes_and_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"4bit needs bitsandbytes: pip install 'amd-lightning\[quantiza"):
        load_policy(str(folder), quantization="4bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ModelError, match=r"quantization=8bit needs a CUDA GPU, and torch sees none"):
        load_policy(str(folder), quantization="8bit")


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_what_bitsandbytes_is_asked_for(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(models, "BitsAndBytesConfig", lambda **settings: asked.append(settings))
    monkeypatch.setattr("amd_lightning.ranks.local_rank", lambda: 3)
    assert models.quantized(bits, "bfloat16")["device_map"] == {"": 3}  # every process on its own GPU
    assert (asked[0]["load_in_8bit"], asked[0]["load_in_4bit"]) == (bits == "8bit", bits == "4bit")
    assert asked[0]["bnb_4bit_compute_dtype"] is torch.bfloat16


# -- gradient checkpointing --------------------------------------------------------------------------


def gradients(policy: Policy) -> list[Tensor]:
    """Of a training step with dropout, from one state of the random stream."""
    policy.train()
    torch.manual_seed(5)
    policy.log_probs(policy.hidden(ROLLOUT)).square().mean().backward()
    return [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]


def with_dropout(policy: Policy) -> Policy:
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
        for name in ("dropout", "attention_dropout"):  # rates that attention reads by itself
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.3)
    return policy


@pytest.mark.parametrize(
    "name, make",
    [
        ("t5", lambda: t5(num_layers=2, num_decoder_layers=2)),
        ("llama", llama),
        ("gpt2", gpt2),
        ("lora", lambda: trained(llama())),
        ("lora dropout", lambda: lora_with_dropout()),
    ],
)
def test_computing_activations_again_changes_no_gradient(name: str, make: Any) -> None:
    plain = with_dropout(make())
    again = copy.deepcopy(plain)
    checkpoint_activations(again)
    assert any(getattr(module, "gradient_checkpointing", False) for module in again.modules())
    expected, found = gradients(plain), gradients(again)
    assert len(expected) == len(found) > 0
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-7)


def lora_with_dropout() -> Policy:
    policy = llama()
    torch.manual_seed(1)
    add_adapters(policy.model, Lora(2, 4.0, 0.3, ("all-linear",)))
    for parameter in policy.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return policy


@pytest.mark.parametrize("make", [lambda: t5(num_layers=2, num_decoder_layers=2), llama], ids=["t5", "llama"])
def test_less_is_kept_for_the_backward_pass(make: Any) -> None:
    def kept(policy: Policy) -> int:
        sizes: list[int] = []

        def noted(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        policy.train()
        with torch.autograd.graph.saved_tensors_hooks(
            noted,
            lambda tensor: tensor,
        ):
            policy.hidden(ROLLOUT)
        return sum(sizes)

    plain, again = make(), make()
    checkpoint_activations(again)
    assert kept(again) < 0.6 * kept(plain)


def test_responses_are_the_same_with_checkpointing() -> None:
    plain, again = llama(), llama()
    checkpoint_activations(again)
    again.train()
    written = []
    for policy in (plain, again):
        torch.manual_seed(0)
        written.append(policy.respond(prompts([3, 5]), 6)[0])
    torch.testing.assert_close(written[0], written[1])


# -- what cannot be loaded ---------------------------------------------------------------------------


def test_weights_that_are_cut_off_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"cannot be loaded: .*; the file is damaged or cut off: copy"):
        load_policy(str(folder))


def test_a_config_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"model .* cannot be loaded: .*; give a folder that save"):
        load_policy(str(folder))


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    config = T5Config.from_pretrained(folder)
    config.d_ff += 1
    config.save_pretrained(folder)
    with pytest.raises(ModelError, match="cannot be loaded: "):
        load_policy(str(folder))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStub]:
    """A hub that serves the model folder of `t5()`, under whatever id."""
    save_policy(t5(), TOKENIZER, tmp_path / "served", 4)
    files = {path.name: path.read_bytes() for path in (tmp_path / "served").iterdir()}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HubStub(files) as stub:
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", stub.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stub.endpoint)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            stub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield stub


def test_a_model_comes_from_the_hub(hub: HubStub) -> None:
    policy = load_policy("google/t5-small-copy")
    torch.testing.assert_close(logits(policy), logits(t5()))
    assert load_tokenizer("google/t5-small-copy").get_vocab() == TOKENIZER.get_vocab()
    assert fingerprint("google/t5-small-copy", None) == {"hub": "google/t5-small-copy", "commit": COMMIT}
    hub.behaviour = 404  # the cached copy asks nothing
    asked = len(hub.requests)
    load_policy("google/t5-small-copy")
    assert len(hub.requests) == asked


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("load", [load_policy, load_tokenizer])
def test_a_refusal_of_the_hub_is_said_with_its_status(hub: HubStub, status: int, load: Any) -> None:
    hub.behaviour = status
    with pytest.raises(ModelError, match=rf"the hub refuses \w+ google/t5-none \({status}\): .*HF_TOKEN"):
        load("google/t5-none")


def test_a_hub_that_fails_is_no_hub(hub: HubStub) -> None:
    hub.behaviour = 500
    with pytest.raises(HubUnreachableError, match="the hub cannot be reached for model google/t5-none"):
        load_policy("google/t5-none")


def test_a_hub_that_stops_answering_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "hub_reachable", lambda: True)

    def load(path: str, **options: Any) -> None:
        if options.get("local_files_only"):
            raise OSError("not cached")
        raise OSError("long words of transformers") from ConnectionError("reset by peer")

    said = r"stopped answering for model google/t5-none \(reset by peer\): try again, or give a folder"
    with pytest.raises(HubUnreachableError, match=said):
        checkpoints.from_folder_or_hub(load, "google/t5-none", None, "model")
