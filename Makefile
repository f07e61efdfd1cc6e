# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
# One thread a process: results do not depend on the number of cores, and processes do not fight for them.
export OMP_NUM_THREADS := 1

.PHONY: help setup demo test test-all bench docs lint format

help:
	@echo 'make demo      a few minutes: the main claims of XRM decided on real data, with a page of plots'
	@echo 'make test      the tests      make test-all  the long ones too'
	@echo 'make lint      style, types, layers          make docs      the documentation'
	@echo 'make bench     each part beside its peer     make setup     everything the above need, into .venv'

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/lab.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'installing mechanisms[lab] into .venv (once; a minute or two)'
	$(PIP) -e '.[lab]'
	@touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'installing mechanisms[dev] into .venv (once; a few minutes)'
	$(PIP) -e '.[dev]'
	@touch $@ .venv/lab.stamp

setup: .venv/dev.stamp

# Its records go to build/demo, so that it runs anew although the deciding records are committed under results/.
demo: .venv/lab.stamp
	$(BIN)/mech run xrm coloured-digits waterbirds-like --scale laptop --jobs 2 --results build/demo --device cpu
	$(BIN)/mech report --results build/demo --to build/demo-report
	@echo 'the page of plots: build/demo-report/index.html'

test: setup
	$(BIN)/python -m pytest -n auto -m 'not slow'
	MECHANISMS_HOOK=0 $(BIN)/python -m pytest -n auto -m 'not slow'

test-all: setup
	$(BIN)/python -m pytest -n auto
	MECHANISMS_HOOK=0 $(BIN)/python -m pytest -n auto

bench: setup
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

docs: setup
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo 'docs/_build/html/index.html'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
