# ModuleMesh from a fresh clone: every target makes what it needs first. `make` alone lists them.

# The first that is there and runs. Another one: make demo PYTHON=/path/to/python3.12
PYTHON ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
VENV := .venv
# Touched when the environment fits pyproject.toml and constraints.txt.
STAMP := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check clean

help:  ## Say what there is to make
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18
	@echo 'Options go in ARGS: make demo ARGS="--dataset fashion-mnist", make test ARGS="-k rounds".'

install: $(STAMP)  ## Make the environment in .venv

demo: $(STAMP)  ## Run a mesh of three nodes on this machine; results in demo-out
	$(VENV)/bin/meshnode demo $(ARGS)

test: $(STAMP)  ## Run the tests
	$(VENV)/bin/pytest $(ARGS)

check: $(STAMP)  ## Check style, types and layers
	scripts/check $(ARGS)

clean:  ## Remove the environment, caches and results
	rm -rf $(VENV) demo-out dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo 'ModuleMesh needs Python 3.11 or 3.12; name one with PYTHON=...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
