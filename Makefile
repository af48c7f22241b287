PYTHON ?= python3
BIN := .venv/bin
# Few trials, one study, and one tuning seed where compare takes two: enough to show how a comparison goes.
TRIALS := 2
STUDIES := 1
TUNING_SEEDS := 1
SEEDS := 4
OUT := runs/demo
PORT := 8000
MUCH = --trials $(TRIALS) --studies $(STUDIES) --tuning-seeds $(TUNING_SEEDS) --seeds $(SEEDS)
DEMO = --optimizers sgd,adamw,lamb,muon,alto,e-adamw $(MUCH) --out $(OUT)
PIP := $(BIN)/pip install --quiet -c constraints.txt

.PHONY: help demo test twins lint docs clean

help:  ## list these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

demo: .venv/lab  ## compare optimizers on two small tasks, short and long, and write a report (three to six minutes)
	$(BIN)/thalweg compare sine digits --budget short $(DEMO)
	$(BIN)/thalweg compare digits --batch-size 1024 --budget long $(DEMO)

# Where an environment keeps Python from writing what it compiles, each worker would take five seconds more.
test: lint  ## lint, types, import rules, doctests and all tests
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 3 --dist worksteal  # on two cores: many tests wait for processes

twins: .venv/dev  ## Lamb beside the LAMBs of other libraries, installed for it (ten to twenty minutes, two gigabytes)
	$(BIN)/python tests/twins/run.py

docs: .venv/dev  ## build the site into build/site, and serve it on this machine alone
	$(BIN)/sphinx-build -W -n --keep-going -d build/pages docs build/site
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site $(PORT)

lint: .venv/dev  ## lint, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/lab: pyproject.toml constraints.txt | .venv
	$(PIP) -e '.[lab]'
	@touch $@

.venv/dev: pyproject.toml constraints.txt | .venv
	$(PIP) 'pip>=25.1'  # which knows groups of dependencies
	$(PIP) -e '.[lab,hub,jax,lowbit]' --group dev
	@touch .venv/lab $@

.venv:
	$(PYTHON) -m venv .venv

clean:  ## remove what these commands made: .venv, runs, build and the site's generated pages
	rm -rf .venv runs build docs/generated
