# make demo   install into .venv and generate 16 refined crystals into demo/
# make test   install into .venv with the dev tools and run every test
# make test-newest   tests of the model code with the newest transformers that pyproject.toml allows
# make lint   ruff, import contracts, types
# make docs   build the documentation into build/docs; a warning is an error
# make package   build wheel and sdist into dist/ and try them in a clean environment
# make release   hours: train the bundled pair from ../shared/data anew, see tools/release.sh
PYTHON ?= python3.11
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-newest lint docs package release clean

demo: .venv/.installed
	$(BIN)/flowllm sample -n 16 --seed 0 --out demo

test: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The constraints pin the lowest allowed transformers, so `make test` covers that one.
test-newest: .venv/.installed-dev
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/newest \
		"transformers>=5.24,<6"
	PYTHONPATH=build/newest $(BIN)/python -m pytest tests/llm_prior/test_decoding.py \
		tests/llm_prior/test_proposals.py tests/flowllm/training/test_engine.py

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

package: .venv/.installed-dev
	tools/check_package.sh $(BIN)/python

release: .venv/.installed-dev
	PATH=$(CURDIR)/$(BIN):$$PATH tools/release.sh

clean:
	rm -rf .venv demo build dist

# torch first and alone: the tested version is pinned, so that no other package pulls a CUDA build.
.venv/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	touch $@

.venv/.installed: .venv/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@ .venv/.installed

.venv/.installed-docs: .venv/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@ .venv/.installed
