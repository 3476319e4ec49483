# `make demo` shows the library at work, `make test` checks all of it. Both install what they need.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PYTEST_FLAGS ?=
PROCESSES ?= 2
BENCH_FLAGS ?=
CUDA_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
CONSTRAINTS := .ci/constraints.txt
INSTALLED := $(VENV)/.installed
NOTEBOOKS_INSTALLED := $(VENV)/.installed-notebooks
LINKS := protocl/strategies protocl/federation protocl/configs
CODE := protocl strategies federation configs tests docs/site

# A checkout is a folder called protocl as well, and hides the package from a Python that is started
# beside it, unless the package itself is on the path.
define ON_PATH
import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "protocl_checkout.pth").write_text(sys.argv[1])
endef
export ON_PATH

# pip has hundreds of lines to say, of which only the last ones matter, and only when it fails.
quietly = $(1) >$(LOG) 2>&1 || { \
	status=$$?; tail -n 20 $(LOG); echo "Failed; everything that was said is in $(LOG)"; \
	exit $$status; } >&2

.PHONY: help setup demo test test-slow test-cuda lint format typecheck notebooks bench docs clean

help:  ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

setup: $(INSTALLED) | $(LINKS)  ## Create .venv and install protocl into it

# strategies/ is protocl.strategies: by these links editors, checkers and documentation tools find
# on disk the package that Python imports. Builds do without them, as where there are no links.
$(LINKS):
	@ln -s ../$(notdir $@) $@

# The stamp is written last: an installation that was cut short is taken up again.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@test -x $(BIN)/python || { echo "Creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing protocl and its dependencies: minutes on a first call (log: $(LOG))"
	@$(call quietly,$(BIN)/python -m pip install --editable '.[dev]' --constraint $(CONSTRAINTS))
	@$(BIN)/python -c "$$ON_PATH" '$(CURDIR)'
	@touch $@
	@echo "Installed; the command is $(BIN)/protocl"

$(NOTEBOOKS_INSTALLED): $(INSTALLED)
	@echo "Installing what notebooks need (log: $(LOG))"
	@$(call quietly,$(BIN)/python -m pip install --editable '.[notebooks]' --constraint $(CONSTRAINTS))
	@touch $@

demo: setup  ## Run digits: five strategies, three seeds; then ten clients against one place
	@echo "Running five strategies with three seeds each"
	@$(BIN)/protocl run experiment=demo
	@echo "Running ten federated clients, in fixed and in floating point"
	@$(BIN)/protocl federate federation=digits name=demo/federated method.head=lda \
		method.exact=true,false verify=true

test: setup lint typecheck  ## Lint, check types, run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile \
		$(PYTEST_FLAGS)

test-slow: setup  ## Run the tests that take minutes
	@$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

test-cuda:  ## Check and measure on a CUDA device, or by the same path on the CPU
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) -m tests.cuda $(CUDA_FLAGS)

lint: setup
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)

format: setup  ## Apply the formatter and the safe lint fixes
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

typecheck: setup
	@$(BIN)/mypy protocl

notebooks: $(NOTEBOOKS_INSTALLED)  ## Execute every notebook; fails on the first error in one
	@shopt -s nullglob; for notebook in notebooks/*.ipynb; do \
		echo "$$notebook"; $(BIN)/jupyter execute "$$notebook"; \
	done

bench: setup  ## Measure speed against Avalanche, side by side
	@$(BIN)/protocl bench $(BENCH_FLAGS)

docs: setup  ## Build the documentation site into build/site; strict
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "Open build/site/index.html"

clean:  ## Remove build results and caches; keeps .venv and runs
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
