# The everyday commands. Every one of them first brings .venv up to date with the lock file.
#   make experiment ENV=CartPole-v1
#   make experiment ENV=CartPole-v1 SEEDS=8 ACCELERATOR=cuda ARGS="--any.flag value"

ENV ?= CartPole-v1

VENV := .venv
BIN := $(VENV)/bin
# A suffix chooses the lock file and its stamp: requirements.lock, requirements-cuda.lock, requirements-tpu.lock.
SUFFIX := $(addprefix -,$(filter-out cpu,$(ACCELERATOR)))
LOCK := requirements$(SUFFIX).lock
STAMP := $(VENV)/.installed$(SUFFIX)
ifneq ($(filter-out cpu cuda tpu,$(ACCELERATOR)),)
$(error ACCELERATOR is '$(ACCELERATOR)'; choose cuda, tpu, or leave it out for the CPU)
endif
# 3.11 comes first because the figures in the documentation were measured on it.
PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)
SBX_VENV := .venv-sbx
SBX_STAMP := $(SBX_VENV)/.installed
RLTOOLS_VENV := .venv-rltools
RLTOOLS_STAMP := $(RLTOOLS_VENV)/.installed
DEVICE_PACKAGES := gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
# Two processes, the cores of the smallest machine this must pass on.
WORKERS ?= 2

# A variable reaches the command only if it was given.
flag = $(if $($(2)),--$(1) '$($(2))')
TRAIN_FLAGS = $(call flag,algo,ALGO) $(call flag,seed,SEED) $(call flag,seeds,SEEDS) \
              $(call flag,steps,STEPS) $(call flag,method,METHOD) $(call flag,like,LIKE)

