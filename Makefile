# Two commands do everything on a fresh machine with Python 3.11 to 3.14: `make demo` and `make test`.
# The first Python that is supported and can make an environment; another: `make demo PYTHON=/path/to/python3.13`.
SUITS := import ensurepip, os, sys, venv; assert (3, 11) <= sys.version_info < (3, 15); print(os.path.realpath(sys.executable))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python3.14; do $$name -c '$(SUITS)' 2>/dev/null && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
WORKERS ?= 2
# Where Python is told not to keep what it has compiled, each of the hundreds of processes of a run compiles all anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check fix setup setup-test lab clean-local bench

help: ## list the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## the whole journey offline: tickets in, tuned model out, base against tuned
	$(BIN)/llmtuner pipeline notebooks/samples/support-tickets.yaml --fresh
	$(BIN)/llmtuner report notebooks/samples/support-tickets.yaml
	@echo "By hand from here: make lab, or source $(BIN)/activate and llmtuner --help"

lab: setup ## JupyterLab on the first notebook
	$(BIN)/jupyter lab notebooks/00_start.ipynb

test: setup-test check ## lint, types and all tests
	$(BIN)/pytest -n $(WORKERS) tests

check: setup-test ## lint and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.language_info.version metadata.widgets" notebooks/*.ipynb
	$(BIN)/mypy

fix: setup-test ## repair lint and format, strip notebooks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout --keep-id --extra-keys "metadata.language_info.version metadata.widgets" notebooks/*.ipynb

clean-local: ## remove the local cloud's state (asks first)
	$(BIN)/llmtuner local reset

setup: $(VENV)/.ready-run ## everything `make demo` needs
setup-test: $(VENV)/.ready-test

$(VENV)/.ready-run: EXTRAS := all
$(VENV)/.ready-test: EXTRAS := all,test

# torch first and alone: every other package then finds it installed. Compiled is on all cores, which pip does on one;
# some packages bring templates that are no Python. LocalStack is installed while the models are made.
$(VENV)/.ready-run $(VENV)/.ready-test: pyproject.toml constraints.txt $(BIN)/python
	@echo "Setting up $(VENV): a few minutes the first time, nothing after that."
	@test -e /dev/nvidia0 || test -e /dev/dxg || test -n "$$PIP_EXTRA_INDEX_URL" || test -d $(VENV)/lib/python3.*/site-packages/torch || \
	    echo "PyTorch brings CUDA, 2.8 GB. Without a GPU, 0.2 GB do: make demo PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
	$(PIP) torch
	$(PIP) --editable ".[$(EXTRAS)]"
	$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
	$(BIN)/python -m llmtuner_local base-model smollm2-135m-instruct tiny-llama tiny-t5 >/dev/null & \
	    $(BIN)/python -m llmtuner_local install >/dev/null && wait $$!
	touch $(VENV)/.ready-run $@

# Missing too where the Python it was made with is gone. Before 24.2 pip spends minutes on listing what it has installed.
$(BIN)/python:
	@$(or $(PYTHON),false) -c '$(SUITS)' >/dev/null 2>&1 || { python="$(or $(PYTHON),python3)"; \
	    echo "Needed: Python 3.11 to 3.14 with venv. Here: $$($$python --version 2>&1)$$($$python -c 'import ensurepip' 2>&1 | grep -q ensurepip && echo ' without venv')."; \
	    echo "On Debian and Ubuntu: sudo apt install python3-venv. Another Python: make demo PYTHON=/path/to/python3.13"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) pip
