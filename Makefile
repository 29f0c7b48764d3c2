# make train    both networks learn CIFAR-10 on this machine; DATA=path takes an image folder instead
# make check    the tests of layers, networks, training and settings, in about a minute
# make test     all tests
# make figures  every figure, table and REPORT.md, from results/
# make lint     ruff and shellcheck
# make bench    measured comparisons with PyTorch's own layers and with a plain loop
# make gpu      every test and measurement that needs a GPU, in eight minutes at most; takes DATA=path too
# make faults   the whole count of injected faults (CI runs a tenth)
# Each of them makes its own virtual environment first. PYTHON=… picks the interpreter that does (3.10 or newer).

PYTHON ?= python3
VENV ?= .venv
DATA ?=
export DATA_FOLDER := $(value DATA)
FOLDER := $${DATA_FOLDER:+--data_dir "$$DATA_FOLDER"}  # the shell sees no dollar of its name

CHECK = layers agreement dropout networks training settings house

.PHONY: help train check test lint figures bench gpu faults
.DELETE_ON_ERROR:

help:  # what `make` alone does: print the lines above
	@sed -n '/^$$/q; s/^# //p' Makefile

train: $(VENV)/installed
	$(VENV)/bin/python quickstart.py $(FOLDER)

test: $(VENV)/installed-tests
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile $(TESTS)

check: TESTS = $(CHECK:%=tests/test_%.py)
check: test

lint: $(VENV)/installed-tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/shellcheck run_grid.sh .ci/run

figures: $(VENV)/installed
	$(VENV)/bin/python plot.py

bench: $(VENV)/installed
	$(VENV)/bin/python bench/bench.py $(FOLDER)

gpu: $(VENV)/installed-tests
	$(VENV)/bin/python bench/gpu.py $(FOLDER)

faults: $(VENV)/installed-tests
	FAULTS=full $(VENV)/bin/python -m pytest tests/test_faults.py tests/test_checkpoint.py tests/test_tracking.py \
	  tests/test_command_line.py tests/test_load_data.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is too old or missing: this needs Python 3.10 or newer, e.g. make PYTHON=python3.12 …" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(VENV)/bin/python
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || \
	  { echo "$(VENV) was not made to its end: rm -r $(VENV), then run make again" >&2; exit 2; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-tests: requirements-test.txt $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@
