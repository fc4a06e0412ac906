# `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-cluster lint format docs bench bench-critics bench-memory bench-objectives \
    constraints clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv with the pinned set of libraries and this project in it
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "Python 3.11 or newer is needed: make install PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[dev,cluster,optuna,docs]' -c constraints.txt
	@touch $@

demo: $(INSTALLED) ## a whole small distillation, offline, on a CPU; overrides go in ARGS='seed=1 ...'
	$(BIN)/python -m amd_lightning.run +experiment=samsum $(ARGS)

test: export OMP_NUM_THREADS ?= 1
test: $(INSTALLED) ## run the tests, a process a core; pytest's options go in ARGS='-k cache ...'
	$(BIN)/python -m pytest -n auto $(ARGS)

test-cluster: export OMP_NUM_THREADS ?= 1
test-cluster: $(INSTALLED) ## run jobs through a SLURM started for it; as root, needs slurm-wlm and munge
	$(BIN)/python -m pytest -m slurm tests/cluster $(ARGS)

lint: $(INSTALLED) ## check style, layout and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(INSTALLED) ## mend what ruff can mend
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(INSTALLED) ## build the documentation into build/docs, offline; a warning is an error
	PYTHONPATH=. NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict --clean -f docs/mkdocs.yml

PEERS := .venv-trl
$(PEERS)/.installed: # the peers' own environment, with the torch of ours
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0
	@touch $@

bench: $(INSTALLED) $(PEERS)/.installed ## ours against TRL, a bare loop and the arithmetic; ARGS='--quick --only trl_8k ...'
	$(BIN)/python experiments/speed/bench.py $(ARGS)

bench-objectives: $(INSTALLED) ## dense against chunked heads: time and peak memory; options in ARGS=...
	$(BIN)/python experiments/speed/objectives.py $(ARGS)

bench-critics: $(INSTALLED) ## what the critics cost at a real vocabulary; options in ARGS='--rounds 2 ...'
	$(BIN)/python experiments/speed/critic_share.py $(ARGS)

bench-memory: $(INSTALLED) ## the plan's memory estimate against measured peaks; options in ARGS='--cases kl ...'
	$(BIN)/python experiments/speed/memory.py $(ARGS)

constraints: ## resolve the ranges of pyproject.toml anew into constraints.txt; WITH='torch==2.13.0' holds one
	$(PYTHON) -m venv --clear .venv-fresh
	.venv-fresh/bin/python -m pip install '.[dev,cluster,optuna,docs]' $(WITH)
	{ sed '/^[^#]/,$$d' constraints.txt; .venv-fresh/bin/python -m pip freeze --exclude amd-lightning \
	    | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt
	rm -r .venv-fresh

clean: ## remove caches and builds; environments and runs stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find amd_lightning tests -name __pycache__ -type d -prune -exec rm -r {} +
