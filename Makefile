# Requires Python 3.11 to 3.13 and make. Everything else is installed into .venv.
#   PYTHON=python3.12        the Python that creates .venv
#   PHASEFRONT_TORCH=gpu     the newest torch with CUDA, instead of the CPU build pinned in constraints-cpu.txt
#   CHAOS=300 SEED=1         how many faults `make chaos` injects, and which
#   INSTANCES=20 TRIALS=128,256,512   the searches of `make coverage`: instances of each problem, and trials
#   SCHEDULES=5000 SEED=1    how many schedules `make simulate` runs, and the seed of the first
#   ROW=3                    the one row of `make gallery` that is run
#   PYTEST_ARGS='-k map'     further arguments for pytest in `make test` and `make long`
#   TEST_PROCESSES=3         how many processes run tests; many tests wait for servers, so one more than two cores

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2> /dev/null && echo $$p && break; done)
PHASEFRONT_TORCH ?= cpu
CONSTRAINTS := $(if $(filter gpu,$(PHASEFRONT_TORCH)),,-c constraints-cpu.txt)
BIN := .venv/bin
# Hash of the requirements: a changed requirement reinstalls; a new modification time or a fresh checkout does not.
KEY := $(shell { echo $(PHASEFRONT_TORCH); cat pyproject.toml constraints-cpu.txt; } | cksum | cut -d ' ' -f 1)
RUN_STAMP := .venv/.installed-run-$(KEY)
DEV_STAMP := .venv/.installed-dev-$(KEY)
DEMOS := configs/demo_double_descent.yaml configs/demo_grokking.yaml

.PHONY: help install install-dev demo docs test long lint gpu-dry bench coverage kill-points simulate chaos science gallery clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F '\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; install one, or pass its path: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python's venv module is missing (on Debian: apt-get install python3-venv)" >&2; exit 2; }

$(RUN_STAMP): | $(BIN)/python
	@test -e $(DEV_STAMP) || { echo "installing into .venv (first time only; takes a few minutes)"; \
		$(BIN)/python -m pip install -qq --disable-pip-version-check $(CONSTRAINTS) -e .; }
	@touch $@

$(DEV_STAMP): | $(BIN)/python
	@echo "installing into .venv (first time only; takes a few minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(CONSTRAINTS) -e '.[dev]'
	@touch $@

install: $(RUN_STAMP)  ## create .venv and install phasefront into it
install-dev: $(DEV_STAMP)  ## the same, with the tools for tests and linters

demo: $(RUN_STAMP)  ## draw two small phase diagrams on this machine: double descent and grokking
	@for config in $(DEMOS); do echo; echo "== phasefront run $$config"; $(BIN)/phasefront run "$$config" < /dev/null; done
	@echo; echo "Phase diagrams (PNG, and HTML to open in a browser):"
	@find phasefront-out -type f \( -name '*.png' -o -name '*.html' \) | sort | sed 's/^/  /'
	@echo "Curves of every trial in MLflow ('browse' is the command that starts its UI):"
	@for config in $(DEMOS); do $(BIN)/phasefront status "$$config"; done \
		| sed -nE '/^(browse|all runs|sweep +http)/s/^/  /p' | awk '!seen[$$0]++'

docs: $(DEV_STAMP)  ## build the documentation site into build/site, without warnings
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html, or serve it with search: $(BIN)/python -m http.server --directory build/site 8000"

lint: $(DEV_STAMP)  ## check format, style, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir .import_linter_cache

test: lint  ## lint, then the tests; a test is skipped, with the reason, if its system package is missing
	$(BIN)/python -m pytest -n $(or $(TEST_PROCESSES),3) --dist loadfile -m "not long" $(PYTEST_ARGS)

long: $(DEV_STAMP)  ## the tests that `make test` leaves out, of about a minute or more each
	$(BIN)/python -m pytest -n $(or $(TEST_PROCESSES),2) --dist loadfile -m long $(PYTEST_ARGS)

gpu-dry: $(DEV_STAMP)  ## train every job on a device without values; exit code 1 if a step would wait for a GPU or mix devices
	$(BIN)/python -m tests.gpu_dry

bench: $(DEV_STAMP)  ## run the benchmarks; print the results with hardware and versions
	$(BIN)/python -m tests.benchmarks

coverage: $(DEV_STAMP)  ## measure how often the bands of a boundary cover it (INSTANCES=20 TRIALS=128,256,512; hours); exit code 1 if one is off
	$(BIN)/python -m tests.benchmarks.boundary.coverage $(if $(INSTANCES),--instances $(INSTANCES)) $(if $(TRIALS),--trials $(TRIALS))

simulate: $(DEV_STAMP)  ## run simulated schedules of faults on a virtual clock (SCHEDULES=5000 SEED=1); exit code 1 if an invariant breaks
	$(BIN)/python -m tests.simulation --schedules $(or $(SCHEDULES),5000) --seed $(or $(SEED),1)

chaos: $(DEV_STAMP)  ## inject faults into real drivers, nodes and servers (CHAOS=300 SEED=1); exit code 1 if a result is wrong
	$(BIN)/python -m tests.chaos --faults $(or $(CHAOS),60) --seed $(or $(SEED),1)

kill-points: $(DEV_STAMP)  ## end the driver at every SQL statement and HTTP request of a small sweep, and resume (30 minutes)
	$(BIN)/python -m tests.kill_points

science: $(DEV_STAMP)  ## check closed forms against trained models; exit code 1 if one deviates
	$(BIN)/python -m tests.science

gallery: $(DEV_STAMP)  ## run a sweep of every phenomenon in docs/gallery.md and compare it with what is expected (ROW=3 for one); exit code 1 if one is off
	$(BIN)/python -m tests.gallery $(if $(ROW),-k $(ROW))

clean:  ## remove .venv and caches; keep results (mlflow.db, phasefront-out)
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .bench
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
