# Every target sets up what it needs; nothing has to be typed before it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup check format test demo up down bench chaos lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 10

$(READY): pyproject.toml requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "dlrflow needs Python 3.11 or newer; name one with make PYTHON=python3.x" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo 'installing the locked dependencies into $(VENV), about a minute'
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(READY) ## .venv with the locked dependencies and the project

check: $(READY) ## format, lint, types, import contracts, deployment files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python deploy/validate.py

format: $(READY) ## rewrite the sources in the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(READY) ## the whole suite, real Kafka and real PostgreSQL included
	$(BIN)/python -m pytest

demo: $(READY) ## the whole path on this machine, ended by a reconciliation table (KEEP=1 leaves it up)
	$(BIN)/python -m deploy.local.demo $(if $(KEEP),--keep)

up: $(READY) ## the stack of the demo, left running
	$(BIN)/python -m deploy.local.stack up

down: $(READY) ## stop what `make up` started
	$(BIN)/python -m deploy.local.stack down

bench: $(READY) ## benchmarks; figures with commit and machine class
	$(BIN)/python -m tests.bench

chaos: $(READY) ## long fault runs; figures with commit and machine class
	$(BIN)/python -m tests.crash

lock: $(READY) ## write the lock files anew from pyproject.toml
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet pyproject.toml --output-file requirements/runtime.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --group dev pyproject.toml --output-file requirements/dev.lock

clean: ## remove the environment and the caches, not var/
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
