# `make demo` and `make test` are all that a newcomer needs: each makes .venv, installs into it, and runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
INSTALLED := $(VENV)/.installed
MINUTES ?= 60

.PHONY: demo demo-train shapes-scores test test-gpu fuzz lint install dist docs clean

# The demo needs only what bua itself needs, so that it starts sooner.
demo: $(BASE)
	$(BIN)/bua demo --output output/demo

demo-train: $(BASE)
	$(BIN)/bua demo --train --output output/demo-train

# Trains and scores all models of the tables of Shapes, and writes docs/shapes_scores.json and the tables.
shapes-scores: $(INSTALLED) demo-train
	$(BIN)/python benchmarks/shapes_scores.py --demo output/demo-train
	$(BIN)/python benchmarks/shapes_tables.py --write

# In as many processes as there are cores; the tests of one file share what they set up. The files run in the order of
# their names: the last ones are quick, so that all cores are busy until the end.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# The tests that `make test` runs on a pretended GPU, on a real one.
test-gpu: $(INSTALLED)
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make test-gpu: no GPU was found")'
	BUA_TEST_DEVICE=cuda $(BIN)/python -m pytest tests/cuda

# The fuzzers of tests/fuzz with new random seeds. What fails is kept in output/fuzz. ONLY=images,features chooses kinds,
# REPLAY=output/fuzz/read-tsv-123 runs one case again.
fuzz: $(INSTALLED)
	$(BIN)/python tests/fuzz/fuzz.py --minutes $(MINUTES) $(if $(ONLY),--only $(ONLY)) $(if $(REPLAY),--replay $(REPLAY))

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

install: $(INSTALLED)

# Builds a source distribution and a wheel into dist/, and checks them as PyPI does.
dist: $(INSTALLED)
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# Builds the site of the documents into site/; a broken link is an error.
docs: $(BASE)
	$(BIN)/pip install --progress-bar on --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

$(BASE): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --progress-bar on --constraint constraints.txt --editable .
	touch $@

# Detectron2 is on no package index, and its name there is free for anyone to take: it is installed only from a wheel
# in a folder that pip's find-links names, without asking an index.
$(INSTALLED): $(BASE)
	$(BIN)/pip install --progress-bar on --constraint constraints.txt --editable '.[dev,detectron2,captioning,ray,app,effdet]'
	$(BIN)/pip install --quiet --no-index --no-deps detectron2 2>/dev/null \
		|| echo "No Detectron2 wheel in pip's find-links: the tests of bua/d2 are skipped (README.md, With Detectron2)."
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
