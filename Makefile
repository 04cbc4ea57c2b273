# Everything here needs only Python 3.11+ and make; each target does its own set-up.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
SHORT := training.steps=60 training.eval_every=20 training.save_every=20 corpus.limit=500 \
	study.seeds=2 finetune.seeds=1 finetune.epochs=0.5

.PHONY: demo demo-short test test-all test-wheel check docs format bench venv clean

demo: venv ## mask 45 % of the tokens at first and 15 % at last, or 15 % all the time? ends with a page to look at
	$(BIN)/maskwise study quick-start --out runs/quick-start

demo-short: venv ## the same path through every room in a minute; its numbers mean nothing
	$(BIN)/maskwise study quick-start $(SHORT) --out runs/short

test: venv ## fast tests, offline
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test-all: venv ## slow tests too; those that need ../shared skip without it
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "slow or not slow" --timeout 1800

test-wheel: venv ## build both distributions, and try the wheel of maskwise alone in an empty environment
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --timeout 1800 tests/test_install.py

check: venv docs ## format, lint, types, import direction, the shape of the house, and the pages of docs/
	$(BIN)/ruff format --check src tests scripts benchmarks
	$(BIN)/ruff check src tests scripts benchmarks
	$(BIN)/mypy
	$(BIN)/pytest -p no:cacheprovider tests/test_imports.py tests/test_house.py

docs: venv ## the pages, with the reference made from docstrings, in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: venv
	$(BIN)/ruff check --fix src tests scripts benchmarks
	$(BIN)/ruff format src tests scripts benchmarks

bench: venv ## speed beside the peers; alone on the machine, please
	OMP_NUM_THREADS=1 $(BIN)/maskwise bench mask

venv: $(INSTALLED)

# Redone only when its inputs change; torch is pinned in constraints.txt.
$(INSTALLED): pyproject.toml packages/maskwise-data/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "maskwise needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e packages/maskwise-data -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
