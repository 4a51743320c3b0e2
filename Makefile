# The same recipes serve a person and CI. `make help` lists them.
.DEFAULT_GOAL := check
.PHONY: help setup check test system docs demo
SHELL := /bin/bash

PYTEST := .venv/bin/python -m pytest
# Which part of the system suite, and how often in a row.
SYSTEM ?= system
ROUNDS ?= 3

help:
	## list these targets
	@awk '/^[a-z]+:/ { name = $$1 } /^\t## / { sub(/^\t## /, ""); printf "make %-8s %s\n", name, $$0 }' $(MAKEFILE_LIST)

setup:
	## make .venv with everything pinned in it, .venv/bin/lastgood included
	@scripts/setup.sh dev

check: setup
	## style, types, import contract, and the tests that need no engine; under 30 s
	@scripts/check.sh

test: setup
	## all of check, and the tests on real Postgres, Compose and registry; starts the Docker engine where it may
	@scripts/engine.sh || { code=$$?; [ $$code = 3 ] && [ -z "$$LASTGOOD_REQUIRE_ENGINE" ]; }
	@scripts/check.sh --static
	@$(PYTEST) -m 'not system'

system: setup
	## every failing release of HyperCode, on both engines, ROUNDS=3 times in a row
	@scripts/engine.sh || { code=$$?; [ $$code = 3 ] && [ -z "$$LASTGOOD_REQUIRE_ENGINE" ]; }
	@set -e; for round in $$(seq $(ROUNDS)); do echo "system  round $$round of $(ROUNDS)"; $(PYTEST) -m '$(SYSTEM)'; done

docs: setup
	## write the generated parts of the docs anew
	@files=$$(grep -rlF '[[[cog' README.md docs) && .venv/bin/cog -r $$files

demo:
	## see a bad release go live and be rolled back; ARGS="--fault NAME --engine compose ..."
	@scripts/setup.sh demo
	@.venv/bin/lastgood demo $(ARGS)
