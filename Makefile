# Every target sets itself up in .venv; the second run starts at once.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := src tests benchmarks $(wildcard examples)
WORKERS ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-gpu lint types format bench bench-gpu docs clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; say make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras: an install is repeated only when the versions change.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[$*]'
	@touch $@

setup: $(VENV)/.installed-demo  ## Make .venv and install the package with what the demo needs.

demo: setup  ## Train the digits classifier and show the result.
	$(BIN)/python -m thalweg train digits --out runs/digits

test: setup $(VENV)/.installed-test  ## Run all tests.
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-gpu: setup $(VENV)/.installed-test  ## Run the tests that need a CUDA device.
	$(BIN)/python -m pytest -m gpu

lint: setup $(VENV)/.installed-test  ## Check style, formatting and the import layers.
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports --no-cache

types: setup $(VENV)/.installed-test  ## Check the types.
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: setup $(VENV)/.installed-test  ## Rewrite the sources in the project's format.
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: setup $(VENV)/.installed-bench  ## Measure; results go to benchmarks/results.
	for name in import_time fit step interpreter sparse compile raw_op dropin; do \
	  $(BIN)/python -m benchmarks.$$name || exit; done
	$(BIN)/python -m benchmarks.trainers --threads 1
	$(BIN)/python -m benchmarks.fsdp2
	$(BIN)/python -m benchmarks.reliability

bench-gpu: setup $(VENV)/.installed-bench  ## Measure steps and rows on a CUDA device.
	for name in step sparse; do \
	  $(BIN)/python -m benchmarks.$$name --device cuda || exit; done

docs: setup $(VENV)/.installed-docs  ## Write the pages of the public interface into site/.
	$(BIN)/pdoc --docformat google --output-directory site thalweg

clean:  ## Remove everything that was made here, .venv included.
	rm -rf $(VENV) runs site build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info
