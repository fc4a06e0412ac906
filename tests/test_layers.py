"""Imports point one way: the layers of the package, and who may know the configuration."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "amd_lightning"

DATA = "data.examples data.sources data.embedded data.tokenizer data.prompts data.loading"
EVALUATION = "ranks data.examples policies objectives types errors"
MODULES = f"ranks objectives critics policies rollouts replay types errors {DATA} evaluation"
COMPARED = (
    "analysis.runs analysis.compare.collect analysis.compare.methods analysis.compare.measures "
    "analysis.compare.statistics errors"
)
DRAWN = "analysis.compare.comparison analysis.compare.style analysis.compare.curves"
LOADING = "models.adapters models.students models.alignment models.locating models.loading models.pypi"
TRAINING = (
    "training.checkpoint_files training.state training.metrics_file metric_direction "
    "training.loggers training.preemption training.stopping training.sharding "
    "training.strategies training.tracking training.fitting training.torch_settings"
)
STAGES = f"{MODULES} data modules models.families cache {LOADING} teacher_cache {TRAINING}"

# module -> the modules of ours that it may import; a package stands for everything in it.
LAYERS = {
    "__main__": "",  # names the commands and knows none
    "errors": "",
    "types": "",
    "ranks": "",
    "objectives.moments": "",
    "objectives.divergences": "objectives.moments",
    "objectives.fused": "objectives.divergences objectives.moments",
    "objectives.support": "objectives.moments",
    "objectives.policy_gradient": "objectives.moments",
    "objectives.kernels": "",
    "objectives.selected": "",
    "objectives.chunked": "",
    "objectives.coarse": "",
    "critics": "types objectives.moments objectives.selected objectives.support",
    "writing": "",
    "policies": "types writing",
    "backends": "policies types errors",
    "training.compilation": "policies",
    "models.families": "policies types errors writing",
    "rollouts": "ranks backends policies types",
    "replay": "ranks rollouts policies types",
    "data.examples": "types errors",
    "data.sources": "data.examples errors",
    "data.embedded": "errors",
    "data.embedded_dolly": "data.embedded",
    "data.embedded_iwslt": "data.embedded",
    "data.embedded_strategyqa": "data.embedded",
    "data.tokenizer": "",
    "data.prompts": "data.examples errors",
    "data.loading": "data.examples data.sources errors",
    "data.samsum": f"{DATA} errors",
    "data.dolly": f"{DATA} data.embedded_dolly errors",
    "data.iwslt": f"{DATA} data.embedded_iwslt errors",
    "data.strategyqa": f"{DATA} data.embedded_strategyqa errors",
    "data.evaluation_sets": f"{DATA} errors",
    "data.preview": f"{DATA}",
    "data.__main__": "",  # runs show_data by its name
    "data.datamodule": "data types errors",
    "cache": "errors",
    "evaluation.metrics": EVALUATION,
    "evaluation.decoding": EVALUATION,
    "evaluation.distances": EVALUATION,
    "evaluation.probe": f"{EVALUATION} evaluation.distances",
    "evaluation.sequences": EVALUATION,
    "evaluation.harness": f"{EVALUATION} evaluation",
    "evaluation.lm_eval_tasks": "errors",
    "modules.optim": MODULES,
    "modules.diagnostics": MODULES,
    "modules.horizon": "ranks types objectives",
    "modules.adaptive": "",
    "modules.clock": "",
    "modules.logged": "ranks modules.clock modules.diagnostics types",
    "modules.states": "modules.adaptive policies replay rollouts types",
    "modules.stored_teacher": "policies types",
    "modules.likelihood": "objectives.divergences types",
    "modules.base": f"{MODULES} modules.optim modules.diagnostics modules.horizon modules.adaptive "
    "modules.clock modules.logged modules.states modules.stored_teacher modules.likelihood",
    "modules.divergence": f"{MODULES} modules",
    "modules.adversarial": f"{MODULES} modules",
    "models.initialisation": "",
    "models.adapters": "errors",
    "models.students": "models.adapters errors",
    "models.alignment": "policies errors",
    "models.locating": f"{DATA} models.adapters errors",
    "models.loading": (
        "ranks policies models.families models.initialisation cache models.adapters models.locating errors"
    ),
    "models.pypi": "cache errors",
    "teacher_cache": "data.examples objectives policies types",
    "training.checkpoint_files": "",
    "metric_direction": "",
    "training.torch_settings": "",
    "training.preemption": "errors",
    "training.stopping": "training.preemption ranks",
    "training.state": "ranks training.checkpoint_files errors",
    "training.metrics_file": "",
    "training.loggers": "evaluation modules.diagnostics errors",
    "training.tracking": (
        "ranks modules types errors training.checkpoint_files training.state "
        "training.metrics_file metric_direction training.stopping"
    ),
    "training.sharding": "policies types",
    "training.strategies": "ranks training.sharding",
    "training.profiling": "modules.clock",
    "training.fitting": (
        "ranks training.strategies data modules training.tracking training.state types errors"
    ),
    "config.choices": "",
    "config.knobs": "",
    "config.data": "config.choices config.knobs",
    "config.pair": "config.choices config.knobs",
    "config.method": "config.choices config.knobs",
    "config.running": "config.choices config.knobs",
    "config.schema": "config.knobs config.data config.pair config.method config.running",
    "config.pair_rules": "config.choices config.schema",
    "config.device_rules": "config.choices config.schema",
    "config.rules": "config",
    "planning.shapes": "errors",
    "planning.activations": "planning.shapes",
    "planning.memory": "planning.shapes planning.activations",
    "planning.compute": "planning.shapes planning.memory",
    "planning.advice": "planning.shapes planning.activations planning.memory",
    "planning.report": "planning",
    "analysis.runs": "errors",
    "analysis.figures": "analysis.runs errors",
    "analysis.methods": "analysis.runs analysis.figures errors",
    "analysis.tables": "analysis.runs errors",
    "sweeps.index": "errors",
    "analysis.compare.measures": "",
    "analysis.sweeps": (
        "analysis.runs analysis.figures analysis.tables analysis.compare.measures metric_direction "
        "sweeps.index"
    ),
    "analysis.compare.collect": "analysis.runs errors",
    "analysis.compare.wandb_runs": "analysis.runs analysis.compare.collect errors",
    "analysis.compare.identity": "analysis.runs analysis.compare.collect",
    "analysis.compare.methods": "analysis.compare.identity analysis.compare.collect errors",
    "analysis.compare.statistics": "",
    "analysis.compare.scores": f"{COMPARED} data.embedded evaluation.metrics",
    "analysis.compare.comparison": f"{COMPARED} analysis.compare.scores",
    "analysis.compare.tables": f"{COMPARED} analysis.compare.comparison",
    "analysis.compare.published": f"{COMPARED} analysis.compare.comparison analysis.compare.tables",
    "analysis.compare.responses": f"{COMPARED} analysis.compare.scores",
    "analysis.compare.style": "analysis.figures",
    "analysis.compare.curves": f"{COMPARED} analysis.compare.comparison analysis.compare.style",
    "analysis.compare.panels": f"{COMPARED} {DRAWN}",
    "analysis.compare.report_rows": f"{COMPARED} {DRAWN} analysis.compare.panels analysis.compare.tables",
    "analysis.compare.report": "analysis",
    "analysis.dashboard": "",
    "analysis.workspaces": "analysis.dashboard",
    "analysis.card": f"{DATA} data analysis.runs analysis.tables",
    "commands": "errors",
    "compare": "analysis commands errors",
    "dashboard": "analysis commands errors",
    "judging.questions": "",
    "judging.endpoint": "judging.questions errors",
    "judging.verdicts": "",
    "judging.material": "judging.questions errors",
    "judging.court": "judging cache errors",
    "push": "commands errors",
    "judge": "judging cache commands errors",
    "spec": STAGES,
    "starts": f"{STAGES} spec",
    "text": f"{STAGES} spec starts",
    "running.outcome": STAGES,
    "training.fine_tuning": STAGES,
    "stages": f"{STAGES} spec starts text running.outcome training.fine_tuning",
    "training.distillation": f"{STAGES} spec training.profiling",
    "pipeline": f"{STAGES} spec starts running.outcome stages training.distillation",
    "running.results": "running.outcome errors",
    "standalone": f"{STAGES} spec starts running.outcome stages running.results",
    "running.description": "config",
    "build_method": f"{STAGES} config backends training.compilation",
    "build": f"{STAGES} spec config running.description backends build_method",
    "sweeps.points": "",
    "sweeps.study": "sweeps.index",
    "sweeps.search": "analysis.runs metric_direction sweeps.points sweeps.study sweeps.index",
    "sweeps.launched": "errors",
    "cli": "config sweeps.points errors",
    "sweeps.sweep": (
        "analysis cli sweeps.launched sweeps.points training.preemption sweeps.search sweeps.index errors"
    ),
    "presets": "config cli",
    "show_data": f"{STAGES} spec text build cli config",
    "evaluate": f"{STAGES} evaluation spec text build cli config standalone running.results analysis",
    "plan": "planning config cli build build_method models.students objectives sweeps.points errors",
    "reference": "analysis modules.diagnostics compare dashboard judge push presets show_data evaluate cli",
    "running.resume": "training.checkpoint_files training.preemption sweeps.points errors",
    "running.directory": "running.resume",
    "running.launching": "ranks errors",
    "running.allocator": "",
    "running.one_run": (
        f"{STAGES} running.allocator running.description running.launching pipeline "
        "running.results running.resume running.directory training.stopping sweeps.study "
        "build config analysis"
    ),
    "run": (
        "running.one_run running.description running.launching training.preemption running.resume "
        "running.directory sweeps.search sweeps.study sweeps.sweep sweeps.index cli "
        "config errors"
    ),
}
# Nobody else sees a configuration object.
SCHEMA = {"config.data", "config.pair", "config.method", "config.running", "config.schema"}
PLUGIN = "hydra_plugins.amd_lightning_optuna"  # where Hydra looks for one
COMPOSING = {
    "sweeps.points",
    "cli",
    "sweeps.search",
    "sweeps.launched",
    "sweeps.sweep",
    "run",
    "presets",
    "show_data",
    "evaluate",
    "plan",
    "reference",
}
MAY_USE = {
    "omegaconf": SCHEMA | COMPOSING | {"build", "running.description", "running.one_run"},
    "hydra": COMPOSING,
}


def module_names(package: Path) -> dict[str, Path]:
    """Dotted name within the package -> file; a package's own name stands for its __init__.py."""
    names = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imports(file: Path, package: Path) -> Iterator[str]:
    """Every absolute dotted name that a file imports, `from a import b` as `a.b`, wherever it stands."""
    home = (package.name, *file.relative_to(package).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) + 1 - node.level] if node.level else ()
            parent = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{parent}.{alias.name}" for alias in node.names)


