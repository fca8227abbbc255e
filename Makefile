# `make demo` and `make test` do all their set-up: Python 3.11 or newer and pip are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_EXTRAS ?= test,train,serve,eval
# pip of the machine installs into the venv, so a Python without ensurepip works too.
PIP_INSTALL := $(PYTHON) -m pip --python $(BIN)/python install --quiet -c ci/constraints.txt

LINT := $(BIN)/ruff check .

.PHONY: demo test lint clean

demo: $(VENV)/.base
	$(BIN)/visavis demo -o demo.mp4
	@echo "wrote $(CURDIR)/demo.mp4"

# Both are run, either fails it; the summary line of pytest stays the last line.
test: $(VENV)/.test
	@$(LINT); lint=$$?; $(BIN)/python -m pytest; tests=$$?; exit $$((tests ? tests : lint))

lint: $(VENV)/.test
	$(LINT)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("visavis needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --without-pip $(VENV)

# The base install has no torch. An editable install: the sources here are what runs.
$(VENV)/.base: pyproject.toml ci/constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.test: pyproject.toml ci/constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[$(TEST_EXTRAS)]'
	@touch $@ $(VENV)/.base

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis demo.mp4
