# These targets need only make and Python 3.11 or newer; each one sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
GPU_PYTHON ?= python3.12
GPU_ENV ?= build/gpu-env
FLOOR_PYTHON ?= python3.11
FLOOR_ENV ?= build/floor-env
RUNNABLE := .venv/.runnable
INSTALLED := .venv/.installed
SHORT := training.steps=60 training.eval_every=20 training.save_every=20 corpus.limit=500 \
	study.seeds=2 finetune.seeds=1 finetune.epochs=0.5

.PHONY: demo demo-short test test-all bench-check test-wheel test-floor test-gpu-versions test-cuda-stub check docs format bench venv clean

demo: $(RUNNABLE) ## Do small encoders learn more if 30 % of the tokens are masked, instead of 15 %? Writes a page with the answer
	$(BIN)/maskwise study quick-start --out runs/quick-start

demo-short: $(RUNNABLE) ## its stages and fine-tuning in a minute, as a smoke test; its numbers mean nothing
	$(BIN)/maskwise study decay $(SHORT) --out runs/short

# Rewriting the assertions of all tests takes longer than the tests of most files, so it is left to those that fail. With byte
# code kept, processes that tests start need not compile the package again.
test: export OMP_NUM_THREADS = 1
test: export PYTHONDONTWRITEBYTECODE =
test: venv ## the fast tests, offline; those that fail run again, to say more
	$(BIN)/pytest -n 2 --dist loadfile --assert=plain || \
		{ $(BIN)/pytest --last-failed --last-failed-no-failures none; exit 1; }

test-all: venv ## all tests, including slow ones; those that need ../shared are skipped without it
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "slow or not slow" --timeout 1800

bench-check: venv ## the scripts of benchmarks/, and those that write the data of studies, with little data
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "script and not slow"

test-wheel: venv ## build both distributions, and test the maskwise wheel alone in an empty environment
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --timeout 1800 tests/test_install.py

test-floor: $(FLOOR_ENV)/.installed ## the fast tests with the lowest versions that pyproject.toml allows (7 GB)
	$(FLOOR_ENV)/bin/python scripts/floor.py

test-gpu-versions: $(GPU_ENV)/.installed ## the benchmarks for GPUs in miniature, with the versions of such a machine (4 GB)
	$(GPU_ENV)/bin/python scripts/gpu_versions.py

test-cuda-stub: $(GPU_ENV)/.installed ## the CUDA path without a card: attention, waits and generated code (slow; needs gcc)
	$(GPU_ENV)/bin/python scripts/cuda_stub.py

check: venv docs ## formatting, lint, types, import direction, and the docs
	$(BIN)/ruff format --check src tests scripts benchmarks
	$(BIN)/ruff check src tests scripts benchmarks
	$(BIN)/mypy
	$(BIN)/pytest -p no:cacheprovider tests/test_imports.py tests/test_house.py

docs: venv ## build the site in build/site, with the reference from docstrings; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: venv ## fix lint and format the code
	$(BIN)/ruff check --fix src tests scripts benchmarks
	$(BIN)/ruff format src tests scripts benchmarks

bench: venv ## masking speed compared with other libraries; run it on an idle machine
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mask.py

venv: $(INSTALLED)

# Rebuilt only when their inputs change; torch is pinned in constraints.txt. The demo needs fewer packages than the tests.
$(RUNNABLE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "maskwise needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[report]'
	@touch $@

$(INSTALLED): $(RUNNABLE) packages/maskwise-data/pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e packages/maskwise-data -e '.[dev]'
	@touch $@

# Python 3.12 and the libraries of the machine with a GPU, without maskwise.
$(GPU_ENV)/.installed: benchmarks/gpu-requirements.txt
	$(GPU_PYTHON) -m venv $(GPU_ENV)
	$(GPU_ENV)/bin/pip install --quiet --disable-pip-version-check -r benchmarks/gpu-requirements.txt
	@touch $@

# Python 3.11 and the lowest versions that pyproject.toml allows.
$(FLOOR_ENV)/.installed: pyproject.toml packages/maskwise-data/pyproject.toml tests/floor.txt
	$(FLOOR_PYTHON) -m venv $(FLOOR_ENV)
	$(FLOOR_ENV)/bin/pip install --quiet --disable-pip-version-check -c tests/floor.txt \
		-e packages/maskwise-data -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
