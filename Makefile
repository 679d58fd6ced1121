# The commands of exo.gpu. Each sets up what it needs: .venv with the locked packages (tools/environment)
# and, where it may use apt, what is missing of the system (tools/system_packages).
#   PYTHON=python3.13   picks the interpreter      EXO_GPU_APT=no   keeps apt out
#   ARGS="-k ledger"    goes to pytest             WORKERS=2        test processes
.DEFAULT_GOAL := help
.PHONY: help environment demo test test-fast lint format support screenshots lock dist clean

BIN := .venv/bin
WORKERS ?= auto
WITH_VULKAN := $(BIN)/python tools/vulkan_drivers.py
export PYTHON

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 18

environment: ## make .venv with the locked packages
	@sh tools/environment

demo: environment ## spread a Mandelbrot view over every device found; pictures go to output/
	@PYTHON=$(BIN)/python sh tools/system_packages demo
	$(WITH_VULKAN) $(BIN)/python examples/mandelbrot/demo.py --all-devices --output output

test: environment ## every test, with coverage (at least 95 % of the lines of src)
	@PYTHON=$(BIN)/python sh tools/system_packages test
	@rm -f .coverage .coverage.* coverage.xml
	$(WITH_VULKAN) $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --cov="$(CURDIR)/src/exo/gpu" --cov-report=term --cov-report=xml $(ARGS)

test-fast: environment ## the tests without coverage, stopping at the first failure
	$(WITH_VULKAN) $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --exitfirst $(ARGS)

lint: environment ## style, types, import contracts, dead code, syntax
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python tools/check_syntax.py
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/dead_code.py
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pylint src tools

format: environment ## let ruff put the code in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

support: environment ## write docs/SUPPORT.md anew from what the tests showed
	$(BIN)/python tools/support.py

screenshots: environment ## take the pictures of the dashboard anew, over the drivers found here
	@PYTHON=$(BIN)/python sh tools/system_packages test
	$(WITH_VULKAN) $(BIN)/python tools/screenshots.py

lock: environment ## resolve the versions anew into requirements/*.txt
	sh tools/lock

dist: environment ## build sdist and wheel into dist/ and check both
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tools/check_dist.py

clean: ## remove what the other commands made, .venv included
	rm -rf .venv .build build dist output .coverage .coverage.* coverage.xml .hypothesis .pytest_cache .ruff_cache .import_linter_cache
