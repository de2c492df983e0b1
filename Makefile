# Every target sets up what it needs: a fresh clone needs Python 3.11, make and git, nothing else.
PYTHON ?= python3.11
ifeq ($(shell command -v $(PYTHON) 2>/dev/null),)
PYTHON := python3
endif
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCHMARKS := flops latent_store overhead makespan

.PHONY: setup fmt check test test-all demo bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,demo]'
	touch $(STAMP)

fmt: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-all: setup
	$(BIN)/python -m pytest

demo: setup
	$(BIN)/python -m jobs demo --out demo-output

bench: setup
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --out benchmarks/results || exit 1; done

clean:
	rm -rf build demo-output
