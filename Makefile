# Two commands do everything on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
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
	$(BIN)/llmtuner report --pipeline notebooks/samples/support-tickets.yaml
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
$(VENV)/.ready-run $(VENV)/.ready-test: pyproject.toml constraints.txt
	@echo "Setting up $(VENV): a few minutes the first time, nothing after that."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable ".[$(EXTRAS)]"
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	$(BIN)/python -m llmtuner_local base-model smollm2-135m-instruct tiny-llama tiny-t5 & \
	    $(BIN)/python -m llmtuner_local install && wait $$!
	touch $(VENV)/.ready-run $@
