# Two commands matter: `make demo` and `make test`. Both make .venv on a machine that has only Python, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
# In gigabytes: what the environment was measured to take on its way, most of it torch with its CUDA libraries.
SPACE ?= 8.5
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo test check slow gpu bench docs clean

demo: $(VENV)/.installed
	$(BIN)/morphogen demo --out demo-report

test: $(VENV)/.installed check
	$(BIN)/python -m pytest -q -n $(WORKERS) --durations=10

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m slow

gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m gpu

bench: $(VENV)/.installed
	$(BIN)/python -m bench

docs: $(VENV)/.installed
	$(PIP) mkdocs mkdocs-material
	$(BIN)/mkdocs build --strict --site-dir build/site

# torch goes first: pip holds all wheels of a command beside what it unpacks, and torch's are most of them.
# The marker is newer than the environment only when the whole installation went through.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Morphogen needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -c 'import pathlib, shutil, sys; where = next(p for p in pathlib.Path("$(VENV)").absolute().parents if p.is_dir()); free = shutil.disk_usage(where).free / 1e9; sys.exit(f"The environment takes $(SPACE) GB and {where} has {free:.1f} GB free; free some, or put it elsewhere: make VENV=/path/.venv" if free < $(SPACE) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch torchvision
	$(PIP) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build demo-report .pytest_cache .mypy_cache .ruff_cache
