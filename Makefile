# Every verb of the project. `make demo` and `make test` need nothing but Python 3.11+, git and make: they set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUICK := motion_labels decode pairs train_step coco_eval
TABLES := thesis hard_synthetic ablations amd optical_flow detection real

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench tables chaos repro lock clean

help: ## list these verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## create .venv from requirements.lock (skipped while the lock is unchanged)

demo: $(STAMP) ## the whole pipeline on generated video: labels, a report and a registered model
	@$(BIN)/mosis demo

test: $(STAMP) ## the whole test suite, a file at a time on each of up to four cores
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(STAMP) ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## the quick benchmarks; each prints a table and writes benchmarks/results/
	@for name in $(QUICK); do $(BIN)/python -m benchmarks.$$name || exit 1; done

tables: $(STAMP) ## the long benchmarks, hours; real needs the footage that MOSIS_SHARED_DATA names; RESUME=--resume goes on
	@for name in $(TABLES); do $(BIN)/python -m benchmarks.$$name $(RESUME) --cache .mosis/benchmarks || exit 1; done

chaos: $(STAMP) ## kills, a full disk, a dead remote, 200 videos at once; an hour. CHAOS="--kills 10 --minutes 20"
	@$(BIN)/python -m benchmarks.chaos $(CHAOS)

repro: $(STAMP) ## the same pipeline through `dvc repro` alone, with no server
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro

lock: $(STAMP) ## resolve requirements.lock anew from pyproject.toml
	@$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header --extra dev pyproject.toml -o requirements.lock

clean: ## remove what the pipeline and the tools made; .venv, workspaces and DVC's cache stay
	rm -rf outputs data .mosis .prefect .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh .ci/setup
	@touch $@
