# Everything here starts from a bare clone: it needs python3 (3.11 or newer) and make, and puts all else into .venv.
# The second time is fast: a stamp in .venv is renewed only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --constraint constraints.txt
ADAPTERS := integrations/langchain-nabla integrations/llama-index-llms-nabla
INPUTS := pyproject.toml constraints.txt $(ADAPTERS:=/pyproject.toml)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help demo test slow real hour ranges wheels attack cookbook docs lint format types floors check bench study tiny api clean
.DELETE_ON_ERROR:

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1	\2/' | expand -t 16

demo: $(VENV)/.installed-core ## watch the embedded model's answer being refined
	@$(BIN)/nabla solve --sample 28

test: $(VENV)/.installed-test ## run the tests (the blocks of README.md among them)
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

slow: $(VENV)/.installed-test ## run the tests that take long
	@$(BIN)/python -m pytest -q -m "slow and not gpu"

real: $(VENV)/.installed-test ## run the tests on real models, GGUF files in ~/.cache/nabla-models or NABLA_MODELS (hours)
	@$(BIN)/python -m pytest -q -m real -rs

hour: $(VENV)/.installed-test ## walk through a stranger's first hour: command, agents, server, reward and comparison of one's own
	@PYTHON=$(CURDIR)/$(BIN)/python tests/first_hour.sh

ranges: ## run the adapters' tests on the oldest and newest releases of their hosts (half an hour, installs twice)
	@PYTHON=$(PYTHON) tests/ranges.sh oldest newest

wheels: ## install the three wheels beside each host in fresh environments, and run their READMEs (minutes)
	@PYTHON=$(PYTHON) tests/wheels.sh

attack: $(VENV)/.installed-test ## try on a server what one client can do to others (minutes)
	@$(BIN)/python benchmarks/attack.py

cookbook: $(VENV)/.installed-test ## run the recipes and compare what they print
	@$(BIN)/python cookbook

docs: $(VENV)/.installed-dev ## build the site into build/site, warnings are errors
	@$(BIN)/python docs/site.py && $(BIN)/zensical build --strict --clean --config-file build/site.yml

lint: $(VENV)/.installed-dev ## check format and style
	@$(BIN)/ruff format --check --quiet . || { echo "make format puts this right"; exit 1; }
	@$(BIN)/ruff check --quiet .

format: $(VENV)/.installed-dev ## put format and style right
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

types: $(VENV)/.installed-dev ## check the types
	@$(BIN)/pyright

floors: $(VENV)/.installed-dev ## check that modules import only from floors below
	@$(BIN)/lint-imports

check: lint types floors test cookbook hour docs ## everything that CI runs

bench: $(VENV)/.installed-core ## strategies x accuracy on the embedded model's test problems
	@$(BIN)/nabla bench

study: $(VENV)/.installed-test ## measure benchmarks/results anew (hours; resumes where it stopped)
	@for config in benchmarks/results/*/config.toml; do $(BIN)/nabla bench $$config || exit; done
	@$(BIN)/python benchmarks/duality.py --pairs 8 --check 1000 --out benchmarks/results/duality

tiny: $(VENV)/.installed-core ## train the embedded models from nothing (resumes where it stopped)
	@$(BIN)/python -m benchmarks.tiny.train --resume

api: $(VENV)/.installed-test ## record the public API after a change that is meant
	@$(BIN)/python tests/test_public_api.py > tests/public_api.txt

clean: ## remove the environment, caches and builds
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python")'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-core: $(INPUTS) | $(BIN)/python
	@echo "Installing nabla-agents into $(VENV) (minutes the first time, torch is large)"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: $(INPUTS) | $(BIN)/python
	@echo "Installing nabla-agents and what its tests need into $(VENV) (minutes the first time, torch is large)"
	@$(INSTALL) --editable '.[test]' $(ADAPTERS:%=--editable %)
	@touch $@ $(VENV)/.installed-core

$(VENV)/.installed-dev: $(INPUTS) | $(BIN)/python
	@echo "Installing nabla-agents and the development tools into $(VENV) (minutes the first time, torch is large)"
	@$(INSTALL) --editable '.[dev]' $(ADAPTERS:%=--editable %)
	@touch $@ $(VENV)/.installed-core $(VENV)/.installed-test
