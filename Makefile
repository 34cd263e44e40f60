# What a person and what CI do with the project. Needs make and Python 3.11 or later, nothing else.
#
#   make quickstart   environment, one bundle, one segmented image, in .quickstart/
#   make test         the tests
#   make check        everything CI asks for: lint, format, types, import rules, tests
#   make clean        remove what these made; the environment stays
#
# VENV=DIR uses another environment, PYTHON=PROGRAM another interpreter to create it with.

VENV ?= .venv
PYTHON ?=
BIN = $(VENV)/bin

QUICKSTART = .quickstart
BUNDLE = $(QUICKSTART)/attention-fp16
PHANTOM = $(QUICKSTART)/phantom.png
RESULT = $(QUICKSTART)/result
SOURCES = $(shell find toolkit exporters -name '*.py' -o -name '*.css' -o -name '*.safetensors')

PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: help quickstart test check clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

# --- environment: a stamp per set of extras, renewed when the pins or the project file change -------------------

$(BIN)/python:
	@set -e; for python in $(or $(PYTHON),python3.11 python3 python); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "creating $(VENV) with $$python"; exec "$$python" -m venv $(VENV); \
	  fi; \
	done; echo "error: no Python 3.11 or later found: install one, or run make PYTHON=/path/to/python" >&2; exit 1

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing unetx-opt and what it needs into $(VENV) (some minutes the first time)"
	@$(PIP_INSTALL) -e '.[export,cpu,rtx,dicom]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing unetx-opt and its development tools into $(VENV) (some minutes the first time)"
	@$(PIP_INSTALL) -e '.[export,train,cpu,rtx,crf,dicom,sign,bench,node,dev]'
	@# The reference CRF is compiled from source; without a compiler its tests skip.
	@if command -v g++ >/dev/null; then $(PIP_INSTALL) -e '.[crf-reference]'; fi
	@touch $(VENV)/.installed $@

# --- quickstart -------------------------------------------------------------------------------------------------

quickstart: $(RESULT)/phantom.overlay.png
	@echo
	@echo "bundle       $(BUNDLE)"
	@echo "gate report  $(BUNDLE)/evidence/gate.html"
	@echo "input        $(PHANTOM) (drawn by a program: no real radiograph may be shipped)"
	@echo "mask         $(RESULT)/phantom.mask.png"
	@echo "overlay      $(RESULT)/phantom.overlay.png"
	@echo "next         $(BIN)/unetx-opt segment $(BUNDLE) YOUR.png -o DIR"

$(BUNDLE): $(SOURCES) | $(VENV)/.installed
	@$(BIN)/unetx-opt build --variant attention --precision fp16 --overwrite -o $@

$(PHANTOM): | $(VENV)/.installed
	@mkdir -p $(@D)
	@$(BIN)/python -c "from PIL import Image; from unetx_opt.imaging.phantom import chest_phantom; \
	Image.fromarray(chest_phantom(seed=7)[0]).save('$@')"

$(RESULT)/phantom.overlay.png: $(BUNDLE) $(PHANTOM)
	@$(BIN)/unetx-opt segment $(BUNDLE) $(PHANTOM) -o $(RESULT)

# --- tests and checks -------------------------------------------------------------------------------------------

# Tests of one file share what they build: a file stays with one process.
PYTEST = $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

test: $(VENV)/.installed-dev
	$(PYTEST)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

clean:
	rm -rf $(QUICKSTART) .ci-venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find toolkit kernels exporters benchmarks tests -name __pycache__ -prune -exec rm -rf {} +
