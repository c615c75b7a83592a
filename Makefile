# Two commands are enough: `make demo` and `make test`. Each sets up .venv first, once.
# Needs Linux, make and Python 3.11 or newer; PYTHON=... names another interpreter.

VENV := .venv
BIN := $(VENV)/bin
# Named after the content of the two files, so that a change of either installs again and a mere checkout does not.
INSTALLED := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-hosts check audit bench clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

demo: $(INSTALLED) ## the main job in 5 minutes: build a dataset, train 4 methods on 2 workers, write report.html
	$(BIN)/boostlu demo

test: $(INSTALLED) ## the quick test suite
	$(BIN)/pytest

test-all: $(INSTALLED) ## every test: also the slow ones (faults, soaks), and new random examples
	$(BIN)/pytest -m 'not hosts' --hypothesis-profile=thorough

test-hosts: $(INSTALLED) ## several hosts on this machine, as containers and as Compose services; needs root, buildah and more
	$(BIN)/pytest -m hosts tests/hosts tests/deploy

check: $(INSTALLED) ## lint, formatting, types, security patterns
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive sharding trainer cluster

audit: $(INSTALLED) ## known vulnerabilities of the pinned packages; asks the package index, so it needs the network
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

bench: $(INSTALLED) ## measure this machine, minutes; PHOTOS=DIR (a folder of JPEGs) measures the loader too
	$(BIN)/boostlu bench index
	$(BIN)/boostlu bench metrics
	$(BIN)/boostlu bench loss
	$(if $(PHOTOS),$(BIN)/boostlu bench loader --photos '$(PHOTOS)',@echo "the loader: make bench PHOTOS=DIR")

install: $(INSTALLED) ## only set up .venv

clean: ## remove caches and build output; keeps .venv, data/ and runs/
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find sharding trainer cluster configs tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)

$(INSTALLED):
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Install it (Debian, Ubuntu: apt install python3.11" \
		"python3.11-venv), or name one: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) ($(PYTHON)): about 3 minutes and 7 GB, once."
	@$(PYTHON) -m venv $(VENV) || { echo "Could not make $(VENV). Where the venv module is missing" \
		"(Debian, Ubuntu): apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/.installed-* && touch $@
