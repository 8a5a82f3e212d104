# Both commands build their own environment in .venv; nothing is needed but Python 3.11 and make.
PYTHON ?= python3.11
BIN := .venv/bin
OUT ?= out/demo

.PHONY: demo test format clean
export JAX_PLATFORMS ?= cpu

demo: .venv/core  ## data, training, clips and a page that shows them
	OUT=$(OUT) BIN=$(BIN) bash launch/demo.sh

test: .venv/test  ## lint, format, and the whole suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/core: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/test: .venv/core
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf .venv out
