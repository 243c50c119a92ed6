# Everything a new machine needs is Python 3.11 (with venv), git and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench clean

help: ## Show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.lab: pyproject.toml | $(BIN)/python
	$(PIP) install -qq -e '.[lab]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) install -qq -e '.[dev]'
	@touch $@ $(VENV)/.lab

setup: $(VENV)/.dev ## Set up the environment for working on the project

demo: $(VENV)/.lab ## Start the emulated fleet and the dashboard (HEADLESS=1: print a report)
ifdef HEADLESS
	@$(BIN)/hdap demo
else
	@$(BIN)/hdap lab up >/dev/null
	@$(BIN)/hdap
	@echo 'The emulated lab goes on: "make demo" returns to it, "$(BIN)/hdap lab down --yes" stops it.'
endif

test: $(VENV)/.dev ## Run the whole test suite
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15 -rfERs

lint: $(VENV)/.dev ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev ## Mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## Measure start-up, a sweep of the lab and the search
	$(BIN)/python -m benchmarks

clean: ## Remove the environment and everything generated
	rm -rf $(VENV) .hdap build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
