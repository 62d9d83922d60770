# By hand: Python 3.11 to 3.13 and make. Everything else is put into .venv here.
#   PYTHON=python3.12        which Python makes .venv
#   PHASEFRONT_TORCH=gpu     the newest torch with CUDA, instead of the CPU build that constraints-cpu.txt names
#   PYTEST_ARGS='-k map'     more arguments for pytest in `make test`

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2> /dev/null && echo $$p && break; done)
PHASEFRONT_TORCH ?= cpu
CONSTRAINTS := $(if $(filter gpu,$(PHASEFRONT_TORCH)),,-c constraints-cpu.txt)
BIN := .venv/bin
# What is installed, by content: a changed requirement installs again, a touched file or a fresh checkout does not.
KEY := $(shell { echo $(PHASEFRONT_TORCH); cat pyproject.toml constraints-cpu.txt; } | cksum | cut -d ' ' -f 1)
RUN_STAMP := .venv/.installed-run-$(KEY)
DEV_STAMP := .venv/.installed-dev-$(KEY)
DEMOS := configs/demo_double_descent.yaml configs/demo_grokking.yaml

.PHONY: help install install-dev demo test lint bench science clean

help:  ## these lines
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F '\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python's venv module is missing (on Debian: apt-get install python3-venv)" >&2; exit 2; }

$(RUN_STAMP): | $(BIN)/python
	@test -e $(DEV_STAMP) || { echo "installing into .venv, once; it takes a few minutes"; \
		$(BIN)/python -m pip install -qq --disable-pip-version-check $(CONSTRAINTS) -e .; }
	@touch $@

$(DEV_STAMP): | $(BIN)/python
	@echo "installing into .venv, once; it takes a few minutes"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(CONSTRAINTS) -e '.[dev]'
	@touch $@

install: $(RUN_STAMP)  ## make .venv and install phasefront into it
install-dev: $(DEV_STAMP)  ## the same, with what the tests and checks need

demo: $(RUN_STAMP)  ## two small phase diagrams, double descent and grokking, on this machine
	@for config in $(DEMOS); do echo; echo "== phasefront run $$config"; $(BIN)/phasefront run "$$config" < /dev/null; done
	@echo; echo "Phase diagrams (PNG, and HTML to open in a browser):"
	@find phasefront-out -type f \( -name '*.png' -o -name '*.html' \) | sort | sed 's/^/  /'
	@echo "Curves of every trial, in a browser ('browse' is the command that serves them):"
	@for config in $(DEMOS); do $(BIN)/phasefront status "$$config"; done \
		| sed -nE '/^(browse|all runs|sweep +http)/s/^/  /p' | awk '!seen[$$0]++'

lint: $(DEV_STAMP)  ## format, style, types, and which part may import what
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir .import_linter_cache

test: lint  ## lint, then every test; those whose system package is missing are skipped, by name
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(DEV_STAMP)  ## the measurements, printed with hardware and versions
	$(BIN)/python -m tests.benchmarks

science: $(DEV_STAMP)  ## the closed forms against trained models: deviation beside tolerance, an exit code
	$(BIN)/python -m tests.science

clean:  ## remove .venv and caches; results (mlflow.db, phasefront-out) stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .bench
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
