# Two commands matter: `make demo` and `make test`. Both make .venv on a machine that has only Python, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

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
	$(BIN)/python -m pip install -q -c constraints.txt mkdocs mkdocs-material
	$(BIN)/mkdocs build --strict --site-dir build/site

# The marker is newer than the environment only when the whole installation went through.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Morphogen needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build demo-report .pytest_cache .mypy_cache .ruff_cache
