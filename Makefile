# make demo: set up .venv and show every step on a small data set. make quick: the checks that take a minute.
# make test: every check. make docs: docs/ as a site, in site/. make chaos N=200: runs that meet faults drawn from seeds.
# make chaos CYCLES=100: one run that is killed that often.
PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.10,$(shell python$(v) --version >/dev/null 2>&1 && echo python$(v))) python3)
BIN := .venv/bin

# Compiled modules make every later start several seconds faster, so they are kept even where the environment forbids it.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo quick test chaos setup lint types imports unit docs lock bench bench-setup clean

demo: setup
	$(BIN)/imagenet-mds demo

quick: setup lint imports
	$(BIN)/pytest -m "not slow"

# Types are checked beside the tests, which leave a core idle now and then.
test: setup lint imports
	$(MAKE) --jobs=2 types unit

N ?= 10
chaos: setup
	$(BIN)/python -m tests.chaos $(if $(CYCLES),--cycles $(CYCLES),--games $(N)) $(if $(SEED),--seed $(SEED))

setup: .venv/.complete

# Existence means complete: the stamp is written last, and again when what it stands for has changed.
.venv/.complete: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 12)) and "imagenet-mds needs Python 3.10, 3.11 or 3.12, and this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

lint:
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types:
	$(BIN)/mypy

imports:
	$(BIN)/lint-imports

unit:
	$(BIN)/pytest

docs: setup
	$(BIN)/mkdocs --quiet build --strict --clean

lock:
	$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.10 \
		--generate-hashes --quiet --output-file requirements.lock

bench-setup: setup
	$(BIN)/python benchmarks/peers.py

bench:
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/load.py

clean:
	rm -rf .venv dist demo site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