def internal(target: str, package: Path, names: dict[str, Path]) -> str | None:
    """The module of ours that an imported name belongs to, or None: it is somebody else's."""
    head, _, rest = target.partition(".")
    if head != package.name:
        return None
    while rest and rest not in names:
        rest = rest.rpartition(".")[0]
    return rest


def violations(package: Path) -> list[str]:
    """One line for each import against the table and each module that the table doesn't know."""
    names = module_names(package)
    found = []
    for name, file in names.items():
        is_package = file.name == "__init__.py"
        if not is_package and name not in LAYERS:
            found.append(f"{name} is unknown: add it to the table in tests/test_layers.py")
            continue
        allowed = set() if is_package else set(LAYERS[name].split())
        for target in sorted(set(imports(file, package))):
            ours = internal(target, package, names)
            if ours is None:
                library = target.partition(".")[0]
                if library in MAY_USE and name not in MAY_USE[library]:
                    found.append(f"{name} imports {library}")
            elif ours and not allowed & {ours, ours.partition(".")[0]}:
                found.append(f"{name} imports {ours}")
    return list(dict.fromkeys(found))  # a module imported for several names is one violation


def test_imports_follow_the_table() -> None:
    assert violations(PACKAGE) == []


def test_the_table_itself_points_one_way() -> None:
    seen: list[str] = []
    for name, allowed in LAYERS.items():
        for target in allowed.split():
            below = [other for other in LAYERS if other == target or other.startswith(f"{target}.")]
            own = target == name.partition(".")[0]  # siblings stand in any order
            assert below, f"{name} may import {target}, which is not there"
            assert own or set(below) <= set(seen), f"{name} may import {target}, which stands below it"
        seen.append(name)


