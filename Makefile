# make demo · make test · make prove · make sim [SEED=7 | SEEDS=2000] · make lint · make lock · make clean
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first interpreter that really is 3.11 or 3.12 and can make a virtual environment.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)

# As an installed package is; also where PYTHONDONTWRITEBYTECODE is set, each of the many processes starts from it.
COMPILE := $(BIN)/python -m compileall -q pipelines edge_agent control_plane prove benchmarks tests

.PHONY: help setup demo test lint fix lock bench prove sim clean

help:
	@grep -E '^# make' Makefile | cut -c3-

$(STAMP): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "Tidewire needs Python 3.11 or 3.12 with venv; none was found." >&2; \
	  echo "  fix: apt install python3 python3-venv, or make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@echo "== Installing Tidewire into $(VENV) with $(PYTHON) (first time only, about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)
	@echo "== Installed"

setup: $(STAMP)

demo: setup
	@$(COMPILE)
	@echo "== Running the demo: three agents, one control plane, one cut link"
	@$(BIN)/tidewire demo $(ARGS)

test: setup lint
	@$(COMPILE)
	@echo "== Running the tests"
	@$(BIN)/pytest -n 3 --dist worksteal $(ARGS)

sim: setup
	@$(COMPILE)
	@echo "== Simulating faults in virtual time: each seed decides everything"
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),200)) $(ARGS)

lint: setup
	@echo "== Checking style and types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

fix: setup
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
	@$(BIN)/tidewire fmt pipelines
	@$(BIN)/tidewire schema > docs/pipeline.schema.json && $(BIN)/tidewire schema --cases > docs/cases.schema.json
	@$(BIN)/python -m tests.docs.cli_reference > docs/cli.md

bench: setup
	@$(COMPILE)
	@$(BIN)/python -m benchmarks

prove: setup
	@$(COMPILE)
	@echo "== Breaking real processes, links and disks (about 15 minutes)"
	@$(BIN)/python -m prove $(ARGS)

lock: setup
	@$(BIN)/uv pip compile pyproject.toml --extra control --group dev --universal --python-version 3.11 \
	  --prerelease if-necessary-or-explicit --generate-hashes --no-emit-index-url --no-header --quiet -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
