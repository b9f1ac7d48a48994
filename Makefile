# make demo: train, evaluate and draw on a generated data set.  make test: every test.
# Both make a virtual environment first; a rerun installs again only when what is asked for has changed.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin
# The stamp's name carries what was installed and from where: other requirements or another checkout, another stamp.
SOURCES := setup.py pyproject.toml $(wildcard requirements/*.txt)
SUM := $(shell { cat $(SOURCES); echo '$(CURDIR)'; } | cksum | cut -d' ' -f1)
RUNTIME := $(VENV)/.boxdet-runtime-$(SUM)
EVERYTHING := $(VENV)/.boxdet-all-$(SUM)

.PHONY: demo test

demo: $(RUNTIME)
	@echo '== drawing the shapes data set into data/shapes'
	$(BIN)/python tools/make_shapes.py
	@echo '== training, evaluating and drawing (work_dirs/demo)'
	$(BIN)/python tools/demo.py

test: $(EVERYTHING)
	@echo '== running the tests in $(WORKERS) processes'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

$(BIN)/python:
	@echo '== making the virtual environment $(VENV)'
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): | $(BIN)/python
	@echo '== installing boxdet and what it needs to run into $(VENV)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@rm -f $(VENV)/.boxdet-*
	@touch $@

$(EVERYTHING): | $(BIN)/python
	@echo '== installing boxdet with everything its tests need into $(VENV)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all]'
	@rm -f $(VENV)/.boxdet-*
	@touch $@ $(RUNTIME)