PLANTS = {
    "a plain import": (
        "objectives/moments.py",
        "import amd_lightning.critics",
        "objectives.moments imports critics",
    ),
    "from a module": ("critics.py", "from amd_lightning.policies import Policy", "critics imports policies"),
    "a module from the package": (
        "pipeline.py",
        "from amd_lightning.config import schema as c",
        "pipeline imports config.schema",
    ),
    "a relative import": ("data/embedded.py", "from ..types import Tokens", "data.embedded imports types"),
    "a relative sibling": (
        "data/embedded.py",
        "from . import examples",
        "data.embedded imports data.examples",
    ),
    "inside a function": (
        "types.py",
        "def f():\n    from amd_lightning import errors",
        "types imports errors",
    ),
    "of a package": (
        "training/tracking.py",
        "import amd_lightning.analysis",
        "training.tracking imports analysis",
    ),
    "config of ours": (
        "config/data.py",
        "from amd_lightning.types import Tokens",
        "config.data imports types",
    ),
    "analysis of modules": (
        "analysis/tables.py",
        "from amd_lightning.modules.base import X",
        "analysis.tables imports modules.base",
    ),
    "omegaconf": ("pipeline.py", "from omegaconf import DictConfig", "pipeline imports omegaconf"),
    "hydra": ("config/rules.py", "import hydra.utils", "config.rules imports hydra"),
    "into an __init__": (
        "data/__init__.py",
        "from amd_lightning.data.examples import X",
        "data imports data.examples",
    ),
    "a new module": ("novel.py", "", "novel is unknown: add it to the table in tests/test_layers.py"),
    "a new nested module": (
        "modules/novel.py",
        "",
        "modules.novel is unknown: add it to the table in tests/test_layers.py",
    ),
}


