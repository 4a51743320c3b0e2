# The same recipes serve a person and CI. The line above each target is what `make help` shows.
.DEFAULT_GOAL := check
.PHONY: help setup check test system docs demo
SHELL := /bin/bash

PYTEST := .venv/bin/python -m pytest
# No engine and no right to install one (exit 3): go on, and the tests that need it are reported as not run.
ENGINE := scripts/engine.sh || { code=$$?; [ $$code = 3 ] && [ -z "$$LASTGOOD_REQUIRE_ENGINE" ]; }
# Which part of the system suite, how often in a row, and how many tests side by side: they wait more than they work.
SYSTEM ?= system
ROUNDS ?= 3
JOBS ?= 3
FIGURES := .cache/figures

## list these targets
help:
	@awk '/^## / { text = substr($$0, 4) } /^[a-z]+:/ { sub(/:.*/, ""); printf "make %-8s %s\n", $$0, text }' $(MAKEFILE_LIST)

## make .venv with everything pinned in it, .venv/bin/lastgood included
setup:
	@scripts/setup.sh dev

## style, types, import contract, and the tests of core, order, house and the contracts on stand-ins; under 30 s
check: setup
	@scripts/check.sh

## all of check, and the tests on real Postgres, Compose and registry; installs and starts the Docker engine where it may
test: setup
	@$(ENGINE)
	@scripts/check.sh --static
	@$(PYTEST) -n $(JOBS) --dist loadscope --no-loadscope-reorder --durations=25 -m 'not system and not full'

## every failing release of HyperCode, on both engines, ROUNDS=3 times in a row, and a kill at every point of every step
system: setup
	@$(ENGINE)
	@rm -rf $(FIGURES)
	@set -e; export LASTGOOD_FIGURES=$(CURDIR)/$(FIGURES); for round in $$(seq $(ROUNDS)); do \
	  echo "system  stories, round $$round of $(ROUNDS)"; $(PYTEST) -n $(JOBS) --dist load --maxschedchunk 1 --durations=0 -m '$(SYSTEM) and not edge' tests/system/test_stories.py; done; \
	  if [ '$(SYSTEM)' = system ]; then $(PYTEST) -n 2 --dist worksteal -m edge tests/system/test_stories.py; fi
	@scripts/figures.py $(FIGURES)
	@$(PYTEST) -n $(JOBS) --dist worksteal -m '$(SYSTEM)' tests/system/test_kill_points.py
	@if [ '$(SYSTEM)' = system ]; then $(PYTEST) -n 2 --dist loadscope -m 'full and not system' tests/integration tests/targets tests/examples; fi

## write the generated parts of the docs anew
docs: setup
	@files=$$(grep -rlF '[[[cog' README.md docs) && .venv/bin/cog -r $$files
	@.venv/bin/python scripts/schema.py

## see a bad release go live and be rolled back; ARGS="--fault NAME --engine compose"
demo:
	@scripts/setup.sh demo
	@.venv/bin/lastgood demo $(ARGS)
