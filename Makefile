# Everything a developer or a CI machine runs. Needs Python 3.11+, git and make, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
WORKERS ?= 2

export RECON_DATA ?= $(abspath ../shared/data)
# One thread per test worker: two workers on two cores would otherwise fight over them.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install docs test test-slow test-gpu test-soak lint format wheel demo bench results system-packages clean

help:  ## say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 20

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "recon needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

install: $(STAMP)  ## create .venv and install the project with its test and lint tools

test: $(STAMP)  ## the whole suite, less what is marked slow, gpu or soak
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu and not soak"

test-slow: $(STAMP)  ## tests that take minutes
	$(BIN)/python -m pytest -m slow

test-gpu: $(STAMP)  ## tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

test-soak: $(STAMP)  ## tests that repeat for minutes, looking for leaks
	$(BIN)/python -m pytest -m soak

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## the documentation site with reference and examples, in build/docs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(TEST_ENV) $(BIN)/python docs/site/build.py

wheel: $(STAMP)  ## wheel and source archive in build/dist, installed elsewhere and tried
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build -d build/dist
	$(TEST_ENV) $(BIN)/python -m pytest tests/test_packages.py

demo: $(STAMP)  ## make a synthetic multi-coil scan, reconstruct it, say where the images are
	$(BIN)/recon demo -o demo --force

bench: $(STAMP)  ## the benchmarks, as ratios to a named peer
	$(BIN)/python -m benchmarks

system-packages:  ## (Debian, root) programs that some tests and benchmarks compare with
	apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q bart ismrmrd-tools dicom3tools chromium

clean:  ## remove what the other targets made
	rm -rf $(VENV) demo build .pytest_cache .mypy_cache .ruff_cache *.egg-info
