# Two commands do everything on a fresh machine: `make report` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: report test lint targets clean

report: $(STAMP)
	$(BIN)/meprop-bench speedup --preset quick

test: $(STAMP) lint
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The figures that reports/ holds for the shapes of the papers; about half an hour on 2 cores.
targets: $(STAMP)
	$(BIN)/meprop-bench speedup --preset targets

# Installed again when what it is made from changes; pip upgrades in place.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m meprop_bench.ops.kernels.native  # compiles, once, what every process then loads
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