# The environment is made again where its Python is gone, or the folder was moved: its scripts hold absolute paths.
ifneq ($(shell test -x $(BIN)/python && cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif

.DEFAULT_GOAL := help
.PHONY: help venv experiment sweep evaluate report launch status grids examples bench bench-device device proof soak test lint format types lock clean FORCE

help: ## list targets and variables
	@echo "usage: make TARGET [VARIABLE=value ...]"; echo; echo "targets"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo; echo "variables (each is passed on only if given)"
	@printf '  %-12s %s\n' \
	  ENV 'environment id, e.g. CartPole-v1 (default), LunarLander-v2; any Gymnasium id' \
	  ALGO 'learner: ppo (default) or sac' \
	  SEED 'first seed' \
	  SEEDS 'how many seeds to train at once' \
	  STEPS 'environment steps per seed' \
	  METHOD 'dynamic: prune; dense: do not; small: few neurons from scratch (needs LIKE); linear: no hidden neuron' \
	  LIKE 'a run of whose final widths METHOD=small makes its actor' \
	  SWEEP 'values to compare, e.g. "learning_rate=1e-4,1e-3 prune.tolerance=0.01,0.05"; none: seeds alone' \
	  SPEC 'TOML file of a grid, for launch and status' \
	  RUN 'run directory, for evaluate; one or several for report' \
	  ARGS 'any further flags of the command, e.g. ARGS="--any.flag value"' \
	  SBX '1: make bench installs SBX too (.venv-sbx) and measures its SAC and PPO beside ours' \
	  RLTOOLS '1: make bench installs RLtools too (.venv-rltools) and measures it beside ours' \
	  ACCELERATOR 'cuda or tpu: install JAX for it too; the CPU is the default' \
	  PYTHON 'the Python (>= 3.11) to make .venv with; found by itself if not given' \
	  WORKERS 'test processes (2)'

venv: $(STAMP) ## make or update .venv from the lock file

experiment: $(STAMP) ## train, prune, compact and evaluate: ENV ALGO SEED SEEDS STEPS METHOD LIKE ARGS
	$(BIN)/prune-rl train '$(ENV)' $(TRAIN_FLAGS) $(ARGS)

sweep: $(STAMP) ## many seeds, and values of hyperparameters, in one program; no dense control: ENV SEEDS SWEEP ARGS
	$(BIN)/prune-rl train '$(ENV)' $(TRAIN_FLAGS) --no-control --sweep $(SWEEP) $(ARGS)

evaluate: $(STAMP) ## measure a run's compact policy again: RUN=runs/... ARGS
	@test -n '$(RUN)' || { echo 'make evaluate needs a run directory: make evaluate RUN=runs/...' >&2; exit 2; }
	$(BIN)/prune-rl evaluate '$(RUN)' $(ARGS)

report: $(STAMP) ## compare runs: RUN="runs/... runs/..." ARGS
	$(BIN)/prune-rl report $(RUN) $(ARGS)

launch: $(STAMP) ## train a grid of runs from one file; given again, it goes on: SPEC=grid.toml ARGS
	@test -n '$(SPEC)' || { echo 'make launch needs the file of a grid: make launch SPEC=grid.toml' >&2; exit 2; }
	$(BIN)/prune-rl launch '$(SPEC)' $(ARGS)

status: $(STAMP) ## how the runs of a grid are: SPEC=grid.toml
	@test -n '$(SPEC)' || { echo 'make status needs the file of a grid: make status SPEC=grid.toml' >&2; exit 2; }
	@$(BIN)/prune-rl status '$(SPEC)' $(ARGS)

grids: $(STAMP) ## the same grid on every engine, whose results have to be equal (minutes): ARGS=--kill
	$(BIN)/python -m experiments.grid_engines $(ARGS)

examples: $(STAMP) ## pruning in other JAX projects: run every script of experiments/examples
	@set -e; for example in experiments/examples/*.py; do echo "$$example"; $(BIN)/python "$$example"; done

bench: $(STAMP) $(if $(SBX),$(SBX_STAMP)) $(if $(RLTOOLS),$(RLTOOLS_STAMP)) ## speed in ratios: SBX RLTOOLS ARGS="--only bare"
	$(BIN)/python -m experiments.benchmarks $(if $(SBX),--sbx-python $(SBX_VENV)/bin/python) \
	  $(if $(RLTOOLS),--rltools-python $(RLTOOLS_VENV)/bin/python) $(ARGS)

bench-device: $(STAMP) ## many seeds on this machine's GPU or TPU, in ratios, 8 minutes at most: ACCELERATOR=cuda ARGS
	$(BIN)/python -m prune_rl.bench_device $(ARGS)

device: $(STAMP) ## exported C code on an emulated Cortex-M4, installs what it needs (Debian): ARGS="runs/..."
	@$(BIN)/python -c "import sys; from experiments.device.cortex_m4_emulator import missing; sys.exit(bool(missing()))" || { \
	  $(if $(filter 0,$(shell id -u)),,sudo) apt-get update -qq && \
	  $(if $(filter 0,$(shell id -u)),,sudo) apt-get install -y --no-install-recommends $(DEVICE_PACKAGES); } || \
	  echo 'make device: apt-get could not install $(DEVICE_PACKAGES)' >&2
	$(BIN)/python -m experiments.device $(ARGS)

proof: $(STAMP) ## 200 random policies in C, int8, ONNX Runtime and StableHLO against NumPy (about a minute)
	PRUNE_RL_RANDOM_POLICIES=200 $(BIN)/python -m pytest -n $(WORKERS) $(addprefix tests/export/test_,c.py quantize.py \
	  onnx.py stablehlo.py) $(ARGS)

soak: $(STAMP) ## kills, damages and options at random for an hour: ARGS="--minutes 10 --seed 1"
	$(BIN)/python -m experiments.soak $(ARGS)

test: $(STAMP) ## run the tests: ARGS="-k prox"
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(STAMP) ## check style, format and the list of packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/python -c "import configparser as c, sys; from setuptools import find_packages; s = c.ConfigParser(); \
	  s.read('setup.cfg'); gone = set(find_packages(include=['prune_rl*'])) - set(s['options']['packages'].split()); \
	  sys.exit(f'setup.cfg: [options] packages lacks {sorted(gone)}' if gone else 0)"

format: $(STAMP) ## put the code into the checked format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## check types
	$(BIN)/mypy

lock: ## resolve setup.cfg into the lock files (needs uv); ARGS=--upgrade takes newer releases
	@command -v uv >/dev/null || { echo 'make lock needs uv (pip install uv)' >&2; exit 2; }
	$(call compile,requirements.lock,)
	$(call compile,requirements-cuda.lock,--extra cuda --constraint requirements.lock)
	$(call compile,requirements-tpu.lock,--extra tpu --constraint requirements.lock)

# One lock for every supported Python and platform. --no-config: no index of this machine decides or is written down.
compile = uv pip compile setup.cfg --extra dev $(2) --universal --python-version 3.11 --generate-hashes --no-config \
	  --no-emit-index-url --no-annotate --custom-compile-command 'make lock' --quiet $(ARGS) -o $(1)

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) $(SBX_VENV) $(RLTOOLS_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): $(LOCK) setup.cfg pyproject.toml
	@set -eu; \
	python=''; \
	for candidate in $(PYTHONS); do \
	  if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python="$$candidate"; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'No Python >= 3.11 with venv among: $(PYTHONS). Install one (Debian: python3-venv too), or name it: PYTHON=/path/to/python3' >&2; \
	  exit 2; \
	fi; \
	if [ -n "$$(grep -LFxs -- '$(CURDIR)' $(VENV)/.installed*)" ] \
	  || ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "Making $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV); \
	fi; \
	echo 'Installing $(LOCK) into $(VENV) (about a minute)'; \
	export PIP_DISABLE_PIP_VERSION_CHECK=1; \
	$(BIN)/python -m pip install -qq -r $(LOCK); \
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .; \
	printf '%s\n' '$(CURDIR)' > $@

# Peers of the benchmarks bring packages and pins of their own: environments beside ours.
$(SBX_STAMP): experiments/benchmarks/sbx-requirements.txt $(STAMP)
	$(call peer,$(SBX_VENV),$<,1.5 GB and more)

$(RLTOOLS_STAMP): experiments/benchmarks/rltools-requirements.txt $(STAMP)
	$(call peer,$(RLTOOLS_VENV),$<,700 MB)

define peer
	$(BIN)/python -m venv --clear $(1)
	@echo 'Installing $(2) into $(1) ($(3), minutes)'
	$(1)/bin/python -m pip install -qq --disable-pip-version-check -r $(2)
	touch $@
endef

FORCE:
