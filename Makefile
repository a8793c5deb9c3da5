# Every target makes what it needs in ./.venv, once: a stamp per extra is newer than pyproject.toml and constraints.txt.
#   make demo                     PYTHON=python3.12 chooses the interpreter of a new .venv
#   make test JOBS=4 T=tests/nn   PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" the CPU build of torch
PYTHON ?= python3
JOBS ?= 2
T ?= tests
PIP_ARGS ?=
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-parity test-slow check format docs bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.venv/.stamp-%: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "etude needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing etude[$*] into .venv: once, about 2 GB on disk" >&2
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[$*]'
	@touch $@

setup: .venv/.stamp-dev  ## everything a developer needs
demo: .venv/.stamp-demo  ## GLM-4.5 in miniature, from raw data to chat
	@$(BIN)/etude train glm45_quick
test: .venv/.stamp-dev  ## the default tests, on two processes
	$(PYTEST) -n $(JOBS) --dist worksteal $(T)
test-parity: .venv/.stamp-dev  ## against transformers, live
	$(PYTEST) -m parity $(T)
test-slow: .venv/.stamp-dev  ## kills and resumes, ranks, whole recipes
	$(PYTEST) -m slow $(T)
check: .venv/.stamp-dev  ## lint, format, types, layers, house rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check
	$(BIN)/lint-imports --no-logo
	$(PYTEST) tests/house
format: .venv/.stamp-dev  ## rewrite to the format that check asks for
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
docs: .venv/.stamp-docs  ## HTML in docs/_build
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build
	@echo docs/_build/index.html
bench: .venv/.stamp-dev  ## the timings that README quotes
	$(BIN)/etude bench
clean:  ## remove .venv and everything built; runs/ stays
	rm -rf .venv docs/_build docs/_generated build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
