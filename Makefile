# Every command of a developer's day. Each target first brings .venv up to date.

# Without bytecode every process would compile torch and Ray again, for many seconds.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
READY := .venv/.ready
EXTRAS := ".[dev,docs,export,hub,optuna,timm,track]"

# The first name that runs, is of a right version and can make a virtual environment. Looking
# on PATH is not enough: version managers put names there for versions that are not selected.
SUITS := import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for name in python3.12 python3.11 python3.13 python3; do \
	"$$name" -c "$(SUITS)" 2>/dev/null && { echo "$$name"; break; }; done)

# uv does not read pip's configuration, so the index that pip was told of is handed on.
define uv
	@index="$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)}"; \
	if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; fi; \
	UV_HTTP_TIMEOUT="$${UV_HTTP_TIMEOUT:-180}" $(BIN)/uv pip $(1)
endef

# pytest's exit status 5 says that nothing was selected, which must not pass for success.
define tests
	@$(BIN)/pytest $(1) || { status=$$?; \
	  if [ $$status -eq 5 ]; then echo "ran no test of kind: $(2)" >&2; fi; exit $$status; }
endef

# Tests without Ray run in as many processes as there are cores, each of them with one thread.
SPREAD := -n auto --maxprocesses 8 --dist worksteal
test test-slow: export OMP_NUM_THREADS := 1
# Each longer run ends with the tests that took most of it.
SLOWEST := --durations=25

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-ray test-slow test-cluster test-all check docs bench scripts gpu soak \
	constraints clean

help: ## list these targets
	@awk -F ' *:.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## make .venv, or bring it up to date; nothing to do is instant

demo: $(READY) ## the quickstart: a teacher and its students, on small images
	@$(BIN)/raykd demo

test: $(READY) ## the tests that need neither Ray nor a GPU
	$(call tests,$(SPREAD),the default)

test-ray: $(READY) ## the tests that start a local Ray cluster
	$(call tests,$(SLOWEST) -m "ray and not cluster and not gpu",ray)

test-slow: $(READY) ## the tests without Ray that take longer
	$(call tests,$(SPREAD) $(SLOWEST) -m "slow and not ray and not cluster and not gpu",slow)

test-cluster: $(READY) ## the tests that start and lose several Ray nodes
	$(call tests,$(SLOWEST) -m "cluster and not gpu",cluster)

test-all: $(READY) ## every test that needs no GPU
	$(call tests,-m "not gpu",not gpu)

check: $(READY) ## the four checks of a change: format, lint, types, tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	@$(MAKE) --no-print-directory test

docs: $(READY) ## the documentation, into site/; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: $(READY) ## measure what caching costs and saves, as ratios
	@$(BIN)/python -m experiments.benchmarks.cache
	@$(BIN)/python -m experiments.benchmarks.step

scripts: $(READY) ## a run of seconds of every script of experiments/
	@$(BIN)/python -m tests.experiments.quick

# On a machine that has no .venv and cannot make one, its own Python does.
gpu: ## tests and benchmarks on a GPU in eight minutes, written to gpu.md; CIFAR=FOLDER trains there
	@"$(or $(wildcard $(BIN)/python),python3)" -m experiments.benchmarks.gpu_session \
	  $(if $(CIFAR),--cifar "$(CIFAR)")

MINUTES ?= 60
soak: $(READY) ## lose, corrupt and restart things for MINUTES (60), and look for what was lost
	@$(BIN)/python -m tests.launch.soak --minutes $(MINUTES)

constraints: $(READY) ## pin the newest versions in constraints.txt
	@grep '^#' constraints.txt > .venv/constraints.txt
	$(call uv,compile pyproject.toml --all-extras --python-version 3.11 --quiet --no-header \
	  --no-annotate >> .venv/constraints.txt)
	@mv .venv/constraints.txt constraints.txt

clean: ## remove caches and build output; .venv and the store stay
	@rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find raykd tests experiments -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt | $(BIN)/uv
	$(call uv,install --python $(BIN)/python --constraints constraints.txt --editable $(EXTRAS))
	@touch $@

# Cleared, because what is there without uv is the rest of an interrupted setup.
$(BIN)/uv:
	@"$(PYTHON)" -c "$(SUITS)" 2>/dev/null || { \
	  echo "raykd needs Python 3.11, 3.12 or 3.13 with venv; found: '$(PYTHON)'." \
	    "Install one (Debian: python3-venv), or name it: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; }
	@"$(PYTHON)" -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
