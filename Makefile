# Each target sets up what it needs in .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint bench clean

demo: $(INSTALLED)  ## compare diff-in-means and INLP on the embedded chat model
	$(BIN)/refusal-cmp run --config examples/demo.yaml

test: $(INSTALLED)  ## the test suite, one process per core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(INSTALLED)  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## all benchmarks, about half an hour; writes benchmarks/results/ and prints the table
	for file in benchmarks/[a-z]*.py; do case $$file in */table.py|*/sensitivity.py) ;; *) $(BIN)/python $$file || exit 1 ;; esac; done
	$(BIN)/python benchmarks/table.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "refusal-cmp needs Python 3.11 or newer; name one with make PYTHON=…")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:  ## remove the environment and caches; runs are kept
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
