# make demo   train a GAN, a VAE and a GPT on real data and show what they make      make test   the whole suite
# make docs   the docstrings with their equations, as pages                          make lint   ruff: rules, format

PYTHON ?= python3
BIN := .venv/bin

.venv/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,cuda-check]'
	@touch $@

demo: .venv/ready
	$(BIN)/scratchgen demo

test: lint
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4

test-deep: .venv/ready
	SCRATCHGEN_DEEP=1 $(BIN)/python -m pytest -q

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/pdoc --math --output-directory docs scratchgen kernels '!scratchgen.__main__'

clean:
	rm -rf .venv docs build *.egg-info

.PHONY: demo test test-deep lint docs clean
