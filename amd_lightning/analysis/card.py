"""The README.md of a trained student: a model card as the Hugging Face hub reads it."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from amd_lightning.analysis.runs import Results, heading
from amd_lightning.analysis.tables import models_markdown
from amd_lightning.data import dolly, iwslt, samsum, strategyqa
from amd_lightning.data.examples import PromptTemplate

HUB_IDS = {
    "samsum": samsum.HUB_ID,
    "dolly": dolly.HUB_ID,
    "iwslt": iwslt.HUB_ID,
    "strategyqa": strategyqa.HUB_ID,
}
LICENCES = {
    "samsum": "SAMSum is CC BY-NC-ND 4.0 (Samsung R&D Institute Poland): non-commercial, no derivatives.",
    "dolly": "databricks-dolly-15k is CC BY-SA 3.0 (Databricks, Inc.; parts from Wikipedia, same licence).",
    "iwslt": "IWSLT 2017 is CC BY-NC-ND 3.0 (TED Conference LLC): non-commercial, no derivatives.",
    "strategyqa": "StrategyQA is MIT by its hub card and its authors' repository.",
}
"""As the sources of the data sets state them."""
PIPELINES = {"samsum": "summarization", "iwslt": "translation"}
"""How the hub files an encoder-decoder model of this task; text-generation otherwise."""

SEQ2SEQ = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID")
model = AutoModelForSeq2SeqLM.from_pretrained("PATH_OR_ID")
prompt = {template!r}.replace("{{prompt}}", "TEXT")
inputs = tokenizer(prompt, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))"""
CAUSAL = """\
from transformers import pipeline

write = pipeline("text-generation", "PATH_OR_ID")
prompt = {template!r}.replace("{{prompt}}", "TEXT")
print(write(prompt, return_full_text=False, add_special_tokens={special})[0]["generated_text"])"""


def model_card(results: Results, config: Mapping[str, Any], template: PromptTemplate, student: Path) -> str:
    """The card, front matter first; no path of this machine but those in the command.

    Args:
        results: the content of results.json.
        config: that of config.yaml.
        template: that the prompts were written in.
        student: the model's folder.
    """
    settings = json.loads((student / "config.json").read_text(encoding="utf-8"))
    causal = not settings.get("is_encoder_decoder", False)
    parts = [
        f"---\n{yaml.safe_dump(_front(results, config, causal), sort_keys=False)}---",
        f"# A student for {results['task']}, distilled",
        "Trained with amd_lightning, which distils a language model by a distance × a β × a source of "
        "states; it loads with transformers alone.",
        _section("Data", _data(results)),
        _section("Teacher and student", _pair(results, config)),
        _section("Method", _method(results)),
        f"## Results\n\n{models_markdown(results).strip()}",
        _loading(template, causal),
        f"## Made by\n\n```\n{str(results['command']).replace(str(Path.home()), '~')}\n```",
        _versions(results),
        _section("Licence", _licence(results, config)),
    ]
    return "\n\n".join(parts) + "\n"


def _front(results: Results, config: Mapping[str, Any], causal: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation" if causal else PIPELINES.get(results["task"], "text-generation"),
        "tags": ["knowledge-distillation", "amd_lightning", str(results["objective"]["distance"])],
    }
    student = config["pair"]["student"]["path"]
    if student and _is_hub_id(student):
        found["base_model"] = student
    if results["source"] != "embedded":
        found["datasets"] = [HUB_IDS[results["task"]]]
    return found


def _data(results: Results) -> Iterator[str]:
    task, source = results["task"], results["source"]
    words = {
        "embedded": "generated text in the manner of the data set, for demonstration",
        "files": f"files in the layout of {HUB_IDS[task]}",
        "hub": f"{HUB_IDS[task]} from the hub",
    }
    yield f"task: {task}; {words[source]}"
    yield "rows: " + ", ".join(f"{count} {split}" for split, count in results["rows"].items())


def _pair(results: Results, config: Mapping[str, Any]) -> Iterator[str]:
    for who in ("teacher", "student"):
        model = config["pair"][who]
        name = _name(model["path"]) if model["path"] else f"trained from scratch ({results['pair']})"
        if model["path"] is None and model.get("init") == "layers":
            name = "made of layers of the teacher"
        revision = f" at revision {model['revision']}" if model["path"] and model["revision"] else ""
        yield f"{who}: {name}{revision}, {results[who]['parameters']:,} parameters"


def _method(results: Results) -> Iterator[str]:
    objective, rollout = results["objective"], results["rollout"]
    beta = float(objective["beta"])
    yield f"{heading(results)[0].partition(': ')[2]}; scale {results['scale']}, seed {results['seed']}"
    yield (
        f"β = {beta:g}: {beta:.0%} of the weight on states written by the {rollout['off_policy']}, "
        f"{1.0 - beta:.0%} on states that the student wrote while it was trained"
    )
    yield "rollouts: " + ", ".join(f"{key} {json.dumps(value)}" for key, value in rollout.items())
    stopped = results.get("stopped_at")
    made = results["updates"] if stopped is None else f"{stopped} of {results['updates']} (time was up)"
    yield f"updates: {made} at learning rate {results['learning_rate']:g}"


def _loading(template: PromptTemplate, causal: bool) -> str:
    code = CAUSAL if causal else SEQ2SEQ
    special = template.special_tokens != "none"
    text = f"## Loading\n\n```python\n{code.format(template=template.text, special=special)}\n```"
    if template.with_context:
        text += f"\n\nWith a context: `{template.with_context!r}`"
    return text


def _versions(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    commit = f"; commit {results['git_commit']}" if results["git_commit"] else ""
    return f"With {versions}{commit}."


def _licence(results: Results, config: Mapping[str, Any]) -> Iterator[str]:
    if results["source"] == "embedded":
        yield "data: generated by amd_lightning (Apache-2.0)"
    else:
        yield f"data: {LICENCES[results['task']]} Check the copy that was used."
    for who in ("teacher", "student"):
        path = config["pair"][who]["path"]
        if path:
            yield f"the {who} began as {_name(path)}, whose licence holds for what is made of it"
    yield "this card states no licence for the weights: whoever publishes them decides, within the above"


def _section(title: str, lines: Iterator[str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {line}" for line in lines)])


def _is_hub_id(path: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) is not None and not Path(path).exists()


def _name(path: str) -> str:
    """A hub id, or the last part of a folder's path: the rest is nobody else's business."""
    return path if _is_hub_id(path) or path.startswith("pypi:") else f"the folder {Path(path).name}"
