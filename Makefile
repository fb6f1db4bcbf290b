# Every command sets up what it needs first: an environment in .venv, with the versions of constraints.txt.
#   make demo      make test      make help

SHELL = /bin/sh
PY = .venv/bin/python
READY = .venv/.ready
# Tests run in one process a core; `make test WORKERS=0 ARGS="-k coin -x"` runs them in this one and passes on options.
WORKERS = logical
ARGS =
# Without cached bytecode every process would compile torch's two thousand modules anew, for seconds.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = $(PY) -m pytest -n $(WORKERS) --maxprocesses 4

.PHONY: help demo test slow lint types setup notebooks bench wheel clean always

help: ## what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## the main job: real coins and a real regression, fitted and checked
	@.venv/bin/bayeszoo demo $(ARGS)

test: $(READY) ## every test but the slow ones and those that need a GPU
	@$(PYTEST) -m "not slow and not gpu" $(ARGS)

slow: $(READY) ## the long statistical checks
	@$(PYTEST) -m "slow and not gpu" $(ARGS)

lint: $(READY) ## ruff: rules and format
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: $(READY) ## mypy
	@$(PY) -m mypy

wheel: $(READY) ## source archive and wheel, in dist/
	@rm -rf dist
	@$(PY) -m build

setup: $(READY) ## the environment alone

notebooks: .venv/.notebooks ## the notebooks in Jupyter Lab
	@$(PY) -m jupyter lab --notebook-dir=notebooks $(ARGS)

bench: .venv/.bench ## speed beside plain Pyro, torch and NumPyro (an hour or more); ARGS="--quick --only coin" for a look
	@$(PY) -m benchmarks $(ARGS)

clean: ## remove what was built, the environment included
	rm -rf .venv build dist bayeszoo.egg-info .pytest_cache .mypy_cache .ruff_cache

# An environment belongs to one folder: in a folder that was moved or copied it is made again.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(READY): always
endif

$(READY): pyproject.toml constraints.txt
	@sh .ci/install
	@pwd -P > $(READY)

.venv/.notebooks: $(READY)
	@sh .ci/install notebooks
	@touch $@

.venv/.bench: $(READY)
	@sh .ci/install bench
	@touch $@
