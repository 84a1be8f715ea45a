# Two commands do everything on a fresh machine: `make report` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# Processes that run the tests.
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: report test cluster lint docs readme targets asv bench gpu-report clean browser

report: $(STAMP)
	$(BIN)/meprop-bench speedup --preset quick

# Threads of a parallel region sleep at its end instead of spinning, which would take the cores from the other process.
test: $(STAMP) lint
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal --ignore-glob 'tests/ops/test_triton*.py'
	$(BIN)/python -m pytest --numprocesses $(JOBS) tests/ops/test_triton*.py  # what an interpreter stores amiss harms nobody else

# What needs Ray, in an environment that has it.
cluster: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/sweep/test_cluster.py tests/cli/test_cluster.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(STAMP)
	$(BIN)/python -m sphinx -E -W -q -b html docs docs/_build
	@echo docs/_build/index.html

# The README's plot, verdict and table, from the newest quick report that can be believed; a test says when it is time.
readme: $(STAMP)
	$(BIN)/python docs/excerpt.py

# The figures that reports/ holds for the shapes of the papers; about half an hour on 2 cores.
targets: $(STAMP)
	$(BIN)/meprop-bench speedup --preset targets

# The asv suite on the current commit, in the environment that is there; `asv publish` then makes its web page. asv wants
# the machine described before it runs; it asks nobody here, and has no host's name.
asv: $(STAMP)
	machine=$$($(BIN)/python -c 'from meprop_bench.measure.environment import machine_slug as slug; print(slug())') && \
	$(BIN)/asv machine --yes --machine "$$machine" && \
	$(BIN)/asv run --machine "$$machine" --environment existing:$(abspath $(BIN)/python) --set-commit-hash "$$(git rev-parse HEAD)" \
	  --launch-method forkserver --record-samples $(ASV)

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks/pytest_suite $(BENCH)

# What there is to know of a GPU within SECONDS, into one folder, and with ARCHIVE=file.tar.gz into one file besides. Nothing is
# installed: PYTHON is an interpreter whose torch finds the GPU (.venv's, where there is one). OUT counts when it is given here; the
# environment of a machine that is lent may have one of its own.
SECONDS ?= 450
DEVICE ?= cuda
GPU_PYTHON := $(if $(and $(filter file,$(origin PYTHON)),$(wildcard $(BIN)/python)),$(BIN)/python,$(PYTHON))
gpu-report:
	$(GPU_PYTHON) -m benchmarks.gpu_report --seconds $(SECONDS) --device $(DEVICE) $(if $(PRESET),--preset "$(PRESET)") \
	  $(if $(filter command,$(firstword $(origin OUT))),--out "$(OUT)") $(if $(ARCHIVE),--archive "$(ARCHIVE)")

# Installed again when what it is made from changes; pip upgrades in place.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m meprop_bench.ops.kernels.native  # compiles, once, what every process then loads
	touch $@

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# A browser, in which the tests look at the reports' pages, where there is none: Chromium of Debian's or Ubuntu's.
browser:
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { sudo apt-get update && { sudo apt-get install --yes chromium || sudo apt-get install --yes chromium-browser; }; }
