# Every target makes its own environment in .venv when there is none.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready

.PHONY: help demo test check format bench repro docs clean

help:
	@echo "make demo    the whole chain on LeNet-300-100, a few minutes on two cores"
	@echo "make test    all tests"
	@echo "make check   formatting, lint, types, import rules"
	@echo "make format  format, and fix what lint can fix"
	@echo "make bench   speed and memory of the kernels, beside other tools"
	@echo "make docs    the site, in build/site"
	@echo "make repro   the figures of the README: three seeds, JSON in repro/results"

# torch comes first and by its exact release: left to a range, the resolver may take a build that
# was never tested.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(shell grep '^torch==' constraints.txt)
	$(PIP) -e '.[dev]'
	@touch $@

$(BENCH_READY): $(READY)
	$(PIP) -e '.[dev,bench]'
	@touch $@

demo: $(READY)
	$(BIN)/espalier demo --out runs/demo --force $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(BENCH_READY)
	@set -e; for script in benchmarks/bench_*.py; do \
	  echo "== $$script"; $(BIN)/python $$script $(ARGS); done

repro: $(READY)
	@set -e; for script in repro/repro_*.py; do \
	  echo "== $$script"; $(BIN)/python $$script $(ARGS); done

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