def skeleton(package: Path) -> Path:
    """The modules of the table, all empty."""
    for module in LAYERS:
        file = package / f"{module.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        (file.parent / "__init__.py").touch()
    return package


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_violation_is_found(tmp_path: Path, name: str) -> None:
    place, code, complaint = PLANTS[name]
    package = skeleton(tmp_path / "amd_lightning")
    assert violations(package) == []
    with (package / place).open("a", encoding="utf-8") as file:
        file.write(f"\n{code}\n")
    assert violations(package) == [complaint]


def distribution(library: str) -> str:
    return {"hydra": "hydra-core", "yaml": "pyyaml"}.get(library, library.replace("_", "-"))


PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_library_that_is_imported_is_declared() -> None:
    project = PYPROJECT["project"]
    extras = [line for name, of in project["optional-dependencies"].items() if name != "dev" for line in of]
    declared = {re.split(r"[^A-Za-z0-9_-]", line)[0] for line in [*project["dependencies"], *extras]}
    used = {t.partition(".")[0] for file in module_names(PACKAGE).values() for t in imports(file, PACKAGE)}
    libraries = used - set(sys.stdlib_module_names) - {PACKAGE.name}
    assert {distribution(library) for library in libraries} - declared == set()


PLUGIN = "hydra_plugins.amd_lightning_optuna"
"""Where Hydra takes plugins from; it names a class of ours and does nothing else."""


def test_every_package_is_shipped() -> None:
    here = {
        ".".join(file.parent.relative_to(REPOSITORY).parts)
        for file in module_names(PACKAGE).values()
        if file.name == "__init__.py"
    }
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == here | {"amd_lightning.conf", PLUGIN}
