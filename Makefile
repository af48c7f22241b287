PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet -c constraints.txt

.PHONY: demo test lint clean

demo: .venv/lab  ## compare optimizers on two small tasks, short and long, and write a report (under six minutes)
	$(BIN)/thalweg compare sine digits --optimizers sgd,adamw,nadamw,lamb,muon,alto,e-adamw \
		--trials 8 --seeds 5 --out runs/demo

test: lint  ## lint, types, import rules, doctests and all tests
	$(BIN)/pytest -n 2

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/lab: pyproject.toml constraints.txt | .venv
	$(PIP) -e '.[lab]'
	@touch $@

.venv/dev: pyproject.toml constraints.txt | .venv
	$(PIP) -e '.[lab,jax,lowbit,dev]'
	@touch .venv/lab $@

.venv:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv runs
