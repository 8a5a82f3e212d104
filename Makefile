# Both commands build their own environment in .venv; nothing is needed but Python 3.11, make and a C
# compiler.
PYTHON ?= python3.11
BIN := .venv/bin
# Byte code is written as modules are imported: to write it for all that is installed takes a third longer.
PIP := PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
OUT ?= out/demo
DATA := $(OUT)/data
CLIP := --frames 17 --height 32 --width 32 --fps 16 --sample_rate 16000 --channels 1
comma := ,
BEGAN := $(shell date +%s)

.PHONY: demo test format clean
export JAX_PLATFORMS ?= cpu

# A step takes its memory anew from glibc, which is to keep what was freed: else a fifth of a training's
# time on a CPU goes into fresh pages.
demo: export GLIBC_TUNABLES ?= glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=2147483648:glibc.malloc.arena_max=1
demo: $(DATA)/world $(DATA)/real  ## data, training, clips, and a page that shows them
	$(BIN)/sr4 train --config configs/world.py:demo$(if $(wildcard $(DATA)/real),$(comma)real) \
	  --workdir $(OUT) --config.data.root=$(DATA)
	$(BIN)/sr4 evaluate --checkpoint $(OUT)/checkpoints --out $(OUT) --began $(BEGAN)
	$(BIN)/sr4 report --workdir $(OUT)

test: .venv/test  ## lint, format, and the whole suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(DATA)/world: | .venv/core
	$(BIN)/python -m data_pipelines.world --simple --count 16384 --out $@ $(CLIP)

# Real clips are mixed in when they can be fetched; without a network there are none.
$(DATA)/real: | .venv/core
	$(BIN)/python -m data_pipelines.real --out $(DATA)/media
	test ! -d $(DATA)/media || $(BIN)/python -m data_pipelines.ingest --media $(DATA)/media --out $@ $(CLIP)

.venv/core: setup.py
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/test: .venv/core
	$(PIP) --editable '.[test]'
	touch $@

clean:
	rm -rf .venv out
