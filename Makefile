# Two commands do all the set-up: `make demo` and `make test`. Both need only Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO_DIR ?= demo-results
SEEDS ?= 1

.PHONY: demo test check format test-slurm test-vllm test-browser bench drill mutants coverage clean

demo: $(VENV)/.installed
	$(BIN)/scepsy demo -o $(DEMO_DIR)

test: $(VENV)/.installed
	$(BIN)/python -m pytest

# Lint, format and types, as CI runs them.
check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A real Slurm on this machine, from Debian's packages; needs root.
test-slurm: $(VENV)/.installed
	bash tests/slurm/install.sh
	$(BIN)/python -m pytest tests/slurm

# A real vLLM for CPUs with tiny random models, on that Slurm; needs root.
test-vllm: $(VENV)/.installed
	bash tests/slurm/install.sh
	bash tests/vllm/install.sh
	$(BIN)/python -m pytest tests/vllm -s

# The report in a headless Chromium; needs root for Debian's package.
test-browser: $(VENV)/.installed
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; }
	$(BIN)/python -m pytest tests/browser

bench: $(VENV)/.installed
	$(BIN)/python bench/planner.py
	$(BIN)/python bench/predictor.py

# Faults of all kinds in real runs, on this machine and on a real Slurm; needs root and cc.
# `make drill DRILL=--small`: twenty of them, locally.
DRILL ?= --json bench/drill.json --page
drill: $(VENV)/.installed
	bash tests/slurm/install.sh
	$(BIN)/python bench/drill/drill.py $(DRILL)

# Do the tests notice small bugs? `make mutants MODULES="a.py b.py=tests/test_b.py" SEEDS=1,2`
mutants: $(VENV)/.installed
	$(BIN)/python bench/mutants.py --seeds $(SEEDS) $(addprefix --module ,$(MODULES))

# Which lines no test runs, most first; `make coverage TESTS=tests/serving` looks at some tests only.
coverage: $(VENV)/.installed
	rm -rf build/coverage
	$(BIN)/coverage run -m pytest -q $(TESTS); status=$$?; \
	$(BIN)/coverage combine -q && $(BIN)/coverage report; exit $$status

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "scepsy-hpc needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; say make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing scepsy-hpc and what it needs into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,workflows]'
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO_DIR) build .mypy_cache .ruff_cache .pytest_cache
